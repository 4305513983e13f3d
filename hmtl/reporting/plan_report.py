"""What `plan` prints: a table of loads and savings, remarks on bounds and proofs, and whether coding pays."""

from collections.abc import Iterable, Iterator

from rich import box
from rich.table import Table

from hmtl.coding import CODED_SCHEMES, MEDIA, SCHEMES
from hmtl.coding.formulas import DEFAULT_PIECES
from hmtl.communication.accounting.ledger import RELAYS_TO_SERVER, SERVER_TO_RELAYS, TIERS
from hmtl.communication.few_bits import FEW_BITS
from hmtl.communication.messages import KEYS, SHARED, SHARES, UNMASK
from hmtl.communication.round_costs import BEST, AddingRelays, BestAggregators, Comparison
from hmtl.communication.secure_costs import SecureCosts
from hmtl.communication.timetable import Timetable
from hmtl.reporting.console import MOST_NAMED, as_table, names_of
from hmtl.topology import Names

MOST_CHOICES = 5  # that a table of seconds shows


def plan_table(comparison: Comparison) -> Table:
    """Return the loads between relays and server, and the share of time saved, one row per choice of aggregators."""
    uncoded = [comparison.seconds[medium]["uncoded"] for medium in MEDIA]

    def row(who: str, up: float, down: Iterable[float], seconds: Iterable[float] = ()) -> list[str]:
        saved = (f"{1 - time / reference:.1%}" for time, reference in zip(seconds, uncoded, strict=False))
        return [who, f"{up:.2f}", *(f"{ivs:.2f}" for ivs in down), *saved]

    rows = []
    for scheme in SCHEMES:
        who = f"{'all relays' if scheme in CODED_SCHEMES else 'server'}, {scheme}"
        mark = " *" * (scheme in comparison.not_trainable)
        down = (comparison.downlinks[medium][scheme] for medium in MEDIA)
        seconds = (comparison.seconds[medium][scheme] for medium in MEDIA if scheme in CODED_SCHEMES)
        rows.append(row(who + mark, comparison.loads[scheme][RELAYS_TO_SERVER], down, seconds))
    for medium, best in comparison.aggregators.items():
        who = f"{'best' if best.proven else 'found'} for {medium}"
        rows.append(row(who, best.relays_to_server, best.downlinks.values(), best.seconds.values()))
    sums, bounds, names = comparison.sums, comparison.bounds, comparison.names
    who_learns = (
        f"sums, learned by {names_of(names.of_relays(sums.learning))}" if sums.learning else "sums, where they suffice"
    )
    for who, adding in ((who_learns, sums), ("secure sums, by the server", comparison.secure_sums)):
        if adding:
            rows.append(row(who, adding.relays_to_server, adding.downlinks.values(), adding.seconds.values()))
    rows.append(row("all relays, Theorem 2", bounds[RELAYS_TO_SERVER], [bounds[SERVER_TO_RELAYS]]))
    title = f"K={comparison.K} users, H={comparison.H} relays, r={comparison.r:.4g}; V={comparison.V_bits:,} bit"
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


def remarks(comparison: Comparison) -> Iterator[str]:
    """Yield the sentences under the table: what the columns mean, what is proven, and whether coding pays."""
    yield "up, down: IVs between relays and server per round; saved: share of the round's transmission time."
    yield "Aggregators learn all IVs. Theorem 2: a lower bound of schemes in which all relays do."
    for scheme, reason in comparison.not_trainable.items():
        yield f"* scheme={scheme} cannot be used for training. {reason}"
    yield ""
    if sum(map(len, comparison.proof["partition"])) > 1:
        yield from _proof(comparison)
    yield _adding(comparison)
    for medium in comparison.aggregators:
        yield _best(comparison, medium)
    yield ""
    yield verdict(comparison, comparison.network.medium)
    yield verdict(comparison, next(other for other in MEDIA if other != comparison.network.medium))


