"""Compute what coding would save on a network, without training: `python -m hmtl.plan topology=heterogeneous d=0.2`."""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from hmtl.config.command_line import main
from hmtl.errors import ConfigError

log = logging.getLogger(__name__)


def plan(cfg: DictConfig) -> None:
    """Print loads, bytes and times, and write pictures and CSV files to `cfg.output_dir`."""
    # Imported here so that --help does not wait for torch and matplotlib.
    from hmtl.coding import resolve
    from hmtl.communication.prices.comparison import comparison
    from hmtl.communication.secure.neighbors import Secure
    from hmtl.config.build import build_topology, check, make_part
    from hmtl.io.files import write_whole
    from hmtl.reporting import plan_report as report
    from hmtl.reporting.console import Console, progress
    from hmtl.reporting.network_picture import draw
    from hmtl.topology import Moving

    if cfg.format not in ("text", "json"):
        raise ConfigError(f"format={cfg.format} is unknown: choose text or json.")
    check(cfg)
    contacts = build_topology(cfg)
    network = make_part(cfg, "network")
    topology = contacts.at(0)
    with progress(f"Planning for K={topology.K} users and H={topology.H} relays"):
        secure = Secure(cfg.colluding) if cfg.secure else None
        result: Any = comparison(topology, network, cfg.V_bits, cfg.wire, secure, cfg.fail)
    if network.links:
        best = resolve(topology, result.choices[0][0])
        tables, facts = [report.time_table(result), report.links_table(result)], {}
        lines = list(report.time_remarks(result))
    else:
        best = result.aggregators[network.medium].nodes
        tables = [report.plan_table(result), report.choices_table(result), *report.round_tables(result)]
        lines = list(report.remarks(result))
        facts = {"verdict": report.verdict(result)}
    if result.secure:
        tables.append(report.secure_table(result.secure["bits"], topology.K))
        lines += ["", report.secure_remark(result.secure, topology.K)]
    files = report.plan_files(result)
    tables += [report.failures_table(files["failures"])] if result.failures else []
    if isinstance(contacts, Moving):
        lines.append("The users move: all of this holds for the first contacts only.")
        facts["note"] = lines[-1]
    pictures = {"topology": draw(contacts, best.relays, with_server=best.server)}
    pictures |= {"failures": report.failures_picture(files["failures"])} if result.failures else {}
    folder = Path(cfg.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, picture in pictures.items():
            picture.write(folder / name, "png")
        for name, table in files.items():
            write_whole(folder / f"{name}.csv", table.to_csv(index=False))
    except OSError as error:
        log.warning("%s: files were not saved: %s. Set output_dir to a folder to write to.", folder, error.strerror)
        pictures = files = {}
    content = json.dumps(asdict(result) | facts, indent=2)
    in_sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    if in_sweep:  # which has a table of all plans
        write_whole(folder / report.PLAN, content)
    if cfg.format == "json":
        print(content)
    if in_sweep or cfg.format == "json":
        return
    console = Console()
    for table in tables:
        console.table(table)
    for line in lines:
        console.print(line, markup=False)
    for kind, names, ending in (("Picture", pictures, "png"), ("Table", files, "csv")):
        for name in names:
            console.print(f"{kind}: {folder / name}.{ending}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main(plan, "plan")
