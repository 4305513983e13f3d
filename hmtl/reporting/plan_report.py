"""What `plan` prints: tables of loads, savings and choices, and whether coding pays."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from rich.table import Table

from hmtl.coding import CODED_SCHEMES, MEDIA, SCHEMES
from hmtl.communication.accounting.ledger import RELAYS_TO_SERVER, SERVER_TO_RELAYS, TIERS
from hmtl.communication.messages import KEYS, SHARED, SHARES, UNMASK
from hmtl.communication.prices.comparison import Compared, Comparison, LinkUse, Timetable
from hmtl.reporting.console import MIN_SAVED, as_table, compared, narrow_table, saved, share_saved
from hmtl.reporting.run_comparison import natural_order
from hmtl.reporting.style import OKABE_ITO, PAGE, PRINT, Picture

PLAN = "plan.json"
"""The plan of a job in a sweep, in its folder."""
MAX_CHOICES = 5  # that a table of seconds shows
MAX_SHOWN_HOSTS = 24  # whose links a table shows
SHOWN_AS_ZERO = 1e-6  # of the largest number in a column, such as a report of 16 bytes beside rows
WAYS = {"uncoded": "plain", "coded": "coded", "sums": "sums", "secure": "secure"}
"""What travels in a round, as tables call it."""


def plan_table(comparison: Comparison) -> Table:
    """Return the loads between relays and server, and the share of time saved, one row per choice of aggregators."""
    uncoded = [comparison.seconds[medium]["uncoded"] for medium in MEDIA]

    def row(who: str, up: float, down: Iterable[float], seconds: Iterable[float] = ()) -> list[str]:
        shares = (share_saved(time, reference) for time, reference in zip(seconds, uncoded, strict=False))
        return [who, f"{up:.2f}", *(f"{ivs:.2f}" for ivs in down), *shares]

    rows = []
    for scheme in SCHEMES:
        who = f"{'all relays' if scheme in CODED_SCHEMES else 'server'}, {scheme}"
        mark = " *" * (scheme in comparison.not_trainable)
        down = (comparison.downlinks[medium][scheme] for medium in MEDIA)
        seconds = [comparison.seconds[medium][scheme] for medium in MEDIA if scheme in CODED_SCHEMES and not mark]
        rows.append(row(who + mark, comparison.loads[scheme][RELAYS_TO_SERVER], down, seconds))
    for medium, best in comparison.aggregators.items():
        who = f"{'best' if best.proven else 'found'} for {medium}"
        rows.append(row(who, best.relays_to_server, best.downlinks.values(), best.seconds.values()))
    bounds = comparison.bounds
    for who, adding in (("sums, where they suffice", comparison.sums), ("secure sums", comparison.secure_sums)):
        if adding:
            rows.append(row(who, adding.relays_to_server, adding.downlinks.values(), adding.seconds.values()))
    rows.append(row("all relays, Theorem 2", bounds[RELAYS_TO_SERVER], [bounds[SERVER_TO_RELAYS]]))
    title = f"K={comparison.K} users, H={comparison.H} relays, r={comparison.r:.4g}; IVs of {comparison.V_bits:,} bits"
    headers = ("who aggregates", "up", "down,\nbroadcast", "down,\nunicast", "saved,\nbroadcast", "saved,\nunicast")
    table = narrow_table(title, headers, rows)
    for before_rule in (table.rows[-2], table.rows[-4 if comparison.secure_sums else -3]):
        before_rule.end_section = True
    return table


def round_tables(comparison: Comparison) -> Iterator[Table]:
    """Yield megabytes and seconds of a round on each hop, by what travels: a table for each format."""
    for form, costs in comparison.formats.items():
        rows = [[f"{tier.replace('_', ' ')}", *_cells(cost.hops[tier] for cost in costs.values())] for tier in TIERS]
        totals = [(sum(size for size, _ in cost.hops.values()), cost.seconds) for cost in costs.values()]
        headers = [f"{WAYS[what]}\n{unit}" for what in costs for unit in ("MB", "s")]
        title = f"A round in {_format(form)}, {comparison.network.medium} downlink"
        table = narrow_table(title, ["from", *headers], [*rows, ["all", *_cells(totals)]])
        table.rows[-2].end_section = True
        yield table


def _format(wire: str) -> str:
    return "64 bits" if wire == "null" else wire


def _cells(hops: Iterable[tuple[float, float]]) -> list[str]:
    return [_number(n) for size, seconds in hops for n in (size / 1e6, seconds)]


def _number(value: float, largest: float = 0.0) -> str:
    """Return three digits, more of a number beyond 1,000, and 0 if it is nothing beside the largest of a column."""
    return "0" if abs(value) <= SHOWN_AS_ZERO * largest else f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def choices_table(comparison: Comparison) -> Table:
    """Return the nodes that aggregate or send sums, and how much worse than the best choice they can be at most."""
    names, sums = comparison.names.of_relays, comparison.sums
    rows = [
        [f"aggregate, {medium}", _listed(names(best.relays), best.server), _distance(best.proven, best.excess)]
        for medium, best in comparison.aggregators.items()
    ]
    if sums.relays:
        how = "send sums, whole rows" if sums.pieces == 1 else f"send sums, shares of 1/{sums.pieces} row"
        rows.append([how, _listed(names(sums.relays)), _distance(sums.proven, sums.excess)])
    return as_table("Choices", ("", "nodes", "optimal"), rows, words=3)


def remarks(comparison: Comparison) -> Iterator[str]:
    """Yield the sentences under the tables: what the columns mean, and whether coding pays."""
    yield "up, down: IVs between relays and server per round."
    yield f"saved: share of the communication time over all hops at {comparison.network.rates}."
    yield f"coded: with {_who(comparison, comparison.coded)} as aggregators."
    for scheme, reason in comparison.not_trainable.items():
        yield f"* scheme={scheme} cannot be used for training. {reason}"
    yield verdict(comparison)


def verdict(comparison: Comparison) -> str:
    """Return a sentence that says whether coding pays on the network's downlink."""
    medium = comparison.network.medium
    seconds, uncoded = comparison.seconds[medium], comparison.seconds[medium]["uncoded"]
    names = comparison.names.of_relays
    best = comparison.aggregators[medium]
    choices = {  # in this order, so that the best aggregators for the medium are named if others take as long
        f"'[{_listed(names(other.relays), other.server)}]'": other.seconds[medium]
        for other in (best, *comparison.aggregators.values())
        if other.relays
    } | {f"all scheme={scheme}": seconds[scheme] for scheme in CODED_SCHEMES if scheme not in comparison.not_trainable}
    fastest = min(choices, key=choices.__getitem__)
    if saved(choices[fastest], uncoded) >= MIN_SAVED:
        how = f"the communication of a round takes {compared(choices[fastest], uncoded)}"
        return f"Coding pays on a {medium} downlink: {how} with aggregators={fastest}."
    return f"Coding does not pay on a {medium} downlink: no choice tried takes clearly less time than plain forwarding."


