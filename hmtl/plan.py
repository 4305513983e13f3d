"""What coding would save on a network, without training: `python -m hmtl.plan topology=heterogeneous d=0.2`."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from rich import box
from rich.table import Table

from hmtl.coding import (
    CODED_SCHEMES,
    MEDIA,
    SCHEMES,
    Demand,
    Loads,
    best_aggregators,
    bounds,
    cover,
    loads,
    obstacle,
    sum_loads,
    uplink_bound,
)
from hmtl.communication import Network, tier_loads
from hmtl.communication.accounting.ledger import RELAYS_TO_SERVER, RELAYS_TO_USERS, SERVER_TO_RELAYS, TIERS
from hmtl.config.build import build_network, build_topology, check
from hmtl.config.command_line import main
from hmtl.errors import ConfigError
from hmtl.io.files import replacing
from hmtl.reporting.console import Console
from hmtl.reporting.progress import progress
from hmtl.topology import Moving, Topology, draw

Result = dict[str, Any]
MOST_NAMED = 6  # relays; more would make a sentence hard to read
HERE = ("Coding pays here, on", "Coding does not pay here, on")
ELSEWHERE = ("It would pay on", "It would not pay on")
BEST = "optimal"  # the scheme that brings the best aggregators the IVs: none needs less, whoever they are


def plan(cfg: DictConfig) -> None:
    """Print loads, bounds and times as `cfg` says, and leave `topology.png` in `cfg.output_dir`."""
    if cfg.format not in ("text", "json"):
        raise ConfigError(f"format={cfg.format} is unknown: choose text or json.")
    check(cfg)
    contacts, network = build_topology(cfg), build_network(cfg)
    topology = contacts.at(0)
    with progress(f"Planning for K={topology.K} users and H={topology.H} relays"):
        result = compare(topology, network, cfg.V_bits)
    if isinstance(contacts, Moving):
        result["note"] = "Users move: all this is of the first contacts, and changes with them."
    picture = Path(cfg.output_dir) / "topology.png"
    with replacing(picture) as file:
        draw(contacts, result["aggregators"][network.medium]["relays"]).savefig(file, format="png", dpi=150)
    if cfg.format == "json":
        print(json.dumps(result, indent=2))
    else:
        console = Console()
        console.table(_table(result))
        for line in _remarks(result, topology):
            console.print(line)
        if "note" in result:
            console.print(result["note"])
        console.print(f"Picture: {picture}", markup=False, soft_wrap=True)


def compare(topology: Topology, network: Network, V_bits: int) -> Result:
    """Loads [IVs] between relays and server, and communication time [s] of one round, for each choice of who
    aggregates: the server (uncoded), all relays (each scheme), and the relays that are best for each medium.

    The latter's `cost` and `bound` are the time between relays and server of a round, and what it is at least whoever
    aggregates, in IVs at the speed of the server's downlink: where links are alike, IVs up and down.
    """
    uplinks = network.uplinks(topology)

    def seconds(load: Loads, medium: str, tiers: Collection[str] = TIERS, last_hop: float | None = None) -> float:
        by_tier = tier_loads(topology, BEST, medium, load)
        if last_hop is not None:
            by_tier[RELAYS_TO_USERS] = np.array(last_hop)
        return network.seconds({tier: V_bits * ivs * (tier in tiers) for tier, ivs in by_tier.items()})

    load = {scheme: loads(topology, scheme, uplinks) for scheme in SCHEMES}
    times = {medium: {scheme: seconds(load[scheme], medium) for scheme in SCHEMES} for medium in MEDIA}
    best: Result = {}
    for medium in MEDIA:
        choice = best_aggregators(topology, BEST, uplinks, medium)
        A = choice.relays or "server"
        chosen = loads(topology, BEST, uplinks, aggregators=A)
        cost = seconds(chosen, medium, (RELAYS_TO_SERVER, SERVER_TO_RELAYS)) / V_bits * network.W2
        best[medium] = {
            "relays": list(choice.relays),
            RELAYS_TO_SERVER: chosen.uplink,
            SERVER_TO_RELAYS: chosen.down(medium),
            "cost": round(cost, 9),
            "bound": choice.bound,
            "proven": cost <= choice.bound * (1 + 1e-9) + 1e-9,
            "downlinks": {name: chosen.down(name) for name in MEDIA},
            "seconds": {name: seconds(chosen, name) for name in MEDIA},
        }
    adding, added = cover(topology, uplinks), sum_loads(topology, uplinks)
    last_hop = added.unicast if network.last_hop == "broadcast" else None  # a row for all users of a relay, or for each
    sums = {
        "relays": list(adding.relays),
        "proven": adding.proven,
        **_between(added),
        "downlinks": {name: added.down(name) for name in MEDIA},
        "seconds": {name: seconds(added, name, last_hop=last_hop) for name in MEDIA},
    }
    total, partition = Demand(topology.core).optimum()
    fastest = network.W2 if uplinks is None else max(uplinks.bandwidths, default=network.W2)
    obstacles = {scheme: obstacle(topology, scheme) for scheme in CODED_SCHEMES}
    not_trainable = {scheme: reason for scheme, reason in obstacles.items() if reason}
    return {
        "K": topology.K,
        "H": topology.H,
        "r": topology.r,
        "V_bits": V_bits,
        "network": asdict(network),
        "loads": {scheme: _between(load[scheme]) for scheme in SCHEMES},
        "aggregators": best,
        "sums": sums,
        "downlinks": {medium: {scheme: load[scheme].down(medium) for scheme in SCHEMES} for medium in MEDIA},
        "bounds": _between(bounds(topology)),
        "proof": {
            RELAYS_TO_SERVER: float(total),
            "partition": [[topology.active[i] for i in part] for part in partition],
        },
        "uplink_seconds": {
            "bound": uplink_bound(topology, uplinks) * V_bits / fastest,
            **{scheme: seconds(load[scheme], network.medium, (RELAYS_TO_SERVER,)) for scheme in SCHEMES},
        },
        "not_trainable": not_trainable,
        "seconds": times,
        "verdict": _verdict(HERE, times[network.medium], best, network.medium, not_trainable),
    }


def _between(load: Loads) -> dict[str, float]:
    return {RELAYS_TO_SERVER: load.uplink, SERVER_TO_RELAYS: load.downlink}


def _remarks(result: Result, topology: Topology) -> Iterator[str]:
    """What the figures are, what is proven of them, and what pays."""
    yield "up, down: IVs between relays and server in a round; saved: of its time to send."
    yield "Who aggregates learns all IVs. Theorem 2: what all relays need for that at least."
    for scheme, reason in result["not_trainable"].items():
        yield f"* scheme={scheme} cannot be trained with. {reason}"
    yield ""
    if len(topology.active) > 1:
        yield f"{_proof(result['proof'])} That is for all relays to learn all IVs."
        if not _alike(result):
            seconds = result["uplink_seconds"]
            yield (
                f"On these uplinks it takes {seconds['bound']:.4g} s at least, by the linear programme over all cuts; "
                f"with scheme=optimal, in whole pieces, {seconds['optimal']:.4g} s."
            )
    sums = result["sums"]
    adding = _named(sums["relays"]).removeprefix("the ").capitalize()
    add = f"{adding} add{'s' * (len(sums['relays']) == 1)}"
    few = "No fewer hear everybody" if sums["proven"] else "Fewer may hear everybody"
    yield (
        "Sums, of 64-bit numbers, are enough for some learners: regularizer=mean with mocha or fedu, cocoa, fedavg, "
        f"fedprox, ditto, pfedme. {add}. {few}."
    )
    for medium, best in result["aggregators"].items():
        who = f"{_named(best['relays'])} aggregate{'s' * (len(best['relays']) < 2)}"
        if len(best["relays"]) > MOST_NAMED:
            who = f"{', '.join(map(str, best['relays']))} aggregate, {len(best['relays'])} relays"
        if best["proven"]:
            yield f"Best for {medium}: {who}. Proven: whoever else aggregates, it takes no less time."
        else:
            less = 1 - best["bound"] / best["cost"]
            yield (
                f"Best found for {medium}: {who}. Not proven: others may take up to {less:.2%} less time between "
                "relays and server, but no more than that."
            )
    yield ""
    yield result["verdict"]
    medium = next(other for other in MEDIA if other != result["network"]["medium"])
    yield _verdict(ELSEWHERE, result["seconds"][medium], result["aggregators"], medium, result["not_trainable"])


def _proof(proof: Result) -> str:
    """Why no scheme has a smaller uplink: the relays of each part need so much from the others."""
    parts = " ".join("{" + ",".join(map(str, part)) + "}" for part in proof["partition"])
    least = f"{proof[RELAYS_TO_SERVER]:.2f}"
    return f"No scheme does with less than uplink {least}, proven by the partition {parts} of the relays."


def _named(relays: Sequence[int]) -> str:
    if not relays:
        return "the server"
    if len(relays) > MOST_NAMED:
        return f"the {len(relays)} relays"
    return f"relay{'s' * (len(relays) > 1)} {', '.join(map(str, relays))}"


def _verdict(
    words: tuple[str, str], seconds: Mapping[str, float], best: Result, medium: str, not_trainable: Collection[str]
) -> str:
    """Whether any coding pays where the downlink is `medium`: a sentence that begins with the first words, or not."""
    uncoded = seconds["uncoded"]
    everyone = {
        f"all relays as aggregators and scheme={scheme}": seconds[scheme]
        for scheme in CODED_SCHEMES
        if scheme not in not_trainable
    }
    chosen = {  # the best for this medium first, so that they are named where others do as well
        f"{_named(other['relays'])} as aggregator{'s' * (len(other['relays']) > 1)}": other["seconds"][medium]
        for other in (best[medium], *best.values())
        if other["relays"]
    }
    choices = chosen | everyone
    who = min(choices, key=choices.__getitem__)
    time = choices[who]
    if time < uncoded * (1 - 1e-9):
        return (
            f"{words[0]} a {medium} downlink: with {who}, a round's communication takes {1 - time / uncoded:.1%} less "
            f"time than with plain forwarding, {time:.4g} s instead of {uncoded:.4g} s."
        )
    tried = "" if best[medium]["proven"] else " that was tried"
    more = seconds[BEST] / uncoded - 1
    return (
        f"{words[1]} a {medium} downlink: no choice of aggregators{tried} takes less time for a round's communication "
        f"than plain forwarding, {uncoded:.4g} s; all relays take {f'{more:.1%} more' if more > 5e-4 else 'as much'}."
    )


def _alike(result: Result) -> bool:
    """Whether all uplinks are alike and shared, so that the least load takes the least time."""
    return result["network"]["uplink_bps"] is None and result["network"]["uplink"] == "shared"


def _table(result: Result) -> Table:
    table = Table(
        title=f"K={result['K']} users, H={result['H']} relays, r={result['r']:.4g}; V={result['V_bits']:,} bit",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("who aggregates")
    for column in ("up", "down,\nbroadcast", "down,\nunicast", "saved,\nbroadcast", "saved,\nunicast"):
        table.add_column(column, justify="right", vertical="bottom")

    def add(who: str, up: float, down: Iterable[float], seconds: Iterable[float] = ()) -> None:
        uncoded = (result["seconds"][medium]["uncoded"] for medium in MEDIA)
        saved = (f"{1 - time / reference:.1%}" for time, reference in zip(seconds, uncoded, strict=False))
        table.add_row(who, f"{up:.2f}", *(f"{ivs:.2f}" for ivs in down), *saved)

    for scheme in SCHEMES:
        down = (result["downlinks"][medium][scheme] for medium in MEDIA)
        seconds = (result["seconds"][medium][scheme] for medium in MEDIA) if SCHEMES[scheme].code else ()
        who = f"all relays, {scheme}" if SCHEMES[scheme].code else f"server, {scheme}"
        who += " *" * (scheme in result["not_trainable"])
        add(who, result["loads"][scheme][RELAYS_TO_SERVER], down, seconds)
    for medium, best in result["aggregators"].items():
        who = f"{'best' if best['proven'] else 'found'} for {medium}"
        add(who, best[RELAYS_TO_SERVER], best["downlinks"].values(), best["seconds"].values())
    table.add_section()
    sums = result["sums"]
    add("sums, where enough", sums[RELAYS_TO_SERVER], sums["downlinks"].values(), sums["seconds"].values())
    table.add_section()
    add("all relays, Theorem 2", result["bounds"][RELAYS_TO_SERVER], [result["bounds"][SERVER_TO_RELAYS]])
    return table


if __name__ == "__main__":
    main(plan, "plan")
