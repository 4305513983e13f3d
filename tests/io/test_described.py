"""What objects print as: no public class shows an address in memory, and settings that were made are named."""

import importlib
import inspect
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import hmtl
from hmtl import coding, communication, mtl, topology
from hmtl.data import Task

K = 6
PACKAGES = ("hmtl", "hmtl.mtl", "hmtl.communication", "hmtl.topology", "hmtl.coding", "hmtl.data")


def own(*arguments):
    return F.cross_entropy(*arguments)


class Ring(mtl.Regularizer):
    def __init__(self, lam, width=1):
        super().__init__(lam)
        self.width = width

    def coupling(self, Omega):
        return Omega.identity(self.lam)


PRINTED = {
    "FedPer(personal='*lora_B*', coupled=True)": lambda: mtl.FedPer("*lora_B*", coupled=True),
    "FedRep(personal=[0, 'out'])": lambda: mtl.FedRep([0, "out"]),
    "FedAvg()": mtl.FedAvg,
    f"FedPer(personal='{'a' * 116}...)": lambda: mtl.FedPer("a" * 200),
    "FedAvg(weights=<function own>)": lambda: mtl.FedAvg(own),
    "FedYogi(eta=0.3)": lambda: mtl.FedYogi(eta=0.3),
    "Clustered(lam=0.1, clusters=2)": lambda: mtl.Clustered(0.1, 2),
    "Ring(lam=2, width=3)": lambda: Ring(2, 3),
    "OneVsRest(binary=SmoothHinge(width=2.0))": lambda: mtl.OneVsRest(mtl.SmoothHinge(2.0)),
    "TorchLoss(function=MSELoss())": lambda: mtl.TorchLoss(nn.MSELoss),
    "TorchLoss(function=functools.partial(<function own>, 1))": lambda: mtl.TorchLoss(partial(own, 1)),
    "SDCA(passes=3.0)": lambda: mtl.SDCA(3.0),
    "LocalSGD(step=0.1)": lambda: mtl.LocalSGD(0.1),
    "TorchTrainer(optimizer=<function own>, clip=1)": lambda: mtl.TorchTrainer(own, clip=1),
    "Participation(fraction=0.1, sampler=<function own>)": lambda: mtl.Participation(fraction=0.1, sampler=own),
    "Scheme(name='mine')": lambda: coding.Scheme("mine", code=own),
    "Walk(K=6, H=3)": lambda: topology.moving(K, 3, 0.9),
    "LinkLedger(rounds=0)": lambda: communication.LinkLedger(K, 3),
    "Task(name='a', classes=None, labels=None)": lambda: Task("a", torch.ones(2, 1), torch.ones(2), [[1.0]], [1.0]),
}


@pytest.mark.parametrize("text", PRINTED)
def test_settings_that_were_made_are_shown(text):
    assert repr(PRINTED[text]()) == text


def test_public_objects_show_no_address():
    silent = [
        f"{package}.{name}"
        for package in PACKAGES
        for name in importlib.import_module(package).__all__
        if inspect.isclass(each := getattr(importlib.import_module(package), name))
        if each.__repr__ is object.__repr__ and not getattr(each, "_is_protocol", False)
    ]
    assert silent == []


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"algorithm": mtl.FedPer("weight", coupled=True), "regularizer": Ring(0.1), "loss": own},
        {"solver": mtl.TorchTrainer(lambda w: torch.optim.SGD(w, lr=0.1)), "communicator": communication.Uncoded},
        {"participation": mtl.Participation(sampler=lambda draw, counts, n: draw.choice(K, n, replace=False))},
    ],
    ids=["usual", "coupled", "own solver", "own sampler"],
)
def test_parts_of_a_federation_show_no_address(settings):
    draw = torch.Generator().manual_seed(0)
    data = [TensorDataset(torch.randn(5, 4, generator=draw), torch.arange(5) % 3) for _ in range(K)]
    federation = hmtl.Federation(nn.Linear(4, 3), data, **settings)
    models = federation.train(1)
    algorithm, communicator = federation.algorithm, federation.communicator
    problem = algorithm.problem
    parts = (problem.loss, problem.regularizer, problem.everybody[0], algorithm.solver, algorithm.participation)
    rest = (communicator.recipe, communicator.network, communicator.topology, federation.ledger, models)
    for part in (federation, algorithm, communicator, problem, *parts, *rest):
        assert " at 0x" not in repr(part)
        assert "\n" not in repr(part) or part is federation
