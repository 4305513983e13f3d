"""What coding would save on a network, without training: `python -m hmtl.plan topology=heterogeneous d=0.2`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from hmtl.cli import main
from hmtl.coding import CODED_SCHEMES, MEDIA, SCHEMES, Demand, Loads, bounds, loads
from hmtl.communication import Network, tier_loads
from hmtl.communication.ledger import RELAYS_TO_SERVER, SERVER_TO_RELAYS
from hmtl.config import build_network, build_topology
from hmtl.errors import ConfigError
from hmtl.topology import Topology, draw


def plan(cfg: DictConfig) -> None:
    """Print loads, bounds and times as `cfg` says, and leave `topology.png` in `cfg.output_dir`."""
    if cfg.format not in ("text", "json"):
        raise ConfigError(f"format={cfg.format} is unknown: choose text or json.")
    if cfg.V_bits < 1:
        raise ConfigError(f"V_bits={cfg.V_bits} is no message: an IV has at least one bit, say 784 · 64 = 50176.")
    topology, network = build_topology(cfg), build_network(cfg)
    picture = Path(cfg.output_dir) / "topology.png"
    draw(topology).savefig(picture, dpi=150)
    result = compare(topology, network, cfg.V_bits)
    if cfg.format == "json":
        print(json.dumps(result, indent=2))
    else:
        console = Console(highlight=False)
        console.print(_table(result))
        if len(topology.active) > 1:
            console.print(_proof(result["proof"]))
        console.print(result["verdict"])
        console.print(f"Picture: {picture}", soft_wrap=True)


def compare(topology: Topology, network: Network, V_bits: int) -> dict[str, Any]:
    """Loads [IVs] between relays and server, and communication time [s] of one round, of all schemes and media."""
    load = {scheme: loads(topology, scheme, network.uplinks(topology)) for scheme in SCHEMES}
    seconds = {
        medium: {
            scheme: network.seconds(
                {tier: V_bits * ivs for tier, ivs in tier_loads(topology, scheme, medium, load[scheme]).items()}
            )
            for scheme in SCHEMES
        }
        for medium in MEDIA
    }
    least, partition = Demand(topology.core).optimum()
    return {
        "K": topology.K,
        "H": topology.H,
        "r": topology.r,
        "V_bits": V_bits,
        "network": asdict(network),
        "loads": {scheme: _between(load[scheme]) for scheme in SCHEMES},
        "bounds": _between(bounds(topology)),
        "proof": {
            RELAYS_TO_SERVER: float(least),
            "partition": [[topology.active[i] for i in part] for part in partition],
        },
        "seconds": seconds,
        "verdict": _verdict(seconds[network.medium], network.medium, len(topology.active)),
    }


def _between(load: Loads) -> dict[str, float]:
    return {RELAYS_TO_SERVER: load.uplink, SERVER_TO_RELAYS: load.downlink}


def _proof(proof: dict[str, Any]) -> str:
    """Why no scheme has a smaller uplink: the relays of each part need so much from the others."""
    parts = "".join("{" + ",".join(map(str, part)) + "}" for part in proof["partition"])
    return f"No scheme does with less than uplink {proof[RELAYS_TO_SERVER]:.2f}, proven by {parts}."


def _verdict(seconds: dict[str, float], medium: str, relays: int) -> str:
    """Whether coding pays where the downlink is `medium`, in a sentence."""
    uncoded = seconds["uncoded"]
    best = min(CODED_SCHEMES, key=seconds.__getitem__)
    if seconds[best] < uncoded:
        return (
            f"Coding pays here: on a {medium} downlink, scheme={best} takes {1 - seconds[best] / uncoded:.1%} less "
            f"time for a round's communication than plain forwarding: {seconds[best]:.4g} s instead of {uncoded:.4g} s."
        )
    why = f", since each coded message goes to {relays} relays one by one" if medium == "unicast" else ""
    return (
        f"Coding does not pay here: on a {medium} downlink{why}, scheme={best} takes {seconds[best]:.4g} s for a "
        f"round's communication, {seconds[best] / uncoded - 1:.1%} more than plain forwarding ({uncoded:.4g} s)."
    )


def _table(result: dict[str, Any]) -> Table:
    title = f"K={result['K']} users, H={result['H']} relays, r={result['r']:.4g}; V={result['V_bits']:,} bit"
    table = Table(
        title=title,
        title_justify="left",
        caption="saved: of a round's communication time; Theorem 2: a bound on all schemes",
        caption_justify="left",
    )
    table.add_column("scheme")
    for column in ("up [IVs]", "down [IVs]", "saved, broadcast", "saved, unicast"):
        table.add_column(column, justify="right")
    for scheme in SCHEMES:
        load = result["loads"][scheme]
        saved = (1 - result["seconds"][medium][scheme] / result["seconds"][medium]["uncoded"] for medium in MEDIA)
        table.add_row(
            scheme,
            f"{load[RELAYS_TO_SERVER]:.4f}",
            f"{load[SERVER_TO_RELAYS]:.4f}",
            *(f"{share:.1%}" if SCHEMES[scheme].code else "" for share in saved),
        )
    bound = result["bounds"]
    table.add_section()
    table.add_row("Theorem 2", f"{bound[RELAYS_TO_SERVER]:.4f}", f"{bound[SERVER_TO_RELAYS]:.4f}", "", "")
    return table


if __name__ == "__main__":
    main(plan, "plan")
