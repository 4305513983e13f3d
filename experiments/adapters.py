"""Learn adapters of related users: `python experiments/adapters.py --mnist FOLDER --har PATH`.

A small network is trained on other rows, and frozen. Each user then learns LoRA of rank 4 on both hidden layers, and
the last layer, from few rows:

- `rotated digits`: 24 users see MNIST (without --mnist, the 5,000 digits that come with hmtl) turned by −60° to 60°,
  14 × 14 pixels, 20 rows each; the network has seen upright digits.
- `unseen people`, with --har: 22 people of Human Activity Recognition, 15 rows each; the network has seen 8 others.
- `four orientations`: 16 users see scikit-learn's digits upright, upside down, mirrored or transposed, 15 rows each.

Users have as many validation rows, which alone choose step, λ and the round, seed by seed. Seeds draw the rows and the
first numbers. Writes experiments/results/adapters.csv, the test error by learner, and adapters_bits.csv, the bits
between relays and server until the mean test error is first within half a point of the larger one of adapters and
whole networks, both coupled by `common`.
"""

import argparse
import copy
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchvision.datasets import MNIST
from torchvision.transforms.functional import rotate

from hmtl import Federation
from hmtl.data import Dirichlet, Task, har, mnist5k
from hmtl.errors import RangeError
from hmtl.mtl import (
    Common,
    CrossEntropy,
    Ditto,
    FedAvg,
    FedPer,
    FedU,
    Learner,
    LocalNetworks,
    LocalSGD,
    NetworkAlgorithm,
    Problem,
    Regularizer,
    Ridge,
    TaskRelationship,
)

RESULTS = Path(__file__).parent / "results"
STEPS = (0.02, 0.06, 0.2)
COMMON = "FedU around a common change"
WHOLE = "whole networks around a common change"
WIRES = (None, "int4")
MARGIN = 0.005


class Choice(NamedTuple):
    """A learner, and the strength λ of its coupling, if it has one."""

    learner: Learner
    regularizer: Regularizer = Ridge(1.0)
    lam: float | None = None


LEARNERS = {
    "local": [Choice(LocalNetworks())],
    "FedAvg": [Choice(FedAvg())],
    "FedSA": [Choice(FedPer(["*lora_B*", "out"]))],
    "Ditto": [Choice(Ditto(lam), lam=lam) for lam in (0.3, 1.0, 3.0)],
    "FedU, learned Ω": [Choice(FedU(), TaskRelationship(lam), lam) for lam in (0.01, 0.03, 0.1)],
    COMMON: [Choice(FedU(), Common(lam), lam) for lam in (0.03, 0.1, 0.3)],
}


class Rows(NamedTuple):
    """Rows x [n, d] and their classes y [n]."""

    x: Tensor
    y: Tensor

    def part(self, at: object) -> "Rows":
        return Rows(self.x[at], self.y[at])


class Set(NamedTuple):
    """The rows on which the network is trained first, and those of each user; users train on the first `few`."""

    first: Rows
    users: list[Rows]
    few: int


