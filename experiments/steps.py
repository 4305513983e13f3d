"""Which step size lets networks learn: `python experiments/steps.py --har PATH [--cases wine waves] [--show]`.

FedAvg, in one case FedU, trains by the public call with default settings, except for the step size. Users are the
rotations of digits, the subjects of Human Activity Recognition (--har, UCI's zip or folder), or shares of the rows of
scikit-learn's sets and of drawn ones. Test errors are means over users: the share misclassified, or the mean squared
error divided by the variance of the targets.

Each run appends lines to experiments/results/steps.csv: case, step (0: the default), seed, round, error. `--show`
prints its table.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.ndimage import rotate
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from hmtl import Federation
from hmtl.data import Dirichlet, har, mnist5k
from hmtl.errors import HmtlError
from hmtl.mtl import cnn, mlp

RESULTS = Path(__file__).parent / "results" / "steps.csv"
STEPS = (0.01, 0.03, 0.1, 0.3, 1.0, 0.0)
ROUNDS, EVERY = 50, 10
Rows = NDArray[np.float64]
User = tuple[TensorDataset, TensorDataset]


class Recurrent(nn.Module):
    """A GRU over the rows of an image or the steps of a series, and a linear layer on its last state."""

    def __init__(self, d: int, C: int, hidden: int = 32) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(d, hidden, batch_first=True), nn.Linear(hidden, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x)[0][:, -1])


class Transformer(nn.Module):
    """A transformer encoder of one layer over the rows of an image or the steps of a series."""

    def __init__(self, length: int, d: int, C: int, width: int = 32) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(d, width), nn.Parameter(0.02 * torch.randn(length, width))
        self.layer, self.head = nn.TransformerEncoderLayer(width, 4, 64, batch_first=True), nn.Linear(width, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x) + self.place).mean(1))


class LowRank(nn.Module):
    """A frozen layer and a trained product of two matrices beside it, B of which starts at zero (Hu et al. 2021)."""

    def __init__(self, layer: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.A = nn.Parameter(torch.randn(rank, layer.in_features) / layer.in_features**0.5)
        self.B = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x @ self.A.T @ self.B.T


def deep(d: int, C: int) -> nn.Module:
    """Return a network with three hidden layers and layer normalization."""
    layers = [nn.Linear(d, 64), nn.LayerNorm(64), nn.ReLU()]
    for _ in range(2):
        layers += [nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, C))


def users_of(x: Rows, y: NDArray[np.generic], users: list[NDArray[np.int64]], train: int, seed: int) -> list[User]:
    """Return the users' Datasets of `train` training rows, or half of their rows if they have fewer than twice that."""
    rng, X, made = np.random.default_rng(seed), torch.from_numpy(x).float(), []
    target = torch.from_numpy(y).float() if y.dtype.kind == "f" else torch.from_numpy(y).long()
    for own in users:
        order = rng.permutation(own)
        n = min(train, len(own) // 2)
        made.append(tuple(TensorDataset(X[part], target[part]) for part in (order[:n], order[n:])))
    return made


def dealt(y: NDArray[np.generic], K: int, seed: int) -> list[NDArray[np.int64]]:
    """Return the rows of K users; of labels, in proportions drawn from Dir(0.5, ..., 0.5)."""
    rng = np.random.default_rng(seed)
    if y.dtype.kind == "f":
        return np.array_split(rng.permutation(len(y)), K)
    return Dirichlet(0.5, min_rows=6)(y.astype(np.int64), K, rng)


@cache
def images() -> tuple[Rows, NDArray[np.int64]]:
    (task,) = mnist5k(K=1, partition=Dirichlet(1e6), intercept=False, standardize="none", test_fraction=0)
    return task.x_train.numpy().reshape(-1, 28, 28), task.y_train.numpy()


def rotated(train: int, seed: int) -> list[User]:
    """Return 20 users with 250 digits each, which are rotated by 0, 15, ..., 285 degrees."""
    x, y = images()
    users = np.array_split(np.random.default_rng(seed).permutation(len(x)), 20)
    turned = np.concatenate([rotate(x[own], 15 * k, (1, 2), reshape=False, order=1) for k, own in enumerate(users)])
    ends = np.cumsum([*map(len, users)])
    parts = np.split(np.arange(len(x)), ends[:-1])
    return users_of(turned.reshape(len(x), -1), y[np.concatenate(users)], parts, train, seed)


def standardized(load: Callable[..., tuple[Rows, NDArray[np.generic]]], seed: int, K: int, train: int) -> list[User]:
    x, y = load(return_X_y=True)
    x = (x - x.mean(0)) / np.maximum(x.std(0), 1e-9)
    return users_of(x, y, dealt(y, K, seed), train, seed)


def digits8(seed: int, train: int = 40) -> list[User]:
    x, y = load_digits(return_X_y=True)
    return users_of(x.reshape(-1, 8, 8) / 16, y, dealt(y, 20, seed), train, seed)


def waves(seed: int) -> list[User]:
    """Return 20 users with series of 30 noisy numbers, of one of four frequencies, whose amplitudes differ by user."""
    rng = np.random.default_rng(seed)
    y, user, t = rng.integers(4, size=2000), np.repeat(np.arange(20), 100), np.arange(30)
    phase, size = rng.uniform(0, 2 * math.pi, (2000, 1)), np.exp(0.3 * rng.normal(size=20))[user, None]
    x = size * np.sin(0.2 * (1 + y[:, None]) * t + phase) + 0.5 * rng.normal(size=(2000, 30))
    return users_of(x[..., None], y, np.split(np.arange(2000), 20), 40, seed)


def drawn(seed: int) -> list[User]:
    """Return 20 users with numbers from a curved function of ten features, whose weights differ by user."""
    rng = np.random.default_rng(seed)
    x, user = rng.normal(size=(2000, 10)), np.repeat(np.arange(20), 100)
    W = rng.normal(size=10) + 0.3 * rng.normal(size=(20, 10))
    y = np.sin((x * W[user]).sum(1)) + 0.5 * x[:, 0] + 0.2 * rng.normal(size=2000)
    return users_of(x, y, np.split(np.arange(2000), 20), 50, seed)


def towns(seed: int) -> list[User]:
    """Return four users with numbers near 1,000, and with features that are not standardized, one of them constant."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(160, 3))
    y = 1000 + 5 * (x @ [1.0, 2.0, 0.5] + 2 * np.arange(4).repeat(40) + 0.2 * rng.normal(size=160))
    return users_of(np.c_[x, np.full(160, 7.0)], y, np.split(np.arange(160), 4), 30, seed)


@cache
def subjects(path: str, train: int, seed: int) -> list[User]:
    """Return 30 users with 50 rows each, or so."""
    tasks = har(path=path, partition="subject", target="activity", download=False)
    x, y = (
        torch.cat([getattr(task, f"{name}_{part}") for task in tasks for part in ("train", "test")]) for name in "xy"
    )
    ends = np.cumsum([len(task.y_train) + len(task.y_test) for task in tasks])
    return users_of(x.numpy(), y.numpy(), np.split(np.arange(len(y)), ends[:-1]), train, seed)


def cases(path: str) -> dict[str, tuple[Callable[[int], list[User]], Callable[[], nn.Module]]]:
    """Return by name what makes the users of a seed, and the network."""

    def adapters() -> nn.Module:
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            body = nn.Linear(784, 128)
        return nn.Sequential(LowRank(body), nn.ReLU(), nn.Linear(128, 10))

    return {
        "rotated digits, mlp": (lambda seed: rotated(50, seed), lambda: mlp(784, 10)),
        "rotated digits, 20 rows, mlp": (lambda seed: rotated(20, seed), lambda: mlp(784, 10)),
        "rotated digits, 20 rows, low rank": (lambda seed: rotated(20, seed), adapters),
        "rotated digits, cnn": (lambda seed: rotated(50, seed), lambda: cnn(784, 10)),
        "rotated digits, deep": (lambda seed: rotated(50, seed), lambda: deep(784, 10)),
        "activities, linear": (lambda seed: subjects(path, 50, seed), lambda: nn.Linear(561, 6)),
        "activities, mlp": (lambda seed: subjects(path, 50, seed), lambda: mlp(561, 6)),
        "8 × 8 digits, gru": (digits8, lambda: Recurrent(8, 10)),
        "8 × 8 digits, transformer": (digits8, lambda: Transformer(8, 8, 10)),
        "waves, gru": (waves, lambda: Recurrent(1, 4)),
        "breast cancer, mlp": (lambda seed: standardized(load_breast_cancer, seed, 10, 25), lambda: mlp(30, 2)),
        "wine, mlp": (lambda seed: standardized(load_wine, seed, 5, 15), lambda: mlp(13, 3)),
        "diabetes in units, mlp": (lambda seed: units(standardized(load_diabetes, seed, 10, 25)), lambda: mlp(10, 1)),
        "diabetes, mlp": (lambda seed: standardized(load_diabetes, seed, 10, 25), lambda: mlp(10, 1)),
        "drawn numbers, mlp": (drawn, lambda: mlp(10, 1)),
        "drawn numbers, deep": (drawn, lambda: deep(10, 1)),
        "FedU, numbers near 1,000, linear": (towns, lambda: nn.Linear(4, 1)),
    }


def units(users: list[User]) -> list[User]:
    """Return users with targets in units of the standard deviation."""
    y = torch.cat([train.tensors[1] for train, _ in users])
    return [
        tuple(TensorDataset(part.tensors[0], (part.tensors[1] - y.mean()) / y.std()) for part in user) for user in users
    ]


def run(
    learner: str, users: list[User], network: Callable[[], nn.Module], step: float, seed: int
) -> Iterator[tuple[int, float]]:
    """Yield rounds and test errors, NaN after training diverged."""
    torch.manual_seed(seed)
    y = torch.cat([test.tensors[1] for _, test in users])
    unit = float(y.var()) if y.is_floating_point() else 1.0
    settings = {"solver.step": step or None, "evaluate_every": EVERY}
    federation = Federation(network(), users, algorithm=learner, solver="sgd", seed=seed, **settings)
    try:
        federation.train(rounds=ROUNDS)
    except HmtlError as error:
        print(error)
    errors = {
        int(row["round"]) + 1: row["test_error"] for row in federation.history if row.get("test_error") is not None
    }
    for round in (*range(1 + EVERY, ROUNDS, EVERY), ROUNDS):
        yield round, errors.get(round, math.nan) / unit


def show(file: Path) -> None:
    """Print the mean errors over seeds after 11 and 50 rounds, as a table of Markdown."""
    table = pd.read_csv(file).drop_duplicates(["case", "step", "seed", "round"], keep="last")
    for round in (1 + EVERY, ROUNDS):
        errors = table[table["round"] == round].pivot_table("error", "case", "step", sort=False, dropna=False)
        errors = errors.rename(columns={0.0: "default"})
        print(f"\nafter {round} rounds\n\n| | {' | '.join(map(str, errors))} |\n|---|{'---|' * errors.shape[1]}")
        for case, row in errors.iterrows():
            print(f"| {case} | {' | '.join(f'{each:.3f}' for each in row)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--har", help="UCI's zip or folder, or the folder that contains it")
    parser.add_argument("--cases", nargs="+", help="beginnings of names, all if not given")
    parser.add_argument("--steps", nargs="+", type=float, default=STEPS)
    parser.add_argument("--seeds", nargs=2, type=int, default=[0, 3], help="first and last + 1")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--show", action="store_true", help="print the table of the results")
    options = parser.parse_args()
    if options.show:
        return show(options.output)
    chosen = {
        name: case
        for name, case in cases(options.har).items()
        if name.startswith(tuple(options.cases or [""])) and (options.har or not name.startswith("activities"))
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    if not options.output.exists():
        options.output.write_text("case,step,seed,round,error\n")
    for seed in range(*options.seeds):
        for name, (make, network) in chosen.items():
            for step in options.steps:
                learner = "fedu" if name.startswith("FedU") else "fedavg"
                for round, error in run(learner, make(seed), network, step, seed):
                    with options.output.open("a") as file:
                        file.write(f'"{name}",{step:g},{seed},{round},{error:.5f}\n')


if __name__ == "__main__":
    main()
