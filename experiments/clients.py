"""Whole rounds of FedAvg with many clients, ragged ones, and large networks, beside loops that anyone would write.

    python experiments/clients.py sampled100 [--repeats 5] [--rounds 5] [--evaluate]

The figures are CPU seconds of `Federation(model, data).train(rounds)` on one thread, medians of interleaved repeats,
relative to those of a loop. The loop has one module for all users, gathers the rows of a user once, and takes plain
gradient steps without an optimizer, whereas the default steps of `Federation` are clipped. `vmap` is `torch.func.vmap`
in groups of some sizes. `--memory SIDE` plays two rounds of one side and prints the size of the data, and the most
memory of its process beyond that after the imports.

    python experiments/clients.py lora_LEARNER --evaluate
    python experiments/clients.py lora_large --memory default

These train LoRA of rank 4 and the last layer of a frozen BERT, by transformers and peft (`pip install hmtl[adapters]`),
on Datasets of dictionaries. The loop holds one module and swaps the tensors that are trained. With --evaluate, both
measure the users' test rows in each round, and nothing else; for Ditto, they measure its shared model, too. Dropout is
0. With `--memory`, 4 bytes per parameter are one copy of the network, the first included.

fluke and pfl-research only train, without averages and errors, if they are installed
(`pip install fluke-fl==0.8.1 pfl==0.6.0`).
"""

import argparse
import importlib.util
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.utils.data import TensorDataset, default_collate

STEP, C, WORDS = 0.03, 10, 100
LAM, COUPLING = 0.1, 1.0
"""Strengths of Ditto's term, and of FedU's coupling of each user with the two beside it in a ring."""
WAYS: dict[str, dict[str, Any]] = {
    "uncoded": {"communicator": "uncoded"},
    "default": {},
    "secure": {"communicator": "sums", "secure": True},
    "private": {"communicator": "sums", "secure": True, "privacy": {"clip": 1.0, "noise": 1.0, "delta": 1e-3}},
}
"""How rows travel, by default in sums if these suffice."""


@dataclass(frozen=True)
class Case:
    """K users with n rows of this shape, of whom a fraction trains in a round, with minibatches of `batch` rows.

    Rows are `words` if that is set. One user has `largest` rows. Without an optimizer, steps are gradient steps.
    With a `learner`, the network is an adapted one of transformers, rows are dictionaries, and users have `test` rows.
    """

    K: int
    n: int
    fraction: float
    network: Callable[[], nn.Module]
    batch: int = 20
    shape: tuple[int, ...] = (784,)
    words: bool = False
    largest: int = 0
    optimizer: Callable[..., torch.optim.Optimizer] | None = None
    learner: str = ""
    test: int = 0

    @cached_property
    def counts(self) -> list[int]:
        counts = [self.n] * self.K
        counts[self.K // 3] = self.largest or self.n
        return counts

    @property
    def is_plain(self) -> bool:
        """Whether the loops that know no optimizer and no ragged users can train it."""
        return not (self.optimizer or self.largest or self.words) and len(self.shape) == 1


def mlp(*hidden: int, d: int = 784) -> nn.Module:
    widths = [d, *hidden]
    layers = [part for i, o in zip(widths, hidden, strict=False) for part in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(widths[-1], C))


def cnn() -> nn.Module:
    first = nn.Conv2d(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2)
    return nn.Sequential(*first, nn.Conv2d(16, 32, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, C))


class Text(nn.Module):
    """An embedding of words, a layer that reads them, and a linear map of its mean output."""

    def __init__(self, reader: Callable[[], nn.Module], width: int = 32) -> None:
        super().__init__()
        self.embedding, self.reader, self.out = nn.Embedding(WORDS, width), reader(), nn.Linear(width, C)

    def forward(self, x: Tensor) -> Tensor:
        out = self.reader(self.embedding(x))
        return self.out((out[0] if isinstance(out, tuple) else out).mean(1))


gru = partial(nn.GRU, 32, 32, batch_first=True)
transformer = partial(nn.TransformerEncoderLayer, 32, 4, 64, batch_first=True)


def resnet18() -> nn.Module:
    """ResNet-18 for small images (He et al. 2016): a first convolution of 3 × 3, and no pooling after it."""

    def conv(i: int, o: int, stride: int = 1, size: int = 3) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(i, o, size, stride, size // 2, bias=False), nn.BatchNorm2d(o))

    class Block(nn.Module):
        def __init__(self, i: int, o: int, stride: int) -> None:
            super().__init__()
            self.body = nn.Sequential(conv(i, o, stride), nn.ReLU(), conv(o, o))
            self.short = nn.Identity() if i == o and stride == 1 else conv(i, o, stride, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.body(x) + self.short(x))

    widths = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1)]
    widths += [(128, 256, 2), (256, 256, 1), (256, 512, 2), (512, 512, 1)]
    blocks = [Block(*each) for each in widths]
    return nn.Sequential(conv(3, 64), nn.ReLU(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, C))