def verdict(comparison: Comparison, medium: str) -> str:
    """Return a sentence that says whether coding pays on a downlink of this medium."""
    here = medium == comparison.network.medium
    seconds, best = comparison.seconds[medium], comparison.aggregators[medium]
    uncoded = seconds["uncoded"]
    names = comparison.names.of_relays
    choices = {  # in this order, so that the best aggregators for the medium are named if others take as long
        f"{names_of(names(other.relays), other.server)} as aggregator{'s' * _several(other)}": other.seconds[medium]
        for other in (best, *comparison.aggregators.values())
        if other.relays
    } | {
        f"all relays as aggregators and scheme={scheme}": seconds[scheme]
        for scheme in CODED_SCHEMES
        if scheme not in comparison.not_trainable
    }
    fastest = min(choices, key=choices.__getitem__)
    time = choices[fastest]
    if time < uncoded * (1 - 1e-9):
        return (
            f"{'Coding pays here,' if here else 'It would pay'} on a {medium} downlink: with {fastest}, a round's "
            f"communication takes {1 - time / uncoded:.1%} less time than with plain forwarding, {time:.4g} s instead "
            f"of {uncoded:.4g} s."
        )
    tried = "" if best.proven else " that was tried"
    more = seconds[BEST] / uncoded - 1
    return (
        f"{'Coding does not pay here,' if here else 'It would not pay'} on a {medium} downlink: no choice of "
        f"aggregators{tried} takes less time for a round's communication than plain forwarding, {uncoded:.4g} s; all "
        f"relays take {f'{more:.1%} more' if more > 5e-4 else 'as much'}."
    )


def secure_table(costs: SecureCosts, K: int) -> Table:
    """Return what secure sums add to a round of K users, one row for each tier."""
    rows = []
    for tier in TIERS:
        keys, shared, shares, unmasking = (costs.bits[kind][tier] for kind in (KEYS, SHARED, SHARES, UNMASK))
        bits, total = (keys, shared + shares, unmasking), costs.by_tier[tier]
        rows.append([tier.replace("_", " "), *(f"{each / 1e6:.4g}" for each in (*bits, total)), f"{total / K:,.0f}"])
    headers = ("Mbit per round", "keys", "shares", "unmasking", "all", "bit per user")
    return as_table("What secure sums add to a round in which everybody is present", headers, rows)


def secure_remarks(costs: SecureCosts, K: int, wire: str | None) -> Iterator[str]:
    """Yield the sentences under `secure_table`: who protects whom, and what masks do to few bits."""
    yield (
        f"Secure sums: each user has {costs.neighbors} neighbours, and {costs.threshold} of them can reveal one of its "
        f"masks. Relays, server and up to {costs.colluding} of {K} users may collude; a sum is over at least "
        f"{costs.fewest} users, or the round is empty."
    )
    if wire in FEW_BITS:
        b, more = FEW_BITS[wire], (K - 1).bit_length()
        yield f"A masked term is uniform, so users send {b} + {more} = {b + more} bits per number instead of {b}."


def time_table(times: Timetable) -> Table:
    """Return the seconds of a round over access links, for the best choices of who aggregates and the usual ones."""
    usual = [choice for choice in times.choices[MOST_CHOICES:] if _is_usual(times, choice[0])]
    rows = [(_who(times, setting), seconds) for setting, seconds in (*times.choices[:MOST_CHOICES], *usual)]
    rows += [(f"sums, learned by {_who(times, setting)}", seconds) for setting, seconds in times.sums[:2]]
    title = f"K={times.K} users, H={times.H} relays, r={times.r:.4g}; V={times.V_bits:,} bit; a round over all links"
    rows += [("secure sums, by the server", times.secure_seconds)] if times.secure_seconds is not None else []
    cells = [[who, f"{seconds:.4g}", f"{1 - seconds / times.uncoded:.1%}"] for who, seconds in rows]
    return as_table(title, ("who aggregates", "seconds", "saved"), cells)


def time_remarks(times: Timetable) -> Iterator[str]:
    """Yield the sentences under `time_table`: who aggregates soonest, and what that asks of it."""
    (setting, seconds), tried = times.choices[0], len(times.choices)
    who, several = _who(times, setting), isinstance(setting, list) and len(setting) > 1
    fewer = f"{1 - seconds / times.uncoded:.1%} less than with plain forwarding, {times.uncoded:.4g} s"
    yield (
        f"Soonest: {who} aggregate{'s' * (not several)}. The messages of a round take {seconds:.4g} s"
        + (f", {fewer}." if seconds < times.uncoded * (1 - 1e-9) else ", as with plain forwarding.")
        + f" {'All' if times.every else 'Not all'} choices were tried: {tried}. Computing is not counted."
    )
    for duty in times.duties:
        coding = f"multiplies {duty.multiplied / 1e6:,.0f} MB in GF(2^8), " if duty.multiplied else ""
        yield (
            f"In a round, {duty.name} holds {duty.memory / 1e6:,.1f} MB of 64-bit numbers (V, IVs and models, K rows "
            f"each) beside its buffers, {coding}and computes the global update, with {duty.update:,} multiplications "
            "if all users are coupled."
        )


