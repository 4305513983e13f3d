"""What `plan` prints: tables of loads, savings and choices, and whether coding pays."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from hmtl.coding import CODED_SCHEMES, MEDIA, SCHEMES
from hmtl.communication.accounting.ledger import RELAYS_TO_SERVER, SERVER_TO_RELAYS, TIERS
from hmtl.communication.messages import KEYS, SHARED, SHARES, UNMASK
from hmtl.communication.prices.comparison import Comparison, Timetable
from hmtl.reporting.console import MIN_SAVED, as_table, compared, saved

MAX_CHOICES = 5  # that a table of seconds shows


def plan_table(comparison: Comparison) -> Table:
    """Return the loads between relays and server, and the share of time saved, one row per choice of aggregators."""
    uncoded = [comparison.seconds[medium]["uncoded"] for medium in MEDIA]

    def row(who: str, up: float, down: Iterable[float], seconds: Iterable[float] = ()) -> list[str]:
        shares = (f"{saved(time, reference):.1%}" for time, reference in zip(seconds, uncoded, strict=False))
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
    table = as_table(title, headers, rows)
    table.box, table.padding = box.SIMPLE_HEAD, (0, 1, 0, 0)
    for before_rule in (table.rows[-2], table.rows[-4 if comparison.secure_sums else -3]):
        before_rule.end_section = True
    return table


def format_table(comparison: Comparison, wire: str) -> Table:
    """Return the cost of a round with numbers of 64 bits and in the format `wire`, one row for each thing that travels.

    Bits are those between relays and server, seconds those over all hops.
    """
    names = {"uncoded": "IVs, uncoded", "coded": "IVs, coded", "sums": "sums, where they suffice"}
    names |= {"secure": "secure sums"} if comparison.secure else {}
    plain, narrow = comparison.formats["null"], comparison.formats[wire]
    rows = []
    for key, name in names.items():
        row = [name, f"{plain[key].bits / 1e6:.4g}", f"{plain[key].seconds:.3g}"]
        if key in narrow:
            fewer = plain[key].bits / narrow[key].bits
            row += [f"{narrow[key].bits / 1e6:.4g}", f"{narrow[key].seconds:.3g}", f"{fewer:.1f}"]
        rows.append(row)
    headers = ("what travels", "64 bits:\nMbit", "s", f"{wire}:\nMbit", "s", "times\nfewer bits")
    title = f"A round, {comparison.network.medium}: Mbit between relays and server, s over all hops"
    table = as_table(title, headers, rows)
    table.box, table.padding = box.SIMPLE_HEAD, (0, 1, 0, 0)
    return table


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
        f"Secure sums: {secure['neighbors']} neighbours of a user, {secure['threshold']} of whom can reveal a mask; "
        f"{secure['colluding']} of {K} users may collude with relays and server; at least {secure['fewest']} terms in "
        "a sum."
    )


def time_table(times: Timetable) -> Table:
    """Return the seconds of a round over access links, for the best choices of who aggregates and the usual ones."""
    usual = [choice for choice in times.choices[MAX_CHOICES:] if _is_usual(times, choice[0])]
    rows = [(_who(times, setting), seconds) for setting, seconds in (*times.choices[:MAX_CHOICES], *usual)]
    rows.append(("sums, where they suffice", times.sums_seconds))
    tried = f"best of {'all ' * times.every}{len(times.choices)} choices"
    title = f"K={times.K} users, H={times.H} relays, r={times.r:.4g}; IVs of {times.V_bits:,} bits; no compute; {tried}"
    rows += [("secure sums", times.secure_seconds)] if times.secure_seconds is not None else []
    cells = [[who, f"{seconds:.4g}", f"{saved(seconds, times.uncoded):.1%}"] for who, seconds in rows]
    return as_table(title, ("who aggregates", "seconds", "saved"), cells)


def _is_usual(times: Timetable, setting: str | list[int | str]) -> bool:
    return setting == "server" or (len(setting) == times.H and "server" not in setting)


def _who(times: Timetable, setting: str | list[int | str]) -> str:
    relays = [] if isinstance(setting, str) else [node for node in setting if node != "server"]
    return _listed(times.names.of_relays(relays), isinstance(setting, list) and "server" in setting)


def _listed(relays: Sequence[int | str], server: bool = False) -> str:
    """Return the names of nodes; without relays, it is the server."""
    return ", ".join(map(str, (*["server"] * (server or not relays), *relays)))


def _distance(proven: bool, excess: float) -> str:
    return "proven" if proven else f"at most {excess:.2%} above the best"