def secure_table(bits: Mapping[str, Mapping[str, int]], K: int) -> Table:
    """Return the bits that secure sums add to a round of K users, by kind of message and tier: a row for each tier."""
    rows = []
    for tier in TIERS:
        keys, shared, shares, unmasking = (bits[kind][tier] for kind in (KEYS, SHARED, SHARES, UNMASK))
        each, total = (keys, shared + shares, unmasking), keys + shared + shares + unmasking
        rows.append([tier.replace("_", " "), *(f"{n / 1e6:.4g}" for n in (*each, total)), f"{total / K:,.0f}"])
    headers = ("Mbit per round", "keys", "shares", "unmasking", "all", "bits per user")
    return as_table("What secure sums add to a round in which everybody is present", headers, rows)


def secure_remark(secure: Mapping[str, Any], K: int) -> str:
    """Return the sentence under `secure_table`: who protects whom."""
    return (
        f"Secure sums: {secure['neighbors']} neighbors of a user, {secure['threshold']} of whom can reveal a mask; "
        f"{secure['colluding']} of {K} users may collude with relays and server; at least {secure['fewest']} terms in "
        "a sum."
    )


def time_table(times: Timetable) -> Table:
    """Return the seconds of a round over access links, for the best choices of who aggregates and the usual ones."""
    rows = [
        (_who(times, setting), seconds, times.costs[n : n + 1])
        for n, (setting, seconds) in enumerate(times.choices)
        if n < MAX_CHOICES or _is_usual(times, setting)
    ]
    sums_cost = [sum(link.cost or 0.0 for link in times.links["sums"])] if times.costs else []
    rows.append(("sums, where they suffice", times.sums_seconds, sums_cost))
    rows += [("secure sums", times.secure_seconds, [])] if times.secure_seconds is not None else []
    tried = f"best of {'all ' * times.every}{len(times.choices)} choices"
    title = f"K={times.K} users, H={times.H} relays, r={times.r:.4g}; IVs of {times.V_bits:,} bits; no compute; {tried}"
    cells = [
        [who, f"{seconds:.4g}", share_saved(seconds, times.uncoded), *(f"{each:.4g}" for each in cost)]
        for who, seconds, cost in rows
    ]
    return as_table(title, ("who aggregates", "seconds", "saved", *["cost"] * bool(times.costs)), cells)