def lora(layers: int, width: int) -> nn.Module:
    """BERT with random numbers, frozen but for LoRA of rank 4 on queries and values, and the last layer."""
    from peft import LoraConfig, get_peft_model
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        num_labels=C,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    adapters = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"])
    return get_peft_model(BertForSequenceClassification(config), adapters)


adapted = partial(Case, 20, 20, 1.0, shape=(32,), words=True, test=10)
CASES = {
    "sampled100": Case(100, 600, 0.1, partial(mlp, 64)),
    "sampled1000": Case(1000, 60, 0.1, partial(mlp, 64)),
    "sampled10000": Case(10_000, 10, 0.01, partial(mlp, 64)),
    "all100": Case(100, 600, 1.0, partial(mlp, 64)),
    "all1000": Case(1000, 60, 1.0, partial(mlp, 64)),
    "ragged": Case(201, 50, 1.0, partial(mlp, 64), largest=20_000),
    "large": Case(20, 20, 1.0, partial(mlp, 12_580)),
    "deep": Case(20, 20, 1.0, partial(mlp, 2790, 2790)),
    "resnet": Case(20, 8, 1.0, resnet18, 8, (3, 32, 32)),
    "resnet100": Case(100, 8, 1.0, resnet18, 8, (3, 32, 32)),
    "cnn": Case(40, 60, 1.0, cnn, shape=(1, 28, 28)),
    "gru": Case(40, 60, 1.0, partial(Text, gru), shape=(20,), words=True),
    "transformer": Case(40, 60, 1.0, partial(Text, transformer), shape=(20,), words=True),
    "adamw": Case(100, 60, 1.0, partial(mlp, 32, d=100), shape=(100,), optimizer=partial(torch.optim.AdamW, lr=1e-3)),
    **{f"lora_{name}": adapted(partial(lora, 4, 256), learner=name) for name in ("fedavg", "fedper", "ditto", "fedu")},
    "lora_large": adapted(partial(lora, 12, 512), learner="fedavg"),
}


def rows_of(case: Case) -> tuple[list[Tensor], list[Tensor]]:
    """Return rows [n, *shape] and classes [n] of each user."""
    rng = torch.Generator().manual_seed(0)
    N = sum(case.counts)
    x = (
        torch.randint(WORDS, (N, *case.shape), generator=rng)
        if case.words
        else torch.randn(N, *case.shape, generator=rng)
    )
    y = torch.randint(C, (N,), generator=rng)
    return list(x.split(case.counts)), list(y.split(case.counts))


def ring(K: int) -> np.ndarray:
    """Return the weights [K, K] of a ring of users."""
    return np.roll(np.eye(K), 1, axis=0) + np.roll(np.eye(K), -1, axis=0)


def texts_of(case: Case) -> list[tuple[list[dict[str, Tensor]], ...]]:
    """Return the training and the test rows of each user, as dictionaries."""
    both = rows_of(replace(case, n=case.n + case.test))
    items = [
        [{"input_ids": x, "attention_mask": torch.ones_like(x), "labels": y} for x, y in zip(*user, strict=True)]
        for user in zip(*both, strict=True)
    ]
    return [(each[: case.n], each[case.n :]) for each in items]


