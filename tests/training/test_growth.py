"""Long runs: what a round costs, in memory and for saving, is the same at any round."""

import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import hmtl.training.trainer
from hmtl.communication import TIERS, LinkLedger
from hmtl.config.build import build, compose


def resident() -> float:
    """Memory of this process [MB]."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="looks into /proc")
def test_five_thousand_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saves, memory, sizes = [], {}, {}
    save = hmtl.training.trainer.Trainer._save

    def timed(trainer: hmtl.training.trainer.Trainer) -> None:
        start = time.process_time()
        save(trainer)
        saves.append(time.process_time() - start)
        memory[len(trainer.history)] = resident()
        sizes[len(trainer.history)] = trainer.checkpoint.stat().st_size

    monkeypatch.setattr(hmtl.training.trainer.Trainer, "_save", timed)
    words = ("rounds=5000", "logger=none", "algorithm.omega_every=1", f"output_dir={tmp_path}")
    run = build(compose(*words))
    start = time.process_time()
    assert len(run.trainer.fit()) == 5000
    total = time.process_time() - start
    early, late = (float(np.median(part)) for part in (saves[10:60], saves[-50:]))
    print(f"saving {sum(saves) / total:.1%} of {total:.0f} s CPU, {early * 1e3:.2f} ms early, {late * 1e3:.2f} ms late")
    print(f"{sizes[100]:,} and {sizes[5000]:,} bytes; memory {memory[500]:.0f} and {memory[5000]:.0f} MB")
    assert sum(saves) < 0.05 * total
    assert sizes[5000] - sizes[100] < 100
    assert memory[5000] - memory[500] < 10


@pytest.mark.long
def test_the_ledger_of_many_users_and_rounds() -> None:
    tracemalloc.start()
    ledger = LinkLedger(K=10**5, H=10)
    for _ in range(1000):
        ledger.begin_round()
        for tier in TIERS:
            ledger.add(tier, np.arange(len(ledger.links[tier])), 64, 8)
    ledger.state_dict()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"{most / 1e6:.0f} MB at most")
    assert most < 200e6
    assert ledger.bits(TIERS[0]) == (64 * 10**8, 8 * 10**8)
