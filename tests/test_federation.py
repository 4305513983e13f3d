"""Federations of own modules and data: the same as a configured run, continued runs, transforms, and what travels."""

import copy
import doctest
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import hmtl
from hmtl.communication import CodedHierarchical, Uncoded
from hmtl.config.build import build
from hmtl.config.targets import description
from hmtl.data import Dirichlet, deal, from_datasets, with_validation
from hmtl.errors import CheckpointError, ConfigError, DataError, RangeError
from hmtl.interfaces import federation as module
from hmtl.mtl import (
    FedAvgM,
    FedNova,
    FedPer,
    FedProx,
    FedU,
    Graph,
    Learner,
    LocalSGD,
    Participation,
    Scaffold,
    TorchTrainer,
    mlp,
)
from hmtl.mtl.algorithms.local_training import Setting
from hmtl.reporting.run_comparison import as_lines, find_runs
from hmtl.topology import Topology, symmetric

K, D, C = 5, 6, 3
slow = partial(pytest.param, marks=pytest.mark.slow)


class Noisy(Dataset):
    """Rows with new noise each time that they are read; it remembers what was read."""

    def __init__(self, x, y):
        self.x, self.y, self.read = x, y, []

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        x = self.x[i] + torch.randn(D)
        self.read.append((int(i), float(x[0])))
        return x, self.y[i]


class ForMatrices(torch.optim.SGD):
    """An optimizer that takes matrices only, as Muon does."""

    def __init__(self, parameters, lr):
        parameters = list(parameters)
        if any(w.ndim != 2 for w in parameters):
            raise ValueError("not a matrix")
        super().__init__(parameters, lr)


def users(kind=TensorDataset, seed=0, C=C):
    draw = torch.Generator().manual_seed(seed)
    return [tuple(kind(torch.randn(n, D, generator=draw), torch.arange(n) % C) for n in (11 + k, 4)) for k in range(K)]


def network():
    return nn.Sequential(nn.Linear(D, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, C))


def adam(**options):
    return TorchTrainer(partial(torch.optim.Adam, lr=0.01), epochs=2, batch=4, **options)


def numbers(models):
    return torch.stack([torch.cat([each.flatten().double() for each in m.state_dict().values()]) for m in models])


@pytest.mark.parametrize("algorithm", ["mocha", "fedu", pytest.param("ditto", marks=pytest.mark.slow)])
def test_a_federation_is_the_configured_run(configure, algorithm):
    """The same bits as `hmtl.train` by the defaults of both, in all rounds and on all links."""
    run = build(configure(f"algorithm={algorithm}", "K=10", "rounds=3", "dataset.rows_per_user=20", "logger=none"))
    run.trainer.fit()
    tasks = run.algorithm.problem.everybody
    linear = algorithm == "mocha"
    first = None if linear else run.algorithm.model.holding(run.algorithm.model.start)
    options = {} if linear else {"loss": "logistic"}
    federation = hmtl.Federation(first, tasks, algorithm=algorithm, **options)
    models = federation.train(3)
    best = run.trainer.engine.models(run.algorithm, run.trainer.state).T.double()
    assert torch.equal(numbers(model.learned if linear else model for model in models), best)
    figures = [{name: value for name, value in row.items() if not name.endswith("_s")} for row in federation.history]
    assert figures == [
        {name: value for name, value in row.items() if not name.endswith("_s")} for row in run.trainer.history
    ]
    assert (
        federation.ledger.per_link("relays_to_server") == run.communicator.ledger.per_link("relays_to_server")
    ).all()


def test_users_side_by_side_and_one_after_the_other_learn_the_same():
    tasks, first = from_datasets(users()), nn.Linear(D, C)
    adam = partial(torch.optim.Adam, lr=0.01)
    for ways in (
        ({}, {"solver": lent(torch.optim.SGD, 0.3, clip=1)}),
        ({"solver": adam}, {"solver": lent(torch.optim.Adam, 0.01)}),
    ):
        federations = [hmtl.Federation(first, tasks, **how) for how in ways]
        models = [numbers(federation.train(1)) for federation in federations]
        torch.testing.assert_close(*models, rtol=3e-5, atol=3e-5)
        for federation, how in zip(federations, ("side by side", "one after the other"), strict=True):
            assert how in repr(federation)