def sweep_of_plans(folder: Path) -> pd.DataFrame:
    """Return the seconds of a round of each plan in a folder, and what coding and sums save of plain forwarding."""
    rows = []
    for path in sorted(folder.glob(f"*/{PLAN}"), key=natural_order):
        each = json.loads(path.read_text())
        if "choices" in each:
            coded = next(seconds for setting, seconds in each["choices"] if setting == each["coded"])
            plain, sums = each["uncoded"], each["sums_seconds"]
        else:
            plain, coded, sums = (each["formats"]["null"][way]["seconds"] for way in ("uncoded", "coded", "sums"))
        row = {"plan": path.parent.name, "K": each["K"], "H": each["H"], "r": each["r"], "plain s": plain}
        row |= {"coded s": coded, "coded saved": saved(coded, plain)}
        rows.append(row | {"sums s": sums, "sums saved": saved(sums, plain)})
    return pd.DataFrame(rows)


def sweep_table(plans: pd.DataFrame) -> Table:
    """Return the table of `sweep_of_plans`."""
    rows = [
        [
            str(cell) if isinstance(cell, str | int) else f"{cell:.1%}" if "saved" in key else f"{cell:.4g}"
            for key, cell in row.items()
        ]
        for row in plans.to_dict("records")
    ]
    headers = [key.replace(" ", "\n") for key in plans]
    return narrow_table("A round; saved: share of the time of plain forwarding", headers, rows)


def time_remarks(times: Timetable) -> Iterator[str]:
    """Yield the sentences under the tables of a plan with a file of links."""
    yield "saved: share of the time of plain forwarding."
    yield "Links: MB that a node sends (up) and receives (down) in a round, and their time."
    yield f"coded: with {_who(times, times.coded)} as aggregators."
    yield f"Plain forwarding takes at least {times.uncoded_bound:.4g} s, whichever relays serve the users."
    setting, seconds = times.choices[0]
    pays = saved(seconds, times.uncoded) >= MIN_SAVED
    how = f"pays: if {_who(times, setting)} aggregates, a round takes {compared(seconds, times.uncoded)}"
    yield f"Coding {how if pays else 'does not pay'}. Sums take {compared(times.sums_seconds, times.uncoded)}."


def links_table(times: Timetable) -> Table:
    """Return the bytes, the seconds and the cost of a round on each node's link, for the fastest IVs and for sums.

    Of many hosts, those whose links take longest are shown.
    """
    fastest = times.choices[0][0]
    ways = [times.links["coded" if fastest == times.coded else "uncoded"], times.links["sums"]]
    hosts = sorted(range(1 + times.H, len(ways[0])), key=lambda n: -max(way[n].seconds for way in ways))
    shown = (*range(1 + times.H), *sorted(hosts[:MAX_SHOWN_HOSTS]))
    rows = [(ways[0][n].node, [number for way in ways for number in _use(way[n : n + 1])]) for n in shown]
    rows.append(("all; s: busiest", [number for way in ways for number in _use(way)]))
    what = ["up\nMB", "down\nMB", "s", *["cost"] * bool(times.costs)]
    title = f"Links; left: {_who(times, fastest)} aggregates, right: sums"
    title += f"; {MAX_SHOWN_HOSTS} of {len(hosts)} hosts" * (len(hosts) > MAX_SHOWN_HOSTS)
    cells = [[node, *map(_number, numbers, rows[-1][1])] for node, numbers in rows]
    table = narrow_table(title, ["link of", *what, *what], cells)
    table.rows[-2].end_section = True
    return table


def _use(links: Sequence[LinkUse]) -> list[float]:
    """Return MB sent and received, seconds and cost of a link, or of several, of which the busiest has the seconds."""
    totals = [sum(link.sent for link in links) / 1e6, sum(link.received for link in links) / 1e6]
    totals.append(max(link.seconds for link in links))
    totals += [sum(link.cost or 0.0 for link in links)] if links[0].cost is not None else []
    return totals


def failures_of(compared: Compared) -> pd.DataFrame:
    """Return the seconds and the cost of a round without each relay that fails: the content of `failures.csv`."""
    rows = [
        {"relay": "none" if each.relay is None else str(each.relay), "users_cut_off": each.cut_off}
        | {f"{WAYS[way]}_s": seconds for way, seconds in each.seconds.items()}
        | {f"{WAYS[way]}_cost": cost for way, cost in each.cost.items()}
        for each in compared.failures
    ]
    return pd.DataFrame(rows)


