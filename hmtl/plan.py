"""Compute what coding would save on a network, without training: `python -m hmtl.plan topology=heterogeneous d=0.2`."""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from hmtl.config.command_line import main
from hmtl.errors import ConfigError

log = logging.getLogger(__name__)


def plan(cfg: DictConfig) -> None:
    """Print loads, bounds and times, and write `topology.png` to `cfg.output_dir` if it can be written to."""
    # Imported here so that --help does not wait for torch and matplotlib.
    from hmtl.coding import resolve
    from hmtl.communication.prices.comparison import comparison
    from hmtl.communication.secure.neighbors import Secure
    from hmtl.config.build import build_topology, check, make_part
    from hmtl.reporting.console import Console, progress
    from hmtl.reporting.network_picture import draw
    from hmtl.reporting.plan_report import (
        choices_table,
        format_table,
        plan_table,
        remarks,
        secure_remark,
        secure_table,
        time_table,
        verdict,
    )
    from hmtl.topology import Moving

    if cfg.format not in ("text", "json"):
        raise ConfigError(f"format={cfg.format} is unknown: choose text or json.")
    check(cfg)
    contacts = build_topology(cfg)
    network = make_part(cfg, "network")
    topology = contacts.at(0)
    with progress(f"Planning for K={topology.K} users and H={topology.H} relays"):
        secure = Secure(cfg.colluding) if cfg.secure else None
        result: Any = comparison(topology, network, cfg.V_bits, cfg.wire, secure)
    if network.links:
        best = resolve(topology, result.choices[0][0])
        tables, facts = [time_table(result)], {}
        lines = [f"Plain forwarding takes at least {result.uncoded_bound:.4g} s, whichever relays serve the users."]
    else:
        best = result.aggregators[network.medium].nodes
        tables, lines = [plan_table(result), choices_table(result)], list(remarks(result))
        tables += [format_table(result, cfg.wire)] if cfg.wire else []
        facts = {"verdict": verdict(result)}
    if result.secure:
        tables.append(secure_table(result.secure["bits"], topology.K))
        lines += ["", secure_remark(result.secure, topology.K)]
    if isinstance(contacts, Moving):
        lines.append("The users move: all of this holds for the first contacts only.")
        facts["note"] = lines[-1]
    picture = Path(cfg.output_dir) / "topology.png"
    try:
        picture.parent.mkdir(parents=True, exist_ok=True)
        draw(contacts, best.relays, with_server=best.server).write(picture.with_suffix(""), "png")
    except OSError as error:
        log.warning("%s was not saved: %s. Set output_dir to a folder that you can write to.", picture, error.strerror)
    if cfg.format == "json":
        print(json.dumps(asdict(result) | facts, indent=2))
        return
    console = Console()
    for table in tables:
        console.table(table)
    for line in lines:
        console.print(line, markup=False)
    if picture.exists():
        console.print(f"Picture: {picture}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main(plan, "plan")