def lent(optimizer, lr=0.03, **options):
    """Return a solver that cannot know that its optimizer treats each number alone."""
    return TorchTrainer(lambda parameters: optimizer(parameters, lr=lr), **options)


@pytest.mark.parametrize("algorithm", ["fedavg", *map(slow, ["fedprox", "fednova", "scaffold", "ditto", "fedu"])])
def test_default_steps_learn_numbers_in_any_units(algorithm):
    """Targets near 1,000 and a large constant feature, with which plain steps of 0.1 diverge."""
    draw = torch.Generator().manual_seed(0)
    data = []
    for k, n in enumerate((30, 12, 25, 40)):
        x = torch.cat([torch.randn(2 * n, 3, generator=draw), torch.full((2 * n, 1), 7.0)], 1)
        y = 1000 + 10 * k + 5 * (x[:, 0] - x[:, 1]) + torch.randn(2 * n, generator=draw)
        data.append(tuple(TensorDataset(x[part], y[part]) for part in (slice(n), slice(n, None))))
    federation = hmtl.Federation(nn.Linear(4, 1), data, algorithm=algorithm)
    federation.train(100)
    assert federation.history[-1]["test_error"] < 400
    with pytest.raises(RangeError):
        hmtl.Federation(nn.Linear(4, 1), data, algorithm=algorithm, **{"solver.step": 0.1}).train(100)


