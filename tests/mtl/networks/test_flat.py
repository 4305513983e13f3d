"""Modules as functions of flat parameters: training agrees with a plain loop, what cannot be trained is refused."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from hmtl import Federation
from hmtl.data import Task
from hmtl.mtl import CrossEntropy, FedAvg, FedU, LocalSGD, NetworkAlgorithm, Problem, Ridge

K, C, IMAGE, WORDS, VOCABULARY = 3, 3, (3, 6, 6), (5,), 20


def tasks(shape):
    rng, made = torch.Generator().manual_seed(0), []
    for n in (6, 9, 7):
        x = torch.randn(n, *shape, generator=rng) if shape == IMAGE else torch.randint(20, (n, *shape), generator=rng)
        y = torch.randint(C, (n,), generator=rng)
        made.append(Task(str(n), x.float(), y, x[:3].float(), y[:3], C))
    return made


def image(*middle):
    """A network for images in their shape."""

    def make(d, C, shape):
        first = nn.Conv2d(shape[0], 8, 3, padding=1)
        return nn.Sequential(first, *middle, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, C))

    return make


class Text(nn.Module):
    """An embedding of word numbers, a reader, and a linear layer on the last state or the mean."""

    def __init__(self, reader):
        super().__init__()
        self.embedding, self.reader, self.out = nn.Embedding(VOCABULARY, 8), reader, nn.Linear(8, C)

    def forward(self, x):
        read = self.reader(self.embedding(x.long()))
        return self.out(read[0][:, -1] if isinstance(read, tuple) else read.mean(1))


class Tied(nn.Module):
    """One matrix in two layers."""

    def __init__(self, d, C):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, C)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.out(self.second(self.first(x / VOCABULARY).tanh()))


class Twice(nn.Module):
    """A module and a parameter with two names each, and a module at two places."""

    def __init__(self, d, C):
        super().__init__()
        self.first = self.again = nn.Linear(d, d)
        middle = nn.Linear(d, d)
        self.deep, self.out = nn.Sequential(middle, nn.Tanh(), nn.Sequential(middle, nn.GELU())), nn.Linear(d, C)
        self.shift = self.back = nn.Parameter(torch.ones(d))

    def forward(self, x):
        return self.out(self.deep(self.again(self.first(x / VOCABULARY + self.shift).tanh())) - self.back)


class Masked(nn.Module):
    """A constant buffer, and a layer that is not trained."""

    def __init__(self, d, C):
        super().__init__()
        self.register_buffer("mask", torch.arange(d) % 2 / VOCABULARY)
        self.frozen, self.out = nn.Linear(d, d).requires_grad_(False), nn.Linear(d, C)

    def forward(self, x):
        return self.out(self.frozen(x * self.mask))


TRAIN = {
    "group norm": (IMAGE, image(nn.GroupNorm(2, 8))),
    "instance norm": (IMAGE, image(nn.InstanceNorm2d(8))),
    "in place": (IMAGE, image(nn.PReLU(8), nn.ReLU(inplace=True))),
    "words": (WORDS, lambda d, C: Text(nn.Identity())),
    "lstm": (WORDS, lambda d, C: Text(nn.LSTM(8, 8, batch_first=True))),
    "transformer": (WORDS, lambda d, C: Text(nn.TransformerEncoderLayer(8, 2, 16, dropout=0, batch_first=True))),
    "tied": (WORDS, Tied),
    "twice": (WORDS, Twice),
    "masked": (WORDS, Masked),
    "weight norm": (WORDS, lambda d, C: weight_norm(nn.Linear(d, C))),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # vmap, about some layers
@pytest.mark.parametrize("name", TRAIN)
def test_trains_as_a_loop_over_users_does(name):
    shape, make = TRAIN[name]
    problem = Problem(tasks(shape), CrossEntropy(), Ridge(1e-12))
    learner = NetworkAlgorithm(FedU(), problem, LocalSGD(0.02, 2, 4), make, seed=3)
    order, want = learner.solver.draw(3, 0, range(K), problem.counts), []
    order = order.split(learner.solver.steps(problem.counts).tolist())
    for task, batches in zip(tasks(shape), order, strict=True):
        module = copy.deepcopy(learner.model.module).train()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.02)
        for batch in batches:
            at = batch[batch >= 0]
            if len(at):
                optimizer.zero_grad()
                cross_entropy(module(task.x_train[at]), task.y_train[at]).backward()
                optimizer.step()
        trained = [w for w in module.parameters() if w.requires_grad]
        want.append(parameters_to_vector(trained).detach())
    learner.step(0)
    got = torch.as_tensor(learner.W).T
    assert (got - learner.model.start).abs().max() > 1e-3
    torch.testing.assert_close(got, torch.stack(want), rtol=0, atol=2e-6)


def stored(module):
    """Return the module pickled; None if torch refuses."""
    try:
        return pickle.dumps(module.eval())
    except RuntimeError:  # parametrized modules
        return None


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", TRAIN)
def test_training_leaves_the_module_as_it_was(name):
    """It has the same parameters at the same places, and can still be pickled and copied."""
    shape, make = TRAIN[name]
    learner = NetworkAlgorithm(FedU(), Problem(tasks(shape), CrossEntropy(), Ridge(0.1)), LocalSGD(0.02, 1, 4), make)
    module = learner.model.module
    before, saved = dict(module.named_parameters(remove_duplicate=False)), stored(module)
    for round in range(2):
        learner.step(round)
    learner.metrics()
    after = dict(module.named_parameters(remove_duplicate=False))
    assert before.keys() == after.keys()
    assert all(after[place] is w for place, w in before.items())
    assert stored(module) == saved
    again = copy.deepcopy(module).state_dict()
    assert all(torch.equal(again[place], w) for place, w in module.state_dict().items())


class Counts(nn.Module):
    """Counts its calls in a buffer."""

    def __init__(self, d, C):
        super().__init__()
        self.out = nn.Linear(d, C)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += 1
        return self.out(x)


class Branches(nn.Module):
    """Branches on the values of a tensor."""

    def __init__(self, d, C):
        super().__init__()
        self.out = nn.Linear(d, C)

    def forward(self, x):
        return self.out(x if x.sum() > 0 else -x)


class Centered(nn.Module):
    """Mixes the rows of a batch."""

    def __init__(self, d, C):
        super().__init__()
        self.out = nn.Linear(d, C)

    def forward(self, x):
        return self.out(x / VOCABULARY - x.mean(0) / VOCABULARY)


class Unused(nn.Module):
    """Has a parameter that gets no gradient."""

    def __init__(self, d, C):
        super().__init__()
        self.out, self.further = nn.Linear(d, C), nn.Parameter(torch.ones(2))

    def forward(self, x):
        return self.out(x / VOCABULARY)


ALONE = {
    "batch norm": (IMAGE, image(nn.BatchNorm2d(8))),
    "without statistics": (IMAGE, image(nn.BatchNorm2d(8, track_running_stats=False))),
    "instance norm with statistics": (IMAGE, image(nn.InstanceNorm2d(8, track_running_stats=True))),
    "spectral norm": (WORDS, lambda d, C: spectral_norm(nn.Linear(d, C))),
    "counts": (WORDS, Counts),
    "branches": (WORDS, Branches),
    "random": (WORDS, lambda d, C: nn.Sequential(nn.RReLU(), nn.Linear(d, C))),
    "centered": (WORDS, Centered),
    "unused": (WORDS, Unused),
    "lstm": TRAIN["lstm"],
}


@pytest.mark.parametrize("name", ALONE)
def test_modules_of_which_one_is_lent_to_the_users(name):
    """They cannot be trained side by side, or not as fast."""
    shape, make = ALONE[name]
    learner = NetworkAlgorithm(FedAvg(), Problem(tasks(shape), CrossEntropy(), Ridge(0.1)), LocalSGD(), make)
    assert not learner.model.side_by_side
    learner.step(0)
    assert learner.W.isfinite().all()


@pytest.mark.parametrize("name", ["words", "transformer", "tied", "masked", "twice"])
def test_modules_that_train_side_by_side(name):
    shape, make = TRAIN[name]
    learner = NetworkAlgorithm(FedU(), Problem(tasks(shape), CrossEntropy(), Ridge(0.1)), LocalSGD(), make)
    assert learner.model.side_by_side


@pytest.mark.parametrize(("width", "most"), [(4, 1024), (2**13, 128), (2**18, 16)])
@pytest.mark.parametrize("is_as_given", [False, True])
def test_predictions_keep_the_results_of_layers_in_the_cache(width, most, is_as_given):
    """A row's largest result takes 4 · width bytes, and 4 MiB are in memory at once, but at least 16 rows."""
    sizes = []

    class Watched(nn.Module):
        def __init__(self, d=2, C=C):
            super().__init__()
            self.wide, self.same, self.out = nn.Linear(d, 1), nn.Identity(), nn.Linear(1, C)

        def forward(self, x):
            sizes.append(len(x))
            return self.out(self.same(self.wide(x).expand(-1, width))[:, :1])

    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(2500, 2, generator=rng), torch.arange(2500) % C
    if is_as_given:
        data = [[{"x": row, "labels": label} for row, label in zip(x, y, strict=True)]] * 2
        algorithm = Federation(Watched(), data, H=1, r=1).algorithm
    else:
        problem = Problem([Task(str(k), x, y, x[:3], y[:3], C) for k in range(2)], CrossEntropy(), Ridge(0.1))
        algorithm = NetworkAlgorithm(FedAvg(), problem, LocalSGD(), Watched)
    users, expected = algorithm.users, algorithm.model.module(x)
    sizes.clear()
    found = users.setting.predictions("train", np.arange(2), algorithm.model.start.expand(2, -1))
    assert max(sizes) == most
    assert sum(sizes) == 5000
    torch.testing.assert_close(found, expected.repeat(2, 1))