def failures_table(failures: pd.DataFrame) -> Table:
    """Return the table of `failures_of`."""
    rows = [
        [relay, str(cut_off), *("waits" if math.isnan(n) else f"{n:.4g}" for n in numbers)]
        for relay, cut_off, *numbers in failures.itertuples(index=False)
    ]
    headers = [name.replace("_", "\n") for name in list(failures)[2:]]
    return narrow_table("A round if a relay fails", ["failed\nrelay", "users\ncut off", *headers], rows)


@matplotlib.rc_context(PRINT)
def failures_picture(failures: pd.DataFrame) -> Picture:
    """Draw seconds and cost of a round without each relay that fails, and write how many users it cuts off."""
    figure = Picture(figsize=(PAGE, 0.8 + 0.22 * len(failures)), layout="constrained")
    panels = {"seconds": failures.filter(regex="_s$"), "cost": failures.filter(regex="_cost$")}
    panels = {unit: shown for unit, shown in panels.items() if not shown.empty}
    for n, (unit, shown) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), n + 1, xlabel=f"{unit} of a round")
        axes.grid(axis="x")
        marks = zip(shown, "os^", (9, 5, 5), OKABE_ITO.values(), strict=False)
        for name, marker, size, color in marks:  # others fit into the circle of plain forwarding
            style: Any = {"color": color, "markersize": size, "fillstyle": "none" if marker == "o" else "full"}
            axes.plot(shown[name], failures.index, marker, label=name.partition("_")[0], **style)
            axes.axvline(shown[name][0], color=color, linewidth=0.7, linestyle="dashed", zorder=1)
        axes.set_yticks(failures.index, failures["relay"] if n == 0 else [])
        axes.set(ylim=(len(failures) - 0.5, -0.5), xlim=(0, None))
    figure.axes[0].set_ylabel("failed relay")
    for n, users, seconds in failures[["users_cut_off", "plain_s"]].itertuples():
        if users:
            text = "the run waits" if math.isnan(seconds) else f"cuts off {users} user{'s' * (users > 1)}"
            axes.annotate(text, (1.01, n), xycoords=("axes fraction", "data"), va="center", annotation_clip=False)
    figure.fit_legend(axes.get_legend_handles_labels()[0])
    return figure


def plan_files(result: Comparison | Timetable) -> dict[str, pd.DataFrame]:
    """Return what a plan writes to CSV files: `failures_of`, and what a round costs by hop, or by link and choice."""
    files = {"failures": failures_of(result)} if result.failures else {}
    if isinstance(result, Timetable):
        links = [{"travels": WAYS[way]} | asdict(link) for way, links in result.links.items() for link in links]
        table = pd.DataFrame(links).rename(columns={"sent": "sent_bytes", "received": "received_bytes"})
        files["links"] = table.dropna(axis="columns")
        rows = [(_who(result, setting), seconds) for setting, seconds in result.choices]
        choices = pd.DataFrame(rows, columns=["aggregators", "seconds"])
        files["choices"] = choices.assign(cost=result.costs) if result.costs else choices
        return files
    hops = [
        (_format(form), WAYS[what], tier, *cost.hops[tier])
        for form, costs in result.formats.items()
        for what, cost in costs.items()
        for tier in TIERS
    ]
    return files | {"costs": pd.DataFrame(hops, columns=["format", "travels", "tier", "bytes", "seconds"])}


def _is_usual(times: Timetable, setting: str | list[int | str]) -> bool:
    return setting == "server" or (len(setting) == times.H and "server" not in setting)


def _who(compared: Compared, setting: str | list[int | str]) -> str:
    relays = [] if isinstance(setting, str) else [node for node in setting if node != "server"]
    return _listed(compared.names.of_relays(relays), isinstance(setting, list) and "server" in setting)


def _listed(relays: Sequence[int | str], server: bool = False) -> str:
    """Return the names of nodes, and numbers in ranges such as `0-3`; without relays, it is the server."""
    listed = ["server"] * (server or not relays)
    for _, group in groupby(enumerate(relays), lambda each: each[1] - each[0] if isinstance(each[1], int) else each[1]):
        first, *others = [node for _, node in group]
        listed += [f"{first}-{others[-1]}"] if len(others) > 1 else map(str, (first, *others))
    return ", ".join(listed)


def _distance(proven: bool, excess: float) -> str:
    return "proven" if proven else f"at most {excess:.2%} above the best"