@pytest.mark.parametrize(
    ("algorithm", "solver", "same"),
    [
        (FedU(), LocalSGD(epochs=2), LocalSGD(0.03, epochs=2)),
        (FedPer(coupled=True), LocalSGD(), LocalSGD(0.03)),
        (Scaffold(), LocalSGD(), LocalSGD(0.03)),
        (FedNova(), LocalSGD(), LocalSGD(0.03)),
        (FedAvgM(), LocalSGD(), TorchTrainer(partial(torch.optim.SGD, lr=0.3), clip=1)),
        (FedProx(20.0), LocalSGD(), TorchTrainer(partial(torch.optim.SGD, lr=0.05), clip=1)),
        (FedAvgM(), LocalSGD(0.3), TorchTrainer(partial(torch.optim.SGD, lr=0.3))),
    ],
)
def test_default_steps_are_clipped_unless_a_learner_needs_plain_ones(algorithm, solver, same):
    tasks, first = from_datasets(users()), mlp(D, C)
    models = [
        numbers(hmtl.Federation(first, tasks, algorithm=algorithm, regularizer="mean", solver=each).train(2))
        for each in (solver, same)
    ]
    torch.testing.assert_close(*models, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("algorithm", ["fedu", "scaffold", "fednova"])
def test_learners_that_need_plain_steps_refuse_clipped_ones(algorithm):
    clipped = TorchTrainer(partial(torch.optim.SGD, lr=0.1), clip=1)
    with pytest.raises(ConfigError, match="clip"):
        hmtl.Federation(mlp(D, C), users(), algorithm=algorithm, solver=clipped)


@pytest.mark.parametrize("plain", [False, True])
def test_a_learner_of_your_own_knows_the_length_of_plain_steps_alone(plain):
    class Measuring(Learner):
        plain_steps = plain

        def local(self, shared, own, train):
            rates.append(train.rate)
            return {"w": train(shared.w)}

    rates = []
    federation = hmtl.Federation(mlp(D, C), users(), algorithm=Measuring())
    if plain:
        federation.train(1)
        assert set(rates) == {0.03}
    else:
        with pytest.raises(ConfigError, match="plain_steps"):
            federation.train(1)


def test_training_continues_and_is_reproducible():
    """Two rounds are twice one, with BatchNorm, and transforms that draw; the seed matters."""

    def make(seed=0):
        return hmtl.Federation(network, users(Noisy), solver=adam(), seed=seed)

    whole, parts = make(), make()
    models = whole.train(2)
    parts.train(1)
    assert torch.equal(numbers(models), numbers(parts.train(1)))
    assert not torch.equal(numbers(models), numbers(make(1).train(2)))
    assert [row["round"] for row in parts.history] == [0, 1]
    assert parts.history[1]["test_error"] == whole.history[1]["test_error"]
    assert parts.history[1]["bits_total"] == whole.history[1]["bits_total"]
    assert parts.summary.rounds == 2
    assert not any(module.training for module in models)


def test_training_continues_after_an_error():
    """From the last call that ended without, as if the failed one had not been."""

    class Failing(LocalSGD):
        fails = False

        def forward(self, *arguments):
            if self.fails and arguments[2].round == 3:
                raise OSError("no space")
            return super().forward(*arguments)

    def make():
        return hmtl.Federation(partial(mlp, D, C), users(), solver=Failing(0.1, 1))

    whole, parts = make(), make()
    models = whole.train(4)
    parts.train(2)
    Failing.fails = True
    with pytest.raises(OSError, match="no space"):
        parts.train(2)
    assert (len(parts.history), parts.summary.rounds) == (2, 2)
    Failing.fails = False
    assert torch.equal(numbers(models), numbers(parts.train(2)))
    for name in ("primal", "bits_total"):
        assert [row[name] for row in parts.history] == [row[name] for row in whole.history]


def test_training_resumes_from_a_folder(tmp_path):
    """Also in another process, for all that it keeps; another learner or module is refused."""

    def make(model=mlp, algorithm="ditto", **settings):
        return hmtl.Federation(partial(model, D, C), users(), algorithm=algorithm, solver="sgd", **settings)

    whole = make().train(4)
    make(output_dir=tmp_path / "first").train(2)
    resumed = make(resume=tmp_path / "first")
    assert len(resumed.history) == 2
    resumed.train(1)
    assert torch.equal(numbers(whole), numbers(resumed.train(1)))
    for other in ({"algorithm": "fedavg"}, {"model": nn.Linear}):
        with pytest.raises(CheckpointError, match=min(other)):
            make(resume=tmp_path / "first", **other)


def test_what_a_run_leaves(tmp_path, capsys):
    """Rows for functions and loggers, own measures, the files of a run, its report, and a description."""

    class Kept:
        def __init__(self):
            self.rows, self.summary, self.closed = [], None, 0

        def log(self, row):
            self.rows.append(row)

        def finish(self, summary, draw):
            self.summary = summary
            assert draw().keys() == {"topology"}, "Ω is learned later"

        def close(self):
            self.closed += 1

    kept, rounds = Kept(), []
    federation = hmtl.Federation(
        None,
        users(),
        algorithm="mocha",
        rounds=3,
        evaluate_every=2,
        measures={"lowest": lambda p, y: p.min()},
        logger=[kept, lambda row: rounds.append(row["round"])],
        output_dir=tmp_path,
    )
    assert "not yet" in str(federation)
    models = federation.train()
    assert rounds == [row["round"] for row in kept.rows] == [0, 1, 2]
    assert ["test_lowest" in row for row in kept.rows] == [True, False, True]
    assert (kept.summary, kept.closed) == (federation.summary, 1)
    assert f"test error {100 * federation.summary.figures['test_error']:.2f} %, " in str(federation)
    assert all(word in str(federation) for word in ("mocha", "hinge", "coded IVs of 18 numbers", "5 relays"))
    loaded, x = hmtl.load_run(tmp_path), users()[1][1].tensors[0]
    assert torch.equal(torch.tensor(loaded.scores("user 1", x)), models[1](x))
    assert federation.report(panels=["rounds"]).axes
    assert "average and worst" in capsys.readouterr().out
    assert (tmp_path / "report.md").exists()


def test_runs_that_differ_only_by_seed_are_one_line_of_a_report(tmp_path):
    class Wrapped(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.model = nn.Sequential(nn.Linear(D, width), nn.ReLU(), nn.Linear(width, C))

        def forward(self, x):
            return self.model(x)

    assert description(Wrapped(4)) != description(Wrapped(8))
    shown = [
        description(each).rpartition("layers.")[2] for each in (FedPer("*lora_B*"), FedPer(coupled=True), FedPer())
    ]
    assert shown == ["FedPer(personal=*lora_B*)", "FedPer(coupled=True)", "FedPer"]
    steps = [partial(torch.optim.SGD, lr=0.01), partial(torch.optim.SGD, lr=0.1), torch.optim.Adam]
    variants = [
        {"algorithm": FedAvgM(beta=0.5)},
        {"algorithm": FedAvgM(beta=0.9)},
        *({"algorithm": "fedavg", "solver": TorchTrainer(step)} for step in steps),
    ]
    for n, settings in enumerate(variants):
        for seed in range(1 if n else 2):
            place = tmp_path / f"{n}" / f"{seed}"
            hmtl.Federation(nn.Linear(D, C), users(), seed=seed, output_dir=place, **settings).train(1)
    lines = as_lines(find_runs([tmp_path]))
    assert [len(line.runs) for line in lines] == [2, 1, 1, 1, 1]
    names = [line.name for line in lines]
    assert names[:2] == ["FedAvgM(beta=0.5)", "FedAvgM"]
    assert all(text in name for text, name in zip(("lr=0.01", "lr=0.1", "=Adam"), names[2:], strict=True))


@pytest.mark.parametrize(
    "settings",
    [
        {"algorithm": "cocoa", "communicator": "sums", "secure": True, "aggregators": "server", "metrics": "sums"},
        {"algorithm": "local", "lam": 0.1},
    ],
)
def test_linear_models_of_numbers(settings):
    data = [(rows(torch.randn(12)), rows(torch.randn(4))) for _ in range(2 * K)]
    federation = hmtl.Federation(None, data, **settings)
    models = federation.train(2)
    assert federation.summary.loss == "squared"
    assert models[0](torch.zeros(3, D)).shape == (3,)


@pytest.mark.parametrize(("model", "options"), [(nn.Linear(D, 1), {}), (None, {"algorithm": "local"})])
def test_integers_are_numbers(model, options):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(K, 12, D, generator=draw)
    data = [TensorDataset(each, (9 * each.sum(1)).round().long()) for each in x]
    federation = hmtl.Federation(model, data, loss="squared", **options)
    federation.train(1)
    assert federation.summary.error_measure == "mean squared error"


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (nn.Linear(D, 2), {}),
        (nn.Linear(D, 2), {"loss": nn.CrossEntropyLoss(reduction="none")}),
        (nn.Linear(D, 1), {}),
        (None, {"algorithm": "local"}),
    ],
)
@pytest.mark.slow
def test_a_rare_class_counts_as_much_as_a_common_one(model, options):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(K, 60, D, generator=draw)
    y = (torch.arange(60) % 10 == 0).long()
    x[..., 0] += y
    data = [TensorDataset(each, y) for each in x]
    errors = []
    for weight in (None, "balanced"):
        federation = hmtl.Federation(model, data, **options, **{"dataset.class_weight": weight})
        federation.train(10)
        errors.append(federation.history[-1]["train_balanced_error"])
    assert errors[1] < errors[0] - 0.05


