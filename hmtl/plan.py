"""Compute what coding would save on a network, without training: `python -m hmtl.plan topology=heterogeneous d=0.2`."""

import json
from dataclasses import asdict
from pathlib import Path

from omegaconf import DictConfig

from hmtl.config.command_line import main
from hmtl.errors import ConfigError


def plan(cfg: DictConfig) -> None:
    """Print loads, bounds and times, and write `topology.png` to `cfg.output_dir`."""
    # Imported here so that --help does not wait for torch and matplotlib.
    from hmtl.communication.round_costs import compare
    from hmtl.config.build import build_topology, check, make_part
    from hmtl.io.files import replacing
    from hmtl.reporting.console import Console, progress
    from hmtl.reporting.network_picture import draw
    from hmtl.reporting.plan_report import format_table, plan_table, remarks, verdict
    from hmtl.topology import Moving

    if cfg.format not in ("text", "json"):
        raise ConfigError(f"format={cfg.format} is unknown: choose text or json.")
    check(cfg)
    contacts = build_topology(cfg)
    network = make_part(cfg, "network")
    topology = contacts.at(0)
    with progress(f"Planning for K={topology.K} users and H={topology.H} relays"):
        comparison = compare(topology, network, cfg.V_bits, cfg.wire)
    note = "The users move: all of this holds for the first contacts only." if isinstance(contacts, Moving) else ""
    picture = Path(cfg.output_dir) / "topology.png"
    with replacing(picture) as file:
        best = comparison.aggregators[network.medium]
        draw(contacts, best.relays, with_server=best.server).savefig(file, format="png", dpi=150)
    if cfg.format == "json":
        result = asdict(comparison) | {"verdict": verdict(comparison, network.medium)}
        if note:
            result["note"] = note
        print(json.dumps(result, indent=2))
        return
    console = Console()
    console.table(plan_table(comparison))
    if cfg.wire:
        console.table(format_table(comparison, cfg.wire))
    for line in remarks(comparison):
        console.print(line, markup=False)
    if note:
        console.print(note)
    console.print(f"Picture: {picture}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main(plan, "plan")
