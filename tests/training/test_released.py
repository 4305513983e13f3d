"""ε of runs that are killed and resumed, and of runs with public drop-outs, by an accountant of its own.

It shares nothing with the package: it reads who counted from taps at the rounds, and composes privacy losses on a grid,
by convolution. Since it is nearly exact, what a run reports has to be at least as large, and not much larger.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from scipy.optimize import brentq
from scipy.signal import fftconvolve
from scipy.stats import norm

from hmtl.config.build import build
from hmtl.errors import CheckpointError, ConfigError, StateLost
from hmtl.interfaces.federation import Federation
from hmtl.train import train

Configure = Callable[..., DictConfig]
CLIP, NOISE, DELTA = 0.5, 3.0, 1e-5
WORDS = (
    *(
        "algorithm=fedavg",
        "communicator=sums",
        "topology=geometric",
        "topology.radius=0.4",
        "H=3",
        "K=20",
        "logger=none",
        "baseline=null",
    ),
    *("dataset.rows_per_user=10", "participation=fraction", "participation.fraction=0.5", "checkpoint_every=4"),
    *(f"privacy.clip={CLIP}", f"privacy.noise={NOISE}", "rounds=10", "evaluate_every=9"),
)
STEP = 2e-3


def exact(mu: float) -> float:
    """ε of a Gaussian mechanism whose noise is 1/μ of the sensitivity (Balle and Wang 2018, theorem 8)."""
    if not mu:
        return 0.0
    return float(brentq(lambda e: norm.cdf(mu / 2 - e / mu) - np.exp(e) * norm.cdf(-mu / 2 - e / mu) - DELTA, 0, 200))


@cache
def losses(q: float, sigma: float, removed: bool) -> tuple[np.ndarray, int]:
    """The privacy losses of a sample with probability q, on a grid: their probabilities, and the place of the first."""
    x, width = np.linspace(-12 * sigma - 2, 12 * sigma + 3, 20_001, retstep=True)
    other, own = norm.pdf(x, 0, sigma), norm.pdf(x, 1, sigma)
    mixed = (1 - q) * other + q * own
    p, r = (mixed, other) if removed else (other, mixed)
    at = np.floor(np.log(p / r) / STEP).astype(int)  # rounded down: ε is no more than it is
    return np.bincount(at - at.min(), p * width), int(at.min())


def composed(rounds: Sequence[tuple[float, float]]) -> float:
    """ε of rounds (q, σ as a multiple of the distance), in the worse direction."""
    worst = 0.0
    for removed in (True, False):
        sums, first = np.ones(1), 0
        for q, sigma in rounds:
            each, start = losses(q, sigma, removed)
            sums, first = np.maximum(fftconvolve(sums, each), 0), first + start
        loss = STEP * (first + np.arange(len(sums)))
        failing = lambda e, s=sums, loss=loss: float((s * -np.expm1(np.minimum(e - loss, 0))).sum()) - DELTA  # noqa: E731
        worst = max(worst, brentq(failing, 0, 100) if failing(0) > 0 else 0.0)
    return worst


def hidden(released: Sequence[Sequence[int]], shares: Sequence[float], n: int = 10) -> float:
    """ε for those who do not know the samples, but shares q of each round: 2C apart, noise of those who counted."""
    noise = [NOISE * (len(users) / n) ** 0.5 / 2 for users in released]
    return composed([(q, sigma) for q, sigma, users in zip(shares, noise, released, strict=True) if users])


def known(released: Sequence[Sequence[int]], K: int, n: int) -> float:
    """ε for those who know the samples: exactly, of the user who counted most."""
    precision = [sum(n / len(users) / NOISE**2 for users in released if k in users) for k in range(K)]
    return exact(max(precision) ** 0.5)


class Killed(BaseException):
    """The end of a process by SIGKILL, after which nothing else is written; threads rule out a process of its own."""


def tap(run: Any, file: Path, dies: int = -1, when: str = "after") -> None:
    """Write who counts in each round to a file, as soon as the sum is known; be killed in a round."""
    play, folder = run.communicator.round, run.trainer.settings.folder

    def die() -> None:
        shutil.copytree(folder, folder.with_name(f"{folder.name} killed"), dirs_exist_ok=True)
        raise Killed

    def round(number: int, *given: Any) -> Any:
        if (number, when) == (dies, "before"):
            die()
        outcome = play(number, *given)
        with file.open("a") as stream:
            stream.write(json.dumps(outcome.users.tolist()) + "\n")
        if (number, when) == (dies, "after"):
            die()
        return outcome

    run.communicator.round = round


def plays(cfg: DictConfig, file: Path, dies: int = -1, when: str = "after") -> bool:
    """Play a run, and return whether it was killed; its folder is then as it was at that moment."""
    run = build(cfg)
    tap(run, file, dies, when)
    try:
        run.trainer.fit(run.checkpoint)
    except Killed:
        folder = run.trainer.settings.folder
        shutil.rmtree(folder)
        folder.with_name(f"{folder.name} killed").rename(folder)
        return True
    run.trainer.write_results(run.trainer.summarize(dataset="rows", seed=0, baseline=None))
    return False


def released(file: Path) -> list[list[int]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def reported(folder: Path) -> dict[str, float]:
    summary = json.loads((folder / "summary.json").read_text())
    return {name: summary[name] for name in ("epsilon", "epsilon_sample_known")}


def check(folder: Path, sums: Sequence[Sequence[int]], most: float = 1.35) -> None:
    """What is reported is at least the ε of all sums that were released, and at most a little more."""
    own = {"epsilon": hidden(sums, [10 / 19] * len(sums)), "epsilon_sample_known": known(sums, 20, 10)}
    for name, epsilon in reported(folder).items():
        assert own[name] <= epsilon <= most * own[name], (name, own[name], epsilon)


def test_a_run_that_is_killed_counts_every_sum(configure: Configure, tmp_path: Path) -> None:
    """Killed twice: once between a sum and the next checkpoint, once before a sum; with users whom one relay hears."""
    file = tmp_path / "sums"
    cfg = configure(*WORDS)
    assert plays(cfg, file, dies=6)
    cfg.resume = str(tmp_path)
    assert plays(cfg, file, dies=6, when="before")
    assert not plays(cfg, file)
    sums = released(file)
    assert len(sums) == 7 + 2 + 6
    check(tmp_path, sums)
    alone = hidden(sums[:4] + sums[-6:], [10 / 19] * 10)
    assert reported(tmp_path)["epsilon"] > 1.1 * alone, "those of ten rounds alone"


@pytest.mark.slow
def test_a_run_that_goes_back_counts_what_it_plays_again(configure: Configure, tmp_path: Path) -> None:
    """An aggregator is lost after a sum, as over processes."""
    run, file, lost = build(configure(*WORDS)), tmp_path / "sums", iter([True])
    tap(run, file)
    play = run.communicator.round

    def round(number: int, *given: Any) -> Any:
        outcome = play(number, *given)
        if number == 7 and next(lost, False):
            raise StateLost("a relay is gone.")
        return outcome

    run.communicator.round = round
    run.trainer.fit()
    run.trainer.write_results(run.trainer.summarize(dataset="rows", seed=0, baseline=None))
    assert len(released(file)) == 10 + 4
    check(tmp_path, released(file))


def test_a_limit_counts_what_was_released_before(configure: Configure, tmp_path: Path) -> None:
    """ε lasts for ten rounds, four of which were played twice: the run ends before its tenth."""
    words = [word for word in WORDS if not word.startswith(("rounds", "privacy.noise"))]
    cfg, file = configure(*words, "rounds=10", "privacy.epsilon=6"), tmp_path / "sums"
    noise = build(cfg).trainer.accountant.privacy.noise
    assert plays(cfg, file, dies=7)
    cfg.resume = str(tmp_path)
    assert not plays(cfg, file)
    sums, limit = released(file), 6
    precision = [sum(10 / len(users) / noise**2 for users in sums if k in users) for k in range(20)]
    assert exact(max(precision) ** 0.5) <= reported(tmp_path)["epsilon_sample_known"] <= limit
    assert len(sums) > 8
    assert json.loads((tmp_path / "summary.json").read_text())["rounds"] < 10


@pytest.mark.slow
def test_a_run_that_has_no_model_and_no_epsilon_left_is_one_error(configure: Configure, tmp_path: Path) -> None:
    words = [word for word in WORDS if not word.startswith(("rounds", "privacy.noise"))]
    cfg = configure(*words, "rounds=2", "privacy.epsilon=6")
    assert plays(cfg, tmp_path / "sums", dies=1)
    cfg.resume = str(tmp_path)
    with pytest.raises(ConfigError, match=r"privacy\.epsilon is spent") as error:
        train(cfg)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_an_older_checkpoint_and_a_copy_have_the_larger_record(configure: Configure, tmp_path: Path) -> None:
    cfg, file = configure(*WORDS), tmp_path / "sums"
    assert plays(cfg, file, dies=5)
    old = (tmp_path / "checkpoint.pt").read_bytes()
    cfg.resume = str(tmp_path)
    assert not plays(cfg, file)
    shutil.copytree(tmp_path, copy := tmp_path / "copy")
    (copy / "checkpoint.pt").write_bytes(old)
    cfg.resume = cfg.output_dir = str(copy)
    assert not plays(cfg, file)
    assert len(released(file)) == 6 + 6 + 6
    check(copy, released(file))


def test_a_record_that_is_missing_damaged_or_elsewhere_is_refused(configure: Configure, tmp_path: Path) -> None:
    cfg = configure(*WORDS, "rounds=2")
    train(cfg)
    assert (tmp_path / "privacy.pt").stat().st_mode & 0o777 == 0o600
    cfg.rounds, cfg.resume = 4, str(tmp_path / "checkpoint.pt")
    cfg.output_dir = str(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"hydra\.run\.dir"):
        build(cfg)
    cfg.output_dir = str(tmp_path)
    (tmp_path / "privacy.pt").unlink()
    with pytest.raises(CheckpointError, match=r"privacy\.pt is missing\. .*Restore it") as error:
        train(cfg)
    assert "\n" not in str(error.value)


def test_public_absences_hide_nobody(configure: Configure, tmp_path: Path) -> None:
    """In each round, half of the users are absent by a schedule, and one relay by another."""
    absent = {t: [(3 * t + k) % 20 for k in range(10)] for t in range(10)}
    pairs = [[t, k] for t, users in absent.items() for k in users]
    away = [[t, t % 3] for t in range(10)]
    cfg = configure(*WORDS, f"participation.schedule={pairs}", f"participation.relays={away}")
    run, file = build(cfg), tmp_path / "sums"
    tap(run, file)
    run.trainer.fit()
    spent, sums = run.trainer.accountant.spent(), released(file)
    G = run.communicator.topology.G
    reachable = [
        len([k for k in range(20) if k not in absent[t] and np.delete(G, t % 3, axis=0)[:, k].any()]) for t in range(10)
    ]
    assert min(reachable) < 10, "also users whom no other relay hears"
    shares = [min(1.0, len(users) / max(1, present - 1)) for users, present in zip(sums, reachable, strict=True)]
    for q in (shares, [0.5] * 10):  # given who counts of those who can, or before that is known
        assert hidden(sums, q) <= spent["epsilon"]
    assert spent["epsilon"] <= 1.4 * hidden(sums, np.maximum(shares, 10 / 19).tolist())
    assert spent["epsilon"] > 1.2 * hidden(sums, [len(users) / 19 for users in sums]), "of those who counted, of all"
    assert known(sums, 20, 10) <= spent["epsilon_sample_known"]


@pytest.mark.slow
def test_a_federation_counts_what_a_call_that_failed_has_released(tmp_path: Path) -> None:
    """Calls with more rounds choose other noise; what was released with less noise counts with that noise."""
    data = [torch.utils.data.TensorDataset(torch.randn(8, 3), torch.arange(8) % 2) for _ in range(20)]
    seen: list[int] = []

    def fails(row: Any) -> None:
        seen.append(1)
        if len(seen) == 3:
            raise ZeroDivisionError

    federation = Federation(
        torch.nn.Linear(3, 2),
        data,
        communicator="sums",
        participation="fraction",
        privacy={"clip": 1.0, "epsilon": 8.0, "against": "outsiders"},
        logger=[fails],
        output_dir=tmp_path,
        topology="any_r",
        rounds=4,
    )
    with pytest.raises(ZeroDivisionError):
        federation.train()
    failed = federation._run.trainer.accountant
    assert failed.precision.any()
    federation.train(20)
    first = federation._run.trainer.accountant
    assert first.privacy.noise > failed.privacy.noise
    assert (first.hidden >= failed.hidden).all()
    assert (first.precision >= failed.precision).all()
    assert len(federation.history) < 20, "ε was planned for 20 rounds without the three that failed"
    assert federation.summary is not None
    assert federation.summary.epsilon == first.spent()["epsilon"] <= 8
    done = len(federation.history)
    federation.train(1)
    assert len(federation.history) == done, "nothing is left"