@pytest.mark.slow
def test_the_example_runs():
    assert doctest.testmod(module).failed == 0


def test_two_classes_by_number_are_loaded_again(tmp_path):
    """Networks have a score for each class, and linear models learn one against the rest."""
    x = users(C=2)[1][1].tensors[0]
    for name, model in {"fedavg": partial(nn.Linear, D, 2), "mocha": None}.items():
        models = hmtl.Federation(model, users(C=2), algorithm=name, output_dir=tmp_path / name).train(1)
        loaded = hmtl.load_run(tmp_path / name, model and nn.Linear)
        assert loaded.predict("user 1", x).tolist() == models[1](x).argmax(1).tolist()


@pytest.mark.parametrize("kind", [torch.int64, torch.float32])
@pytest.mark.parametrize("wrap", [TensorDataset, lambda *rows: list(zip(*rows, strict=True))])
def test_signs_are_two_classes_for_two_scores(wrap, kind):
    net, data = nn.Linear(D, 2), [user[0].tensors for user in users(C=2)]
    signs = [wrap(x, (2 * y - 1).to(kind)) for x, y in data]
    ours, theirs = (hmtl.Federation(net, each).train(2) for each in (signs, [wrap(*rows) for rows in data]))
    assert torch.equal(numbers(ours), numbers(theirs))