class LoRA(nn.Module):
    """A frozen linear map, and a change of rank r beside it."""

    def __init__(self, base: nn.Linear, r: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.Linear(base.in_features, r, bias=False)
        self.lora_B = nn.Linear(r, base.out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.lora_B(self.lora_A(x))


class Network(nn.Module):
    """Two hidden layers of 128 and 64 numbers, and a last one."""

    def __init__(self, d: int, C: int) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(d, 128), nn.Linear(128, 64), nn.Linear(64, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.two(torch.relu(self.one(x)))))

    def adapted(self) -> "Network":
        network = copy.deepcopy(self)
        network.one, network.two = LoRA(network.one), LoRA(network.two)
        return network


def joined(tasks: Sequence[Task]) -> Rows:
    """Return all training and test rows of some tasks."""
    x, y = ([getattr(task, f"{name}_{split}") for task in tasks for split in ("train", "test")] for name in "xy")
    return Rows(torch.cat(x).float(), torch.cat(y).long())


def smaller(images: Tensor) -> Tensor:
    """Return the means of 2 × 2 pixels of images [n, 1, 28, 28], [n, 196]."""
    return nn.functional.avg_pool2d(images, 2).flatten(1)


def digits(mnist: Path | None, rng: np.random.Generator) -> Set:
    if mnist:
        data = MNIST(mnist)
        every = Rows(data.data.flatten(1) / 255, data.targets)
    else:
        every = joined(mnist5k(K=1, partition=Dirichlet(1.0)))
    rows = every.part(torch.from_numpy(rng.permutation(len(every.y))))
    n = min(140, (len(rows.y) - 1500) // 24)
    users = []
    for k, angle in enumerate(np.linspace(-60, 60, 24)):
        x, y = rows.part(slice(k * n, (k + 1) * n))
        users.append(Rows(smaller(rotate(x.view(-1, 1, 28, 28), float(angle))), y))
    first = rows.part(slice(24 * n, 24 * n + 4000))
    return Set(Rows(smaller(first.x.view(-1, 1, 28, 28)), first.y), users, 20)


def people(path: Path, rng: np.random.Generator) -> Set:
    tasks = har(path=path, partition="subject", target="activity")
    drawn = [tasks[k] for k in rng.permutation(len(tasks))]
    users = [joined([task]) for task in drawn[8:]]
    users = [rows.part(torch.from_numpy(rng.permutation(len(rows.y)))) for rows in users]
    return Set(joined(drawn[:8]), users, 15)


def orientations(rng: np.random.Generator) -> Set:
    x, y = (torch.from_numpy(each) for each in load_digits(return_X_y=True))
    rows = Rows(x.float().view(-1, 8, 8) / 16, y).part(torch.from_numpy(rng.permutation(len(y))))
    turns: list[Callable[[Tensor], Tensor]] = [
        lambda x: x,
        lambda x: x.flip(1, 2),
        lambda x: x.flip(2),
        lambda x: x.mT,
    ]
    users = []
    for k, at in enumerate(torch.arange(400, 400 + 16 * 87).split(87)):
        own = rows.part(at)
        users.append(Rows(turns[k % 4](own.x).flatten(1), own.y))
    first = rows.part(slice(400))
    return Set(Rows(first.x.flatten(1), first.y), users, 15)


def pretrained(rows: Rows, C: int) -> Network:
    """Return a network that is trained on these rows."""
    network = Network(rows.x.shape[1], C)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for _ in range(15):
        for at in torch.randperm(len(rows.y)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(rows.x[at]), rows.y[at]).backward()
            optimizer.step()
    return network


def tasks_of(data: Set, C: int) -> list[Task]:
    """Return the users' tasks: `few` rows to train, as many for validation, and all others for testing."""
    tasks, n = [], data.few
    for k, rows in enumerate(data.users):
        train, validation, test = (rows.part(at) for at in (slice(n), slice(n, 2 * n), slice(2 * n, None)))
        tasks.append(Task(str(k), *train, *test, C, x_validation=validation.x, y_validation=validation.y))
    return tasks


class Run(NamedTuple):
    """Validation and test errors after each round of a learner, from before the first on, and its choices."""

    validation: list[float]
    test: list[float]
    choice: Choice
    step: float

    @property
    def best(self) -> int:
        """The round with the least validation error."""
        return int(np.argmin(self.validation))


def run(problem: Problem, network: nn.Module, choice: Choice, step: float, rounds: int) -> Run:
    algorithm = NetworkAlgorithm(
        choice.learner,
        problem.regularized(choice.regularizer),
        LocalSGD(step, epochs=5),
        lambda d, C: copy.deepcopy(network),
    )
    validation, test = [], []
    for round in range(rounds + 1):
        try:
            figures = algorithm.metrics()
            validation.append(figures["validation_error"])
            test.append(figures["test_error"])
            algorithm.step(round)
        except RangeError:  # the step is too large
            break
    return Run(validation, test, choice, step)


def chosen(problem: Problem, network: nn.Module, choices: list[Choice], rounds: int) -> Run:
    """Return the run whose λ and step have the least validation error."""
    grid = itertools.product(choices, STEPS)
    return min((run(problem, network, *each, rounds) for each in grid), key=lambda run: min(run.validation))


def played(tasks: list[Task], network: nn.Module, best: Run, rounds: int, **options: str | None) -> Federation:
    """Return a federation that has trained over the default network, measured after each round."""
    splits = ("train", "test")
    data = [
        tuple(TensorDataset(getattr(task, f"x_{split}"), getattr(task, f"y_{split}")) for split in splits)
        for task in tasks
    ]
    solver = LocalSGD(best.step, epochs=5)
    parts = {"algorithm": best.choice.learner, "regularizer": best.choice.regularizer, "solver": solver}
    federation = Federation(network, data, evaluate_every=1, **parts, **options)
    federation.train(rounds)
    return federation


def mbit_of_a_round(federation: Federation) -> float:
    row = federation.history[-1]
    return (row["bits/relays_to_server"] + row["bits/server_to_relays"]) / 1e6


def errors(data: str, make: Callable[[np.random.Generator], Set], seed: int, rounds: int) -> tuple[list, list]:
    """Return a line for each learner, and one for each way to send adapters or whole networks, of one seed."""
    torch.manual_seed(seed)
    drawn = make(np.random.default_rng(seed))
    C = int(drawn.first.y.max()) + 1
    whole = pretrained(drawn.first, C)
    adapted, tasks = whole.adapted(), tasks_of(drawn, C)
    problem = Problem(tasks, CrossEntropy(), Ridge(1.0))
    lines, curves = [], []
    runs = {name: chosen(problem, adapted, learners, rounds) for name, learners in LEARNERS.items()}
    runs[WHOLE] = chosen(problem, whole, LEARNERS[COMMON], rounds)
    for name, best in runs.items():
        line = {"data": data, "seed": seed, "learner": name, "test_error": best.test[best.best]}
        lines.append(line | {"step": best.step, "lam": best.choice.lam, "round": best.best})
        print(*lines[-1].values(), flush=True)
    lines.append({"data": data, "seed": seed, "learner": "untouched", "test_error": runs["local"].test[0]})
    for what, network, name in (("adapters", adapted, COMMON), ("whole network", whole, WHOLE)):
        best = runs[name]
        for wire in WIRES:
            federation = played(tasks, network, best, rounds, communicator="coded", wire=wire)
            coded, plain = federation, played(tasks, network, best, 2, communicator="uncoded", wire=wire)
            curves += [
                {
                    "data": data,
                    "seed": seed,
                    "sent": what,
                    "numbers": federation.algorithm.users.row_layout.numbers,
                    "wire": wire or "null",
                    "round": round + 1,
                    "test_error": row["test_error"],
                    "at_best": best.test[best.best],
                    "coded": mbit_of_a_round(coded),
                    "uncoded": mbit_of_a_round(plain),
                }
                for round, row in enumerate(federation.history)
            ]
    return lines, curves


def bits(curves: pd.DataFrame) -> pd.DataFrame:
    """Return the rounds and Mbit until mean test errors are first near the larger one of both in the end."""
    rows = []
    for data, of_set in curves.groupby("data", sort=False):
        bar = of_set.groupby("sent").at_best.mean().max() + MARGIN
        for (what, wire), of_way in of_set.groupby(["sent", "wire"], sort=False):
            mean = of_way.groupby("round").mean(numeric_only=True)
            reached = mean.index[mean.test_error <= bar]
            rounds = int(reached[0]) if len(reached) else None
            row = {"data": data, "sent": what, "wire": wire, "numbers": int(mean.numbers.iloc[0]), "bar": bar}
            mbit = {how: rounds and rounds * mean[how].iloc[-1] for how in ("uncoded", "coded")}
            rows.append(row | {"rounds": rounds} | mbit)
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, help="folder with MNIST/raw, torchvision's layout")
    parser.add_argument("--har", type=Path, help="UCI's zip or folder, or the folder that contains it")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()

    sets: dict[str, Callable[[np.random.Generator], Set]] = {"rotated digits": partial(digits, args.mnist)}
    if args.har:
        sets["unseen people"] = partial(people, args.har)
    sets["four orientations"] = orientations
    jobs = [delayed(errors)(*each, seed, args.rounds) for each in sets.items() for seed in range(args.seeds)]
    lines, curves = (list(itertools.chain(*each)) for each in zip(*Parallel(args.jobs)(jobs), strict=True))
    args.out.mkdir(parents=True, exist_ok=True)
    table, sent = pd.DataFrame(lines), bits(pd.DataFrame(curves))
    table.to_csv(args.out / "adapters.csv", index=False, float_format="%.5g")
    sent.to_csv(args.out / "adapters_bits.csv", index=False, float_format="%.5g")
    means = 100 * table.groupby(["data", "learner"], sort=False).test_error.agg(["mean", "sem"])
    print("Test error in %, and its standard error", means.round(1).to_string(), sent.to_string(), sep="\n")


if __name__ == "__main__":
    main()
