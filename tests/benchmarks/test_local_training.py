"""Local training of FedAvg beside loops and frameworks: CPU time on one thread, without exchange and evaluation.

Frameworks are measured if they are installed: `pip install fluke-fl==0.8.1 pfl==0.6.0`.
"""

import copy
import importlib
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
import torch
from gradients import SIZES, STEP, Convolutional, Loop, Ours, Size, epoch
from timing import medians
from torch import nn

SIZE = SIZES["small"]
CNNS = [Convolutional(K, 200, 100, 8) for K in (20, 100)]


def best_loop(
    batch: int, size: Size = SIZE, memory_format: torch.memory_format = torch.contiguous_format
) -> Callable[[], object]:
    loop = Loop(size, 1)
    loop.modules[0].to(memory_format=memory_format)

    def train() -> None:
        for k, (x, y) in enumerate(zip(*loop.rows[:2], strict=True)):
            epoch(loop.module(k), x, y, STEP, batch, loop.shuffle)

    return train


def best_loop_channels_last(batch: int, size: Size) -> Callable[[], object]:
    """The same with its module in `torch.channels_last`, which few loops use."""
    return best_loop(batch, size, torch.channels_last)


def usual_loop(batch: int) -> Callable[[], object]:
    """As tutorials write it."""
    loop = Loop(SIZE, SIZE.K)

    def train() -> None:
        for k, (x, y) in enumerate(zip(*loop.rows[:2], strict=True)):
            module = loop.module(k)
            optimizer = torch.optim.SGD(module.parameters(), lr=STEP)
            for at in torch.randperm(len(x), generator=loop.shuffle).split(batch):
                optimizer.zero_grad()
                nn.functional.cross_entropy(module(x[at]), y[at]).backward()
                optimizer.step()

    return train


def fluke(batch: int) -> Callable[[], object]:
    client, config, data = (importlib.import_module(f"fluke.{name}") for name in ("client", "config", "data"))
    loop, network = Loop(SIZE, 1), SIZE.network()
    clients = []
    for k, (x, y) in enumerate(zip(*loop.rows[:2], strict=True)):
        rows = data.FastDataLoader(x, y, num_labels=10, batch_size=batch, shuffle=True)
        optimizer = config.OptimizerConfigurator({"name": "SGD", "lr": STEP})
        clients.append(client.Client(k, rows, rows, optimizer, nn.CrossEntropyLoss(), local_epochs=1))
        clients[-1].model = copy.deepcopy(network)

    def train() -> None:
        for client in clients:
            client.fit()

    return train


def pfl(batch: int) -> Callable[[], object]:
    """It does not shuffle."""
    from pfl.data.dataset import Dataset
    from pfl.hyperparam.base import NNTrainHyperParams
    from pfl.internal.bridge.pytorch.sgd import PyTorchSGDBridge
    from pfl.model.pytorch import PyTorchModel

    class Network(nn.Sequential):
        def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return nn.functional.cross_entropy(self(x), y)

        def metrics(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, object]:
            return {}

    network = Network(*SIZE.network())
    model = PyTorchModel(network, torch.optim.SGD, torch.optim.SGD(network.parameters(), lr=1.0))
    users = [Dataset(raw_data=list(rows)) for rows in zip(*Loop(SIZE, 1).rows[:2], strict=True)]
    settings = NNTrainHyperParams(local_num_epochs=1, local_learning_rate=STEP, local_batch_size=batch)
    start = model.get_parameters()

    def train() -> None:
        for user in users:
            model.set_parameters(start)
            PyTorchSGDBridge.do_sgd(model, user, settings)

    return train


@pytest.mark.parametrize("peer", [best_loop, usual_loop, fluke, pfl])
@pytest.mark.parametrize("batch", [10, 20])
def test_local_training(
    peer: Callable[[int], Callable[[], object]], batch: int, tmp_path: Path, record: Callable[..., None]
) -> None:
    if peer in (fluke, pfl):
        pytest.importorskip(peer.__name__)
    users, numbers = Ours(SIZE, "FedAvg", "uncoded", tmp_path, batch).trainer.algorithm.users, count()
    ours, theirs = medians(lambda: users.local_update(next(numbers)), peer(batch), repeats=5, clock=time.process_time)
    record(f"local training of FedAvg, {SIZE}, batches of {batch}", ours, "s", peer.__name__, theirs / ours)


@pytest.mark.parametrize("peer", [best_loop, best_loop_channels_last])
@pytest.mark.parametrize("size", CNNS, ids=str)
def test_convolutions(
    peer: Callable[[int, Size], Callable[[], object]], size: Size, tmp_path: Path, record: Callable[..., None]
) -> None:
    users, numbers = Ours(size, "FedAvg", "uncoded", tmp_path, 20).trainer.algorithm.users, count()
    ours, theirs = medians(
        lambda: users.local_update(next(numbers)), peer(20, size), repeats=5, clock=time.process_time
    )
    record(f"local training of FedAvg, {size}, batches of 20", ours, "s", peer.__name__, theirs / ours)