def test_private_sums():
    privacy = {"clip": 1.0, "epsilon": 8.0, "delta": 1e-3}
    federation = hmtl.Federation(partial(mlp, D, C), users(), communicator="sums", privacy=privacy)
    federation.train(2)
    assert 0 < federation.summary.epsilon <= 8


def test_transforms_draw_anew_in_each_epoch():
    data = users(Noisy)
    federation = hmtl.Federation(network, data, solver=adam())
    data[0][0].read.clear()
    federation.algorithm.users.local_update(0)
    read = data[0][0].read
    assert sorted(i for i, _ in read) == sorted([*range(11)] * 2)
    assert len({x for _, x in read}) == 22


def test_models_do_not_depend_on_what_carries_them():
    """Coded and uncoded messages give the same bits; sums agree with them."""
    coded, uncoded = (
        numbers(hmtl.Federation(network, users(), solver=adam(), communicator=kind).train(2))
        for kind in (partial(CodedHierarchical, aggregators="all"), Uncoded)
    )
    assert torch.equal(coded, uncoded)
    assert torch.equal(coded, numbers(hmtl.Federation(network, users(), solver=adam()).train(2)))


class Adapted(nn.Module):
    """A frozen linear layer, to which matrices of rank 1 are added."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(D, C).requires_grad_(False)
        self.down, self.up = nn.Parameter(torch.randn(1, D)), nn.Parameter(torch.zeros(C, 1))

    def forward(self, x):
        return self.base(x) + x @ self.down.T @ self.up.T


def test_frozen_parameters_do_not_travel():
    federation = hmtl.Federation(Adapted, users(), solver=adam(), communicator=Uncoded)
    base = federation.models[0].base.weight
    models = federation.train(1)
    assert federation.communicator.V_bits == 32 * (D + C)
    assert all(torch.equal(module.base.weight, base) for module in models)
    assert not torch.equal(models[0].up, torch.zeros(C, 1))


def rows(y):
    return TensorDataset(torch.randn(len(y), D), y)


def task(y):
    return hmtl.data.Task("some rows", x := torch.randn(len(y), D), y, x, y)


ANY = {
    "floats": (partial(nn.Linear, D, 1), [rows(torch.randn(9))] * K, {}, "squared"),
    "signs": (partial(nn.Linear, D, 1), [rows(torch.tensor([-1, 1, 1] * 3))] * K, {}, "logistic"),
    "loaders": (partial(nn.Linear, D, 2), [DataLoader(rows(torch.tensor([0, 1, 1] * 3)))] * K, {}, "cross_entropy"),
    "dealt": (partial(nn.LazyLinear, C), deal(rows(torch.arange(90) % C), Dirichlet(5.0), K), {}, "cross_entropy"),
    "tasks": (partial(nn.Linear, D, 1), [task(torch.tensor([3, 7, 7] * 3))] * K, {}, "logistic"),
    "tasks of classes": (partial(nn.Linear, D, C), [task(torch.arange(9) % C)] * K, {}, "cross_entropy"),
    "personal norms": (network, users(), {"algorithm": FedPer(["1", "3"])}, "cross_entropy"),
    "coupled": (partial(mlp, D, C), users(), {"algorithm": FedU(), "regularizer": Graph(0.1)}, "cross_entropy"),
    "coupled layers": (partial(mlp, D, C), users(), {"algorithm": FedPer(coupled=True)}, "cross_entropy"),
    "matrices": (
        partial(nn.Linear, D, C, bias=False),
        users(),
        {"solver": TorchTrainer(partial(ForMatrices, lr=0.1))},
        "cross_entropy",
    ),
    "topology": (network, users(), {"topology": symmetric(K=5, H=5, r=2)}, "cross_entropy"),
}
FURTHER = ("tasks of classes", "coupled layers", "matrices", "topology")


def test_validation_rows_choose_the_round():
    """The modules are those with the least validation error of all rounds; training continues from the last round."""
    tasks = with_validation(from_datasets(users()), 0.4, seed=0)
    torch.manual_seed(0)
    first = nn.Linear(D, C)
    continued, whole = (hmtl.Federation(first, tasks, solver=LocalSGD(step=3.0)) for _ in range(2))
    for rounds in (3, 4):
        models = continued.train(rounds)
        errors = [row["validation_error"] for row in continued.history]
        assert continued.summary.models_after == errors.index(min(errors)) + 1
        wrong = [m(x.x_validation.float()).argmax(1) != x.y_validation for m, x in zip(models, tasks, strict=True)]
        assert sum(float(each.double().mean()) for each in wrong) / K == pytest.approx(min(errors))
    assert errors[-1] > min(errors)
    assert torch.equal(numbers(whole.train(7)), numbers(models))
    assert whole.history[-1]["primal"] == continued.history[-1]["primal"]


@pytest.mark.parametrize(
    ("model", "data", "options", "loss"),
    [(slow if name in FURTHER else pytest.param)(*case, id=name) for name, case in ANY.items()],
)
def test_any_data_and_algorithm(model, data, options, loss):
    federation = hmtl.Federation(model, data, **options)
    models = federation.train(1)
    assert federation.summary.loss == loss
    assert len(models) == K
    assert numbers(models).isfinite().all()


WRONG = (-1, 0, 1.5, "3")
"""What is not a number of rounds."""


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: hmtl.Federation(nn.Linear(D, C - 1), users()), ConfigError),
        slow(lambda: hmtl.Federation(network, users(), solver=TorchTrainer), ConfigError),
        slow(lambda: hmtl.Federation("mlp", users()), ConfigError),
        slow(lambda: hmtl.Federation(network, users(), topology="G.csv"), ConfigError),
        (lambda: hmtl.Federation(network, users(), topology=[[1] * K]), ConfigError),
        (lambda: hmtl.Federation(network, users(), algorithm="fedavgg"), ConfigError),
        slow(lambda: hmtl.Federation(network, users(), regularizer="mean"), ConfigError),
        (lambda: hmtl.Federation(network, users(), algorithm="mocha"), ConfigError),
        (lambda: hmtl.Federation(None, users()), ConfigError),
        slow(lambda: hmtl.Federation(network, users(), engine="ray"), ConfigError),
        slow(lambda: hmtl.Federation(network, users(), logger=["console"]), ConfigError),
        (lambda: hmtl.Federation(network, users(), evaluate_evry=2), ConfigError),
        (lambda: hmtl.Federation(network, users(), **{"dataset.class_weight": "even"}), ConfigError),
        slow(lambda: hmtl.Federation(network, users(), seed="zero"), ConfigError),
        slow(lambda: hmtl.Federation(network, users(), partition="shards"), ConfigError),
        slow(lambda: hmtl.Federation(network, users(), early_stopping=3), ConfigError),
        slow(lambda: hmtl.Federation(network, users(), privacy={"clip": 1.0}), ConfigError),
        slow(lambda: hmtl.Federation(network, users(), wire="int9"), ConfigError),
        (lambda: hmtl.Federation(network, users(), resume="nowhere"), CheckpointError),
        (lambda: hmtl.Federation(network, users()).report(), DataError),
        (lambda: hmtl.Federation(network, users(), communicator=Uncoded(symmetric(K, K, 1))), ConfigError),
        *((lambda rounds=rounds: hmtl.Federation(network, users()).train(rounds), ConfigError) for rounds in WRONG),
        (lambda: hmtl.Federation(network, users(lambda x, y: TensorDataset(x, y / 2))), DataError),
        (lambda: hmtl.Federation(network, users(lambda x, y: TensorDataset(x, y / 2)), loss=nn.MSELoss()), DataError),
        slow(lambda: hmtl.Federation(network, users(lambda x, y: (x.numpy(), y.numpy()))), DataError),
        (lambda: hmtl.Federation(network, []), DataError),
        (lambda: hmtl.Federation(network, users(), K=K + 1), ConfigError),
        slow(lambda: hmtl.Federation(network, users(), topology=Topology([[1, 1]])), ConfigError),
        slow(lambda: hmtl.Federation(network, users(), algorithm=hmtl.mtl.MOCHA), ConfigError),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(make, kind):
    with pytest.raises(kind) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "first", "names"),
    [
        (nn.Linear(D + 1, C), 0, f"({D},)"),
        (lambda: nn.Linear(D + 1, C), 0, f"({D},)"),
        (nn.Linear(D, C), 1, f"0..{C}"),
    ],
    ids=["rows of another width", "made for rows of another width", "classes from 1"],
)
def test_a_module_that_does_not_fit_the_data(model, first, names):
    """The error has what the data are, and no advice about a configuration, which there is not."""
    data = [TensorDataset(torch.randn(6, D), torch.arange(6) % C + first) for _ in range(K)]
    with pytest.raises(ConfigError) as error:
        hmtl.Federation(model, data)
    assert names in str(error.value)
    assert "_partial_" not in str(error.value)


@pytest.mark.parametrize(("algorithm", "most"), [("fedavg", 1), ("ditto", 3)])
def test_users_who_are_alike_cost_one(algorithm, most, tmp_path):
    """In files, and in memory until a module is read; two of 40 users have trained."""
    data = [(TensorDataset(torch.randn(4, 30), torch.arange(4) % C),) * 2 for _ in range(40)]
    net = nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, C))
    one = 4 * sum(w.numel() for w in net.parameters())
    settings = {"participation": Participation(fraction=0.05), "algorithm": algorithm, "output_dir": tmp_path}
    models = hmtl.Federation(net, data, **settings).train(rounds=1)
    sizes = {name: (tmp_path / name).stat().st_size for name in ("models.npz", "checkpoint.pt")}
    assert sizes["models.npz"] < most * one + 30_000
    assert sizes["checkpoint.pt"] < one + 60_000 or most > 1
    read = hmtl.load_run(tmp_path, net)
    for k, name in enumerate(read.names):
        both = read.model(name).parameters(), models[k].parameters()
        assert all(torch.equal(*pair) for pair in zip(*both, strict=True))
    assert len(models) == len(models[1:]) + 1 == len([*models]) == 40
    assert models[-1] is models[39]
    before = numbers(models[1:2])
    with torch.no_grad():
        next(models[0].parameters()).zero_()
    assert torch.equal(numbers(models[1:2]), before)
    assert type(copy.deepcopy(models)) is list


@pytest.mark.parametrize("evaluate", [["test"], ["train", "test"], ["test", "tuned"]])
def test_what_is_measured_is_what_is_asked_for(evaluate, monkeypatch):
    """Nothing else is computed, and what is measured stays the same."""
    read, predictions = set(), Setting.predictions

    def noted(setting, split, users, models):
        read.add(split)
        return predictions(setting, split, users, models)

    net = mlp(D, C)
    whole, parts = hmtl.Federation(net, users()), hmtl.Federation(net, users(), evaluate=evaluate)
    whole.train(2)
    monkeypatch.setattr(Setting, "predictions", noted)
    parts.train(2)

    def is_asked(name):
        kind = "train" if name == "primal" else name.partition("_")[0]
        return kind in evaluate or kind not in ("train", "tuned")

    assert ("train" in read) == ("train" in evaluate)
    assert [list(row) for row in parts.history] == [[name for name in row if is_asked(name)] for row in whole.history]
    figures = [name for name in parts.history[-1] if "error" in name or name == "primal"]
    for row, all_of_it in zip(parts.history, whole.history, strict=True):
        assert [row[name] for name in figures] == [all_of_it[name] for name in figures]
    assert "test_error" in parts.summary.figures
    assert len(parts.summary.worst_users) == K
