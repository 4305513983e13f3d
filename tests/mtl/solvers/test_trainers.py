"""Solvers that train modules one by one: the steps of LocalSGD and of plain torch loops, what is kept, what travels."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learners import LEARNERS
from networks import LAYERED, OTHER, images
from problems import random_tasks
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau
from torch.utils.data import DataLoader

from hmtl.config.build import build
from hmtl.errors import ConfigError
from hmtl.inference.models import models_of
from hmtl.mtl import (
    CrossEntropy,
    Ditto,
    FedAvg,
    FedPer,
    FedProx,
    FedRep,
    FedU,
    LocalSGD,
    LocalTrainer,
    Logistic,
    Mean,
    NetworkAlgorithm,
    Participation,
    PFedMe,
    Problem,
    Ridge,
    Scaffold,
    Squared,
    TorchTrainer,
)

D, C = 16, 3
COUNTS = (13, 20, 7, 9)
NETWORKS = {**LAYERED, **OTHER, "images": images}
LOSSES = {"cross_entropy": CrossEntropy, "logistic": Logistic, "squared": Squared}


def problem(loss=CrossEntropy, **options):
    return Problem(random_tasks(loss(), **options), loss(), Mean(0.1))


def sgd(lr=0.05, **options):
    return TorchTrainer(partial(torch.optim.SGD, lr=lr), **options)


def after(algorithm, rounds=2):
    for round in range(rounds):
        algorithm.step(round)
    return algorithm.W


@given(
    learner=st.sampled_from(sorted(LEARNERS.keys() - {"fedadam", "fedyogi"})),  # √v magnifies rounding errors
    network=st.sampled_from(sorted(NETWORKS)),
    loss=st.sampled_from(sorted(LOSSES)),
    epochs=st.integers(1, 2),
    batch=st.integers(4, 25),
    reduction=st.sampled_from(["mean", "sum"]),
    low=st.sampled_from([0.3, 1.0]),
    seed=st.integers(0, 1000),
)
@settings(deadline=None)
def test_sgd_takes_the_steps_of_local_sgd(learner, network, loss, epochs, batch, reduction, low, seed):
    if learner in ("fedper", "fedrep", "lg_fedavg"):
        network = "mlp"
    lr = 0.05 if reduction == "mean" else 0.004
    data = Problem(random_tasks(LOSSES[loss](), seed=seed), LOSSES[loss](), Mean(0.1), reduction)
    options = {"seed": seed, "participation": Participation(low=low)}
    models = [
        after(NetworkAlgorithm(LEARNERS[learner], data, solver, NETWORKS[network], **options))
        for solver in (LocalSGD(lr, epochs, batch), sgd(lr, epochs=epochs, batch=batch))
    ]
    torch.testing.assert_close(*models, rtol=1e-5, atol=1e-6)


def test_weights_of_classes_count():
    data = problem(class_weight="balanced")
    models = [after(NetworkAlgorithm(FedAvg(), data, solver, nn.Linear)) for solver in (LocalSGD(0.05), sgd())]
    torch.testing.assert_close(*models, rtol=1e-5, atol=1e-6)


def minibatches(seed, round, n, epochs, batch):
    """The order in which user 0 visits its rows."""
    order = LocalSGD(0.1, epochs, batch).draw(seed, round, [0], [n])
    return [at[at >= 0] for at in order]


def test_adamw_with_schedule_clipping_and_label_smoothing_is_a_plain_loop():
    """One user alone: AdamW, a cosine over three rounds, clipping, own loss, and a shift of each minibatch."""
    (task,), make = random_tasks(CrossEntropy(), (23,), dtype=torch.float64), lambda d, C: LAYERED["mlp"](d, C).double()
    smooth = nn.CrossEntropyLoss(label_smoothing=0.1)
    trainer = TorchTrainer(
        partial(torch.optim.AdamW, lr=0.02),
        partial(CosineAnnealingLR, T_max=4),
        smooth,
        lambda x: x + 0.5,
        clip=0.3,
        epochs=2,
        batch=5,
    )
    learner = NetworkAlgorithm(FedAvg(), Problem([task], CrossEntropy(), Ridge(0.1)), trainer, make, seed=3)
    module, lr = copy.deepcopy(learner.model.module).train(), [0.02 * (1 + np.cos(np.pi * t / 4)) / 2 for t in range(3)]
    after(learner, 3)
    for round in range(3):
        optimizer = torch.optim.AdamW(module.parameters(), lr=lr[round])
        for at in minibatches(3, round, 23, 2, 5):
            optimizer.zero_grad()
            smooth(module(task.x_train[at] + 0.5), task.y_train[at]).backward()
            nn.utils.clip_grad_norm_(module.parameters(), 0.3)
            optimizer.step()
    expected = nn.utils.parameters_to_vector(module.parameters()).detach()
    torch.testing.assert_close(learner.W[:, 0], expected, rtol=1e-9, atol=1e-9)


class Averages(LocalTrainer):
    """Own training code: SGD on a DataLoader, and whether it was given what is documented."""

    def train(self, model, data, round, generator):
        optimizer = torch.optim.SGD([w for w in model.parameters() if w.requires_grad], lr=0.05)
        for x, y in DataLoader(data, batch_size=5, shuffle=True, generator=generator):
            assert y.dtype == torch.int64
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return model


def normed(d, C):
    """A network with statistics that travel, a constant and an integer that do not, and frozen numbers."""
    network = nn.Sequential(nn.Linear(d, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, C))
    network[0].weight.requires_grad_(False)
    network.register_buffer("constant", torch.ones(5))
    return network


@pytest.mark.parametrize("trainer", [Averages(), sgd(batch=5)], ids=["own", "torch"])
def test_statistics_are_averaged_and_nothing_else_travels(trainer):
    learner = NetworkAlgorithm(FedAvg(), problem(), trainer, normed)
    names = ["1.weight", "1.bias", "3.weight", "3.bias", "1.running_mean", "1.running_var"]
    assert list(learner.model.shapes) == names
    models = learner.W.T + 0.01 * torch.arange(learner.users.row_layout.numbers)
    learner.users.receive(np.arange(4), models)
    _, ivs = learner.users.local_update(0)
    before = learner.model.split(models[0])
    each = [learner.model.split(iv) for iv in ivs]
    for name in names:
        assert not any(torch.equal(numbers[name], before[name]) for numbers in each)
    assert all((numbers["1.running_var"] > 0).all() for numbers in each)
    modules = [learner.model.holding(iv) for iv in ivs]
    assert all(torch.equal(module[0].weight, learner.model.module[0].weight) for module in modules)
    assert all(module[1].num_batches_tracked == 0 for module in modules)
    learner = NetworkAlgorithm(FedAvg(), problem(), trainer, normed)
    _, ivs = learner.users.local_update(0)
    expected = (ivs.double() * torch.tensor(COUNTS)[:, None] / sum(COUNTS)).sum(0)
    after(learner, 1)
    torch.testing.assert_close(learner.W[:, 0].double(), expected, rtol=1e-5, atol=1e-6)
    taken_home = models_of(learner).model("0").learned.state_dict()
    assert torch.equal(taken_home["1.running_var"], learner.model.split(learner.W[:, 0])["1.running_var"])


@pytest.mark.parametrize("kind", [Ditto, PFedMe])
def test_the_primal_of_personal_models_is_of_parameters_alone(kind):
    learner = NetworkAlgorithm(kind(0.5), problem(), sgd(batch=5), normed)
    models, shared = after(learner, 3).T, learner.users.held["averaged"].all()
    total = 0.0
    for k, task in enumerate(learner.problem.tasks):
        own, common = (learner.model.holding(w).eval() for w in (models[k], shared[k]))
        total += float(nn.functional.cross_entropy(own(task.x_train), task.y_train).detach())
        pairs = zip(own.parameters(), common.parameters(), strict=True)
        total += 0.25 * sum(float((a - b).detach().square().sum()) for a, b in pairs)
    assert learner.metrics()["primal"] == pytest.approx(total, rel=1e-5)


def test_own_code_is_reproducible_and_keeps_what_is_held_fixed():
    models = [after(NetworkAlgorithm(FedRep(), problem(), Averages(), LAYERED["mlp"], seed=seed)) for seed in (0, 0, 1)]
    assert torch.equal(models[0], models[1])
    assert not torch.equal(models[0], models[2])
    learner = NetworkAlgorithm(
        FedRep(), problem(), Halves(), LAYERED["mlp"], participation=Participation(0.5, 0.5)
    )  # the last phase
    start, heads = (learner.users.held[name].all() for name in ("averaged", "head"))
    users, shared = learner.users.local_update(0)
    assert not torch.equal(shared, start)
    learner.users.commit(users)
    assert torch.equal(learner.users.held["head"].all(), heads)


def lazy(d, C):
    return nn.Sequential(nn.LazyLinear(5), nn.Tanh(), nn.LazyLinear(C))


@pytest.mark.parametrize("solver", [LocalSGD(), sgd(), Averages()], ids=["sgd", "torch", "own"])
def test_lazy_layers_are_initialized(solver):
    learner = NetworkAlgorithm(FedAvg(), problem(), solver, lazy)
    assert len(learner.W) == 5 * D + 5 + 5 * C + C
    assert torch.equal(learner.W, NetworkAlgorithm(FedAvg(), problem(), solver, lazy).W)
    assert after(learner).isfinite().all()


class Halves(Averages):
    """Changes all parameters, whether they are held fixed or not."""

    def train(self, model, data, round, generator):
        with torch.no_grad():
            for w in model.parameters():
                w.mul_(0.5)
        return model


class Forgets(Averages):
    def train(self, model, data, round, generator):
        super().train(model, data, round, generator)


class Other(Averages):
    def train(self, model, data, round, generator):
        return nn.Linear(2, 2)


def adam(**options):
    return TorchTrainer(partial(torch.optim.Adam, lr=0.01), **options)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: NetworkAlgorithm(FedProx(0.1), problem(), Averages(), nn.Linear), "mu"),
        (lambda: NetworkAlgorithm(Ditto(0.1), problem(), Averages(), nn.Linear), "lam"),
        (lambda: NetworkAlgorithm(Scaffold(), problem(), Averages(), nn.Linear), "gradient steps"),
        (lambda: NetworkAlgorithm(Scaffold(), problem(), adam(), nn.Linear), "gradient steps"),
        (lambda: NetworkAlgorithm(Scaffold(), problem(), sgd(clip=1.0), nn.Linear), "gradient steps"),
        (
            lambda: NetworkAlgorithm(
                Scaffold(), problem(), sgd(scheduler=partial(CosineAnnealingLR, T_max=4)), nn.Linear
            ),
            "scheduler",
        ),
        (lambda: NetworkAlgorithm(FedPer(coupled=True), problem(), sgd(), normed), "running_mean"),
        (lambda: NetworkAlgorithm(FedU(), problem(), Averages(), nn.Linear), "rate"),
        (
            lambda: NetworkAlgorithm(FedU(), problem(), sgd(scheduler=partial(CosineAnnealingLR, T_max=4)), nn.Linear),
            "solver.scheduler",
        ),
        (lambda: NetworkAlgorithm(FedU(), problem(), sgd(), normed), "running_mean"),
        (
            lambda: NetworkAlgorithm(FedAvg(), problem(), TorchTrainer(partial(torch.optim.Adam, lr=-1.0)), nn.Linear),
            "solver.optimizer",
        ),
        (
            lambda: NetworkAlgorithm(FedAvg(), problem(), TorchTrainer(partial(torch.optim.LBFGS, lr=1.0)), nn.Linear),
            "solver.optimizer",
        ),
        (lambda: NetworkAlgorithm(FedAvg(), problem(), sgd(loss=lambda p, y: p @ y), nn.Linear), "solver"),
        (
            lambda: NetworkAlgorithm(
                FedAvg(), problem(class_weight="balanced"), sgd(loss=nn.CrossEntropyLoss()), nn.Linear
            ),
            "reduction",
        ),
        (lambda: NetworkAlgorithm(FedAvg(), problem(), sgd(scheduler=ReduceLROnPlateau), nn.Linear), "scheduler"),
        (lambda: sgd(clip=0.0), "clip"),
        (lambda: sgd(epochs=0), "epochs"),
        (lambda: after(NetworkAlgorithm(FedAvg(), problem(), Forgets(), nn.Linear)), "train"),
        (lambda: after(NetworkAlgorithm(FedAvg(), problem(), Other(), nn.Linear)), "weight"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(make, named):
    with pytest.raises(ConfigError) as error:
        make()
    assert named in str(error.value)
    assert "\n" not in str(error.value)


def test_parts_of_a_configuration(configure):
    words = """
        algorithm=fedavg solver=torch solver.optimizer._target_=torch.optim.AdamW solver.optimizer.lr=0.5 solver.clip=2
        solver.scheduler._target_=torch.optim.lr_scheduler.StepLR +solver.scheduler.step_size=1
        +solver.scheduler.gamma=0.5 solver.loss._target_=torch.nn.SoftMarginLoss solver.transform._target_=torch.nn.ReLU
    """
    solver = build(configure(*words.split(), "logger=none")).algorithm.solver
    assert [solver._groups(round)[0]["lr"] for round in range(3)] == [0.5, 0.25, 0.125]
    assert isinstance(solver.loss, nn.SoftMarginLoss)
    assert isinstance(solver.transform, nn.ReLU)
    assert solver.clip == 2