def _is_usual(times: Timetable, setting: str | list[int | str]) -> bool:
    return setting == "server" or (len(setting) == times.H and "server" not in setting)


def _who(times: Timetable, setting: str | list[int | str]) -> str:
    relays = [] if isinstance(setting, str) else [node for node in setting if node != "server"]
    return names_of(times.names.of_relays(relays), isinstance(setting, list) and "server" in setting)


def _proof(comparison: Comparison) -> Iterator[str]:
    partition = map(comparison.names.of_relays, comparison.proof["partition"])
    parts = " ".join("{" + ",".join(map(str, part)) + "}" for part in partition)
    least = f"{comparison.proof[RELAYS_TO_SERVER]:.2f}"
    yield (
        f"No scheme in which all relays learn all IVs has an uplink load below {least}, as the partition {parts} of "
        "the relays proves."
    )
    if comparison.network.uplink_bps is not None or comparison.network.uplink != "shared":
        seconds = comparison.uplink_seconds
        yield (
            f"On these uplinks this takes at least {seconds['bound']:.4g} s, by the linear programme over all cuts, "
            f"and {seconds['optimal']:.4g} s with scheme=optimal, in whole pieces."
        )


def _adding(comparison: Comparison) -> str:
    sums, medium = comparison.sums, comparison.network.medium
    learning = "The server"
    if sums.learning:  # named in full, since later sentences may give only their number
        learners = ", ".join(map(str, comparison.names.of_relays(sums.learning)))
        learning = f"Relay{'s' * (len(sums.learning) > 1)} {learners}"
    sentences = [
        "Sums of 64-bit numbers suffice for regularizer=mean with mocha or fedu, and for cocoa, fedavg and its "
        "relatives.",
        f"{learning} learn{'s' * (len(sums.learning) < 2)} them: {_sending(sums, comparison.names)}.",
    ]
    here, server = sums.seconds[medium], sums.server_seconds[medium]
    if sums.learning:
        sentences.append(f"If the server learned them, a round would take {server:.4g} s instead of {here:.4g} s.")
    if not sums.best:
        sentences.append(f"This choice is not proven, but at most {sums.excess:.2%} above the best.")
    return " ".join(sentences)


def _sending(sums: AddingRelays, names: Names) -> str:
    """Return what relays send to the server, and whether they could send less."""
    if not sums.relays:
        return "nothing has to be sent to the server"
    learning = names_of(names.of_relays(sums.learning))
    of = f" with terms of the users whom not all of {learning} hear" if sums.learning else ""
    same = f"{learning} learn{'s' * (len(sums.learning) < 2)}"
    who = names_of(names.of_relays(sums.relays)) if len(sums.relays) <= MOST_NAMED else f"{len(sums.relays)} relays"
    if sums.pieces == 1:
        how = f"{who} {'send a whole row each' if len(sums.relays) > 1 else 'sends a whole row'}{of}"
        least = "shares of rows would not be faster" if sums.proven else "no shares that were tried are faster"
    else:
        how = (
            f"{who} send shares of 1/{sums.pieces} row{of}, {sums.relays_to_server:.2f} rows in all instead of "
            f"{sums.whole_rows:.0f} whole ones"
        )
        least = f"no scheme in which {same} the sums takes less time on the uplink"
        if not sums.proven:
            least = f"another such scheme might take up to {1 - sums.bound / sums.cost:.2%} less time"
    return f"{how}; {least}"


def _best(comparison: Comparison, medium: str) -> str:
    best = comparison.aggregators[medium]
    relays = comparison.names.of_relays(best.relays)
    who = f"{names_of(relays, best.server)} aggregate{'s' * (not _several(best))}"
    if len(relays) > MOST_NAMED:
        who = f"{', '.join(map(str, relays))} aggregate, {len(relays)} relays"
        who += " and the server" * best.server
    differ = comparison.network.uplink_bps or comparison.network.uplink == "parallel"
    what = f"coded IVs{f' in at most {DEFAULT_PIECES} pieces' if differ else ''} and uncoded models"
    if best.proven:
        return (
            f"Best for {medium}: {who}. Proven: with {what}, no other aggregators (relays, the "
            "server or both) take less time between relays and server."
        )
    return (
        f"Best found for {medium}: {who}. Not proven: with {what}, the time between relays and server is at most "
        f"{best.excess:.2%} above that of the best aggregators (relays, the server or both)."
    )


def _several(best: BestAggregators) -> bool:
    return len(best.relays) + best.server > 1