class Loop:
    """One user after the other, in one module."""

    def __init__(self, case: Case, evaluates: bool) -> None:
        self.case, self.evaluates = case, evaluates
        self.x, self.y = rows_of(case)
        torch.manual_seed(0)
        self.module = case.network()
        self.mean = [w.detach().clone() for w in self.module.state_dict().values()]
        self.rng = torch.Generator().manual_seed(0)

    def load(self) -> None:
        with torch.no_grad():
            for w, mean in zip(self.module.state_dict().values(), self.mean, strict=True):
                w.copy_(mean)

    def __call__(self, rounds: int) -> None:
        for _ in range(rounds):
            self.round()

    def round(self) -> None:
        case, module = self.case, self.module
        sample = torch.randperm(case.K, generator=self.rng)[: max(1, round(case.fraction * case.K))].tolist()
        total = [torch.zeros_like(mean) for mean in self.mean]
        parameters = list(module.parameters())
        module.train()
        for k in sample:
            self.load()
            optimizer = case.optimizer(parameters) if case.optimizer else None
            order = torch.randperm(case.counts[k], generator=self.rng)
            for x, y in zip(self.x[k][order].split(case.batch), self.y[k][order].split(case.batch), strict=True):
                gradients = torch.autograd.grad(nn.functional.cross_entropy(module(x), y), parameters)
                if optimizer:
                    for w, gradient in zip(parameters, gradients, strict=True):
                        w.grad = gradient
                    optimizer.step()
                    continue
                with torch.no_grad():
                    for w, gradient in zip(parameters, gradients, strict=True):
                        w.sub_(gradient, alpha=STEP)
            for sums, w in zip(total, module.state_dict().values(), strict=True):
                sums += w
        self.mean = [sums / len(sample) if sums.is_floating_point() else sums // len(sample) for sums in total]
        if self.evaluates:
            self.load()
            module.eval()
            with torch.no_grad():
                errors = [float((module(x).argmax(1) != y).float().mean()) for x, y in zip(self.x, self.y, strict=True)]
            statistics.fmean(errors)


class VmapLoop(Loop):
    """Groups of users side by side."""

    def __init__(self, case: Case, evaluates: bool, group: int) -> None:
        super().__init__(case, evaluates)
        self.group, self.x, self.y = group, torch.stack(self.x), torch.stack(self.y)

    def round(self) -> None:
        case, module = self.case, self.module
        sample = torch.randperm(case.K, generator=self.rng)[: max(1, round(case.fraction * case.K))]

        def loss(w: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return nn.functional.cross_entropy(functional_call(module, w, (x,)), y)

        total = [torch.zeros_like(mean) for mean in self.mean]
        self.load()
        for users in sample.split(self.group):
            stacked, _ = stack_module_state([module] * len(users))
            w = {name: each.detach() for name, each in stacked.items()}
            order = torch.stack([torch.randperm(case.n, generator=self.rng) for _ in users])
            for at in order.split(case.batch, dim=1):
                found = vmap(grad(loss))(w, self.x[users[:, None], at], self.y[users[:, None], at])
                w = {name: each.sub_(found[name], alpha=STEP) for name, each in w.items()}
            for sums, each in zip(total, w.values(), strict=True):
                sums += each.sum(0)
        self.mean = [sums / len(sample) for sums in total]
        if self.evaluates:
            self.load()
            with torch.no_grad():
                [float((module(x).argmax(1) != y).float().mean()) for x, y in zip(self.x, self.y, strict=True)]


class AdapterLoop(Loop):
    """One user after the other in one adapted module, with the user's numbers in the tensors that are trained."""

    def __init__(self, case: Case, evaluates: bool) -> None:
        self.case, self.evaluates = case, evaluates
        self.rows = [[default_collate(rows) for rows in user] for user in texts_of(case)]
        torch.manual_seed(0)
        self.module = case.network()
        named = {name: w for name, w in self.module.named_parameters() if w.requires_grad}
        self.names, self.trained = list(named), list(named.values())
        self.rng, K = torch.Generator().manual_seed(0), case.K
        self.models = [[w.detach().clone() for w in self.trained] for _ in range(K)]
        self.personal = [[w.clone() for w in model] for model in self.models]  # Ditto's
        laplacian = 2 * np.eye(K) - ring(K)
        mixing = np.eye(K) - STEP * COUPLING * laplacian if case.learner == "fedu" else np.full((K, K), 1 / K)
        self.mixing = torch.from_numpy(mixing).float()

    def hold(self, model: list[Tensor]) -> None:
        with torch.no_grad():
            for w, numbers in zip(self.trained, model, strict=True):
                w.copy_(numbers)

    def train(self, k: int, model: list[Tensor], order: Tensor, anchor: list[Tensor] | None = None) -> list[Tensor]:
        self.hold(model)
        for at in order.split(self.case.batch):
            batch = {name: column[at] for name, column in self.rows[k][0].items()}
            gradients = torch.autograd.grad(self.module(**batch).loss, self.trained)
            with torch.no_grad():
                for i, (w, gradient) in enumerate(zip(self.trained, gradients, strict=True)):
                    if anchor:
                        gradient = gradient + LAM * (w - anchor[i])
                    w.sub_(gradient, alpha=STEP)
        return [w.detach().clone() for w in self.trained]

    def round(self) -> None:
        case, shared = self.case, self.models
        self.module.train()
        self.models = []
        for k in range(case.K):
            order = torch.randperm(case.n, generator=self.rng)
            self.models.append(self.train(k, shared[k], order))
            if case.learner == "ditto":
                self.personal[k] = self.train(k, self.personal[k], order, shared[k])
        for i, name in enumerate(self.names):
            if case.learner == "fedper" and "lora_B" in name:
                continue
            stacked = torch.stack([model[i] for model in self.models])
            mixed = (self.mixing @ stacked.flatten(1)).view_as(stacked)
            for model, numbers in zip(self.models, mixed, strict=True):
                model[i] = numbers
        if self.evaluates:
            self.module.eval()
            for models in [self.models, self.personal][: 1 + (case.learner == "ditto")]:
                errors = []
                for model, (_, test) in zip(models, self.rows, strict=True):
                    self.hold(model)
                    with torch.no_grad():
                        errors.append(float((self.module(**test).logits.argmax(1) != test["labels"]).float().mean()))
                statistics.fmean(errors)


class Fluke(Loop):
    """Local training of the sampled users alone, by fluke; without averages."""

    def __init__(self, case: Case, evaluates: bool) -> None:
        super().__init__(case, evaluates)
        client, config, data = (importlib.import_module(f"fluke.{name}") for name in ("client", "config", "data"))
        optimizer = config.OptimizerConfigurator({"name": "SGD", "lr": STEP})

        def make(k: int) -> Any:
            rows = data.FastDataLoader(self.x[k], self.y[k], num_labels=C, batch_size=case.batch, shuffle=True)
            made = client.Client(k, rows, rows, optimizer, nn.CrossEntropyLoss(), local_epochs=1)
            made.model = self.module
            return made

        self.clients = [make(k) for k in range(case.K)]

    def round(self) -> None:
        sample = torch.randperm(self.case.K, generator=self.rng)[: max(1, round(self.case.fraction * self.case.K))]
        for k in sample.tolist():
            self.clients[k].fit()


class PFL(Loop):
    """Local training of the sampled users alone, by pfl-research, which does not shuffle; without averages."""

    def __init__(self, case: Case, evaluates: bool) -> None:
        super().__init__(case, evaluates)
        from pfl.data.dataset import Dataset
        from pfl.hyperparam.base import NNTrainHyperParams
        from pfl.internal.bridge.pytorch.sgd import PyTorchSGDBridge
        from pfl.model.pytorch import PyTorchModel

        class Network(nn.Sequential):
            def loss(self, x: Tensor, y: Tensor) -> Tensor:
                return nn.functional.cross_entropy(self(x), y)

            def metrics(self, x: Tensor, y: Tensor) -> dict[str, object]:
                return {}

        network = Network(*self.module)
        self.model = PyTorchModel(network, torch.optim.SGD, torch.optim.SGD(network.parameters(), lr=1.0))
        self.users = [Dataset(raw_data=list(rows)) for rows in zip(self.x, self.y, strict=True)]
        self.settings = NNTrainHyperParams(local_num_epochs=1, local_learning_rate=STEP, local_batch_size=case.batch)
        self.start, self.train = self.model.get_parameters(), PyTorchSGDBridge.do_sgd

    def round(self) -> None:
        sample = torch.randperm(self.case.K, generator=self.rng)[: max(1, round(self.case.fraction * self.case.K))]
        for k in sample.tolist():
            self.model.set_parameters(self.start)
            self.train(self.model, self.users[k], self.settings)


class Ours:
    """`Federation`, in one of the WAYS."""

    def __init__(self, case: Case, evaluates: bool, way: str, folder: Path) -> None:
        from hmtl import Federation
        from hmtl.mtl import Ditto, FedAvg, FedPer, FedU, Graph, LocalSGD, Participation, TorchTrainer
        from hmtl.topology import symmetric

        data: Any = [TensorDataset(*rows) for rows in zip(*rows_of(case), strict=True)]
        settings: dict[str, Any] = dict(WAYS[way])
        if case.learner:
            data = texts_of(case)
            learners = {"fedavg": FedAvg(), "fedper": FedPer("*lora_B*"), "ditto": Ditto(LAM), "fedu": FedU()}
            settings |= {"algorithm": learners[case.learner], "evaluate": ["test"]}
        if case.learner == "fedu":
            np.savetxt(folder / "ring.csv", ring(case.K), delimiter=",")
            settings["regularizer"] = Graph(COUPLING, path=folder / "ring.csv")
        solver = LocalSGD(epochs=1, batch=case.batch)
        if case.optimizer:
            solver = TorchTrainer(case.optimizer, epochs=1, batch=case.batch)
        torch.manual_seed(0)
        self.federation = Federation(
            case.network(),
            data,
            solver=solver,
            topology=symmetric(K=case.K, H=5, r=3),
            participation=Participation(fraction=case.fraction),
            evaluate_every=1 if evaluates else 10**6,
            output_dir=folder / way,
            **settings,
        )

    def __call__(self, rounds: int) -> None:
        self.federation.train(rounds)


def cpu(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def sides(case: Case, evaluates: bool, folder: Path) -> dict[str, Callable[[], Callable[[int], None]]]:
    """What makes each side, by name."""
    groups = () if not case.is_plain or case.K * case.n < 1000 else (4, 10, 25)
    loop = AdapterLoop if case.learner else Loop
    made: dict[str, Callable[[], Callable[[int], None]]] = {"loop": partial(loop, case, evaluates)}
    made |= {f"vmap by {group}": partial(VmapLoop, case, evaluates, group) for group in groups}
    peers = {"fluke": Fluke, "pfl": PFL} if case.is_plain else {}
    made |= {name: partial(peer, case, False) for name, peer in peers.items() if importlib.util.find_spec(name)}
    ways = list(WAYS) if case.learner not in ("", "fedu") else ["uncoded", "default"]  # a graph needs all rows
    return made | {name: partial(Ours, case, evaluates, name, folder) for name in ways}


def main() -> None:
    """Print a table, or the memory of one side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--evaluate", action="store_true")
    parser.add_argument("--memory", metavar="SIDE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    case = CASES[arguments.case]
    with tempfile.TemporaryDirectory() as folder:
        makers = sides(case, arguments.evaluate, Path(folder))
        if arguments.memory:
            import hmtl.training.trainer  # noqa: F401, loads what is not to be counted

            if case.learner:  # a small network, for which transformers, peft and torch's compiler are imported, too
                small = replace(case, network=partial(lora, 1, 64))
                sides(small, arguments.evaluate, Path(folder) / "small")[arguments.memory]()(1)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            side = makers[arguments.memory]()
            side(1)
            side(1)
            used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
            data = sum(case.counts) * 4 * int(np.prod(case.shape))
            m = sum(w.numel() for w in case.network().parameters())
            times, each = used / data, (used - data) / m
            print(f"{used / 2**20:,.0f} MiB: {times:.2f} times the data, {each:.1f} bytes per parameter beyond them")
            return
        setups = {name: cpu(lambda name=name: makers.__setitem__(name, makers[name]())) for name in makers}
        for side in makers.values():
            side(2)  # compiles, and fills caches
        seconds = {name: list[float]() for name in makers}
        for _ in range(arguments.repeats):
            for name, side in makers.items():
                seconds[name].append(cpu(lambda side=side: side(arguments.rounds)) / arguments.rounds)
    loop = statistics.median(seconds["loop"])
    m = sum(w.numel() for w in case.network().parameters())
    print(
        f"K={case.K} x {case.n} rows, {case.fraction:.0%} train{', evaluated' * arguments.evaluate}; {m:,} parameters"
    )
    print(f"{'side':12}{'set-up s':>10}{'round ms':>10}{'relative':>10}{'from':>8}{'to':>8}")
    for name, each in seconds.items():
        ratios = sorted(own / loops for own, loops in zip(each, seconds["loop"], strict=True))
        middle = statistics.median(each)
        print(
            f"{name:12}{setups[name]:10.2f}{1000 * middle:10.1f}{middle / loop:10.2f}{ratios[0]:8.2f}{ratios[-1]:8.2f}"
        )


if __name__ == "__main__":
    main()
