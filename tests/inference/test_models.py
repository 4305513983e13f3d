"""What a run leaves predicts on raw rows as it did inside, with labels and units as the data had them."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from examples import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mixed_tables import SETTINGS, mixed_table
from omegaconf import DictConfig
from torch.utils.data import TensorDataset

import hmtl
from hmtl.config.build import build
from hmtl.data import Preprocessing, Task, prepare
from hmtl.errors import ConfigError, DataError
from hmtl.inference.models import Models, models_of
from hmtl.io.files import add_digest, replacing
from hmtl.mtl import MOCHA, SDCA, Hinge, Problem, Ridge, Squared, cnn, mlp
from hmtl.mtl.networks.flat import FlatModel
from hmtl.train import train

Configure = Callable[..., DictConfig]
KINDS: dict[str, tuple[str, ...]] = {
    "numbers": ("dataset.kind=regression", "loss=squared"),
    "numbers, for each task": ("dataset.kind=regression", "loss=squared", "dataset.standardize=task"),
    "numbers, centered over all": ("dataset.kind=regression", "loss=squared", "dataset.center=all"),
    "two": (),
    "classes": (),
    "net of numbers": ("dataset.kind=regression", "algorithm=fedu", "loss=squared"),
    "net of two": ("algorithm=fedu",),
    "net of classes": ("algorithm=fedavg", "loss=cross_entropy"),
    "two, one model": ("algorithm=cocoa",),
}


def write(folder: Path, kind: str) -> dict[str, pd.DataFrame]:
    """Four tasks of raw rows to test on, beside those to train on: in `folder`/test and `folder`/train."""
    rng, tests = np.random.default_rng(0), {}
    for k in range(4):
        x = rng.normal([3, -50, 0.1], [1, 20, 0.01], (40, 3))
        score = (x - [3, -50, 0.1]) @ [1, 0.1, 50] + rng.normal(0, 0.2, 40)
        table = pd.DataFrame(x, columns=["a", "b", "c"]).assign(same=7.0)
        if "numbers" in kind:
            table["y"] = 1000 + 10 * k + 5 * score
        else:
            table["y"] = np.array(["no", "yes"] if "two" in kind else ["low", "mid", "top"])[
                np.digitize(score, [0] if "two" in kind else [-1, 1])
            ]
        for part, rows in (("train", table[:30]), ("test", table[30:])):
            (folder / part).mkdir(exist_ok=True)
            rows.to_csv(folder / part / f"town {k}.csv", index=False)
        tests[f"town {k}"] = table[30:]
    return tests


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_raw_rows_give_the_errors_of_the_run(configure: Configure, tmp_path: Path, kind: str) -> None:
    tests = write(tmp_path, kind)
    where = (f"dataset.path={tmp_path}/train", f"dataset.test_path={tmp_path}/test", "topology=any_r")
    train(configure("dataset=files", *where, "rounds=10", "H=3", "r=2", "logger=none", *KINDS[kind]))
    summary = json.loads((tmp_path / "summary.json").read_text())
    models = hmtl.load_run(tmp_path, torch.nn.Linear if "net" in kind else None)
    errors, sums = [], np.zeros(2)
    every = pd.concat(tests.values())["y"]
    for name, table in tests.items():
        x, y = table.drop(columns="y").to_numpy(), table["y"].to_numpy()
        predicted = models.predict(name, x)
        wrong = (predicted - y) ** 2 if "numbers" in kind else (predicted != y)
        errors.append(wrong.mean())
        sums += [wrong.sum(), ((y - every.mean()) ** 2).sum()] if "numbers" in kind else [0, 0]
    np.testing.assert_allclose(np.mean(errors), summary["test_error"], rtol=1e-4 if "net" in kind else 1e-9)
    by_user = pd.read_csv(tmp_path / "users.csv", index_col="user")
    assert by_user.index.tolist() == list(models.names) == list(tests)
    assert by_user[["train_rows", "test_rows"]].to_numpy().tolist() == [[30, 10]] * 4
    np.testing.assert_allclose(by_user["test_error"], errors, rtol=1e-4 if "net" in kind else 1e-9)
    assert by_user["train_error"].mean() == pytest.approx(summary["train_error"])
    worst = [user["user"] for user in summary["worst_users"]]
    assert worst == by_user["test_error"].sort_values(ascending=False, kind="stable").index.tolist()
    assert models.columns == ("a", "b", "c", "same")
    np.testing.assert_allclose(np.max(errors), summary["test_error_worst"], rtol=1e-4 if "net" in kind else 1e-9)
    if "numbers" in kind:
        np.testing.assert_allclose(1 - sums[0] / sums[1], summary["test_r2"], rtol=1e-4)
    else:
        assert "test_r2" not in summary
        assert summary["test_error"] < 0.5


def save(path: Path, arrays: dict[str, Any]) -> None:
    """Write a file of models that is not damaged."""
    with replacing(path) as file:
        np.savez(file, **arrays)
        add_digest(file)


@pytest.mark.parametrize("d", [3, 9])
@pytest.mark.parametrize(
    ("settings", "is_learned"),
    [
        ({"algorithm.omega_every": 1}, True),
        ({"algorithm.omega_every": 9}, False),
        ({"regularizer": "mean"}, False),
    ],
)
@pytest.mark.slow
def test_a_learned_relationship_is_loaded(d: int, settings: dict[str, Any], is_learned: bool, tmp_path: Path) -> None:
    """That of seven users, of low rank if models have three numbers."""
    draw = torch.Generator().manual_seed(1)
    data = [TensorDataset(torch.randn(9, d, generator=draw), torch.arange(9) % 2) for _ in range(7)]
    federation = hmtl.Federation(None, data, algorithm="mocha", rounds=4, H=3, output_dir=tmp_path, **settings)
    federation.train()
    Omega = hmtl.load_run(tmp_path).Omega
    assert (Omega is not None) == is_learned
    if is_learned:
        np.testing.assert_array_equal(Omega, federation.algorithm.Omega.dense())
        arrays = dict(np.load(tmp_path / "models.npz"))
        for name in (name for name in arrays if name.startswith("Omega.")):
            for other in (arrays[name][None], np.full_like(arrays[name], np.nan)):
                save(tmp_path / "models.npz", {**arrays, name: other})
                with pytest.raises(DataError, match="does not hold the models of a run"):
                    hmtl.load_run(tmp_path)
        assert np.abs(Omega - np.diag(np.diag(Omega))).max() > 0.01
        assert np.linalg.eigvalsh(Omega).min() > 0


def test_the_state_of_a_model_is_all_that_another_program_needs(configure: Configure, tmp_path: Path) -> None:
    """With numpy alone: weights, and what preprocessing fitted."""
    tests = write(tmp_path, "classes")
    where = (f"dataset.path={tmp_path}/train", "dataset.standardize=task", "topology=any_r", "H=3", "r=2")
    train(configure("dataset=files", *where, "rounds=5", "logger=none"))
    models = hmtl.load_run(tmp_path)
    assert models.labels.tolist() == ["low", "mid", "top"]
    for user, table in tests.items():
        state = {name: value.numpy() for name, value in models.model(user).state_dict().items()}
        x = table[list(models.columns)].to_numpy()
        scores = np.c_[(x - state["mean"]) / state["scale"], np.ones(len(x))] @ state["learned.weight"].T
        np.testing.assert_allclose(models.scores(user, x), scores, rtol=1e-9)
        assert models.predict(user, x).tolist() == models.labels[scores.argmax(1)].tolist()


@pytest.mark.slow  # torch.export takes seconds to import
@pytest.mark.parametrize("net", ["linear", "mlp", "cnn"])
def test_the_graph_of_a_model_takes_any_number_of_rows(net: str) -> None:
    """That of `torch.export`, from which ONNX models are made."""
    rng, shape = np.random.default_rng(0), (1, 12, 12) if net == "cnn" else (5,)
    d, maker = int(np.prod(shape)), {"linear": None, "mlp": mlp, "cnn": cnn}[net]
    D, network = d if net == "cnn" else d + 1, None
    m = 3 * (d + 1)
    if maker:
        network = FlatModel(maker, torch.zeros(2, D), 3, 0, shape if net == "cnn" else ())
        m = len(network.start)
    models = Models(
        names=("north", "south"),
        W=rng.normal(size=(2, m)).astype(np.float32 if maker else float) * 0.3,
        mean=rng.normal(size=(2, d)),
        scale=rng.uniform(0.5, 2, size=(2, d)),
        target_mean=np.zeros(2),
        intercept=net != "cnn",
        labels=np.array(["a", "b", "c"]),
        seed=0,
        shape=shape,
        maker=maker,
        network=network.outline if network else "",
    )
    for user, n in zip(models.names, (1, 7), strict=True):
        x = torch.tensor(rng.normal(size=(n, *shape)), dtype=torch.float32 if maker else torch.float64)
        rows = ({0: torch.export.Dim.DYNAMIC},)
        graph = torch.export.export(models.model(user), (torch.zeros(2, *shape, dtype=x.dtype),), dynamic_shapes=rows)
        scores = graph.module()(x).detach().numpy()
        np.testing.assert_allclose(scores, models.scores(user, x.numpy()), rtol=1e-4, atol=1e-5 if maker else 1e-10)


def test_a_users_model_is_a_module_that_goes_on_learning(configure: Configure, tmp_path: Path) -> None:
    write(tmp_path, "numbers")
    where = (
        "dataset=files",
        f"dataset.path={tmp_path}/train",
        "dataset.kind=regression",
        "topology=any_r",
        "H=3",
        "r=2",
    )
    train(configure(*where, "rounds=3", "algorithm=fedu", "loss=squared", "logger=none"))
    module = hmtl.load_run(tmp_path, torch.nn.Linear).model("town 2")
    again = hmtl.load_run(tmp_path, torch.nn.Linear).model("town 2")
    x = torch.tensor([[3.0, -50.0, 0.1, 7.0]])
    assert 900 < module(x).item() < 1100
    (module(x) - 2000).square().sum().backward()
    torch.optim.SGD(module.parameters(), 0.1).step()
    assert module(x).item() > again(x).item() + 10, "and each call gives one of its own"


@examples(12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    scope=st.sampled_from(["task", "all", "none"]),
    center=st.sampled_from(["task", "all", "none"]),
    intercept=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float64]),
    loss=st.sampled_from([Squared, Hinge]),
)
def test_scores_are_those_inside(
    tmp_path: Path, seed: int, scope: Any, center: Any, intercept: bool, dtype: type, loss: type
) -> None:
    rng, raws = np.random.default_rng(seed), []
    for k in range(3):
        x = rng.normal(rng.normal(0, 3, 4), 10.0 ** rng.integers(-1, 2, 4), (10, 4)).astype(dtype)
        x[:, 2] = 0.3
        y = rng.normal(50, 9, 10) if loss is Squared else np.tile([1.0, -1.0], 5)
        # Task makes tensors of arrays
        raws.append(Task(f"t{k}", x[:7], y[:7], x[7:], y[7:]))  # type: ignore[arg-type]
    tasks = prepare(raws, Preprocessing(intercept, scope, center if loss is Squared else "none"))
    mocha = MOCHA(Problem(tasks, loss(), Ridge(0.1)), SDCA())
    for t in range(3):
        mocha.step(t)
    models_of(mocha).save(tmp_path / "models.npz")
    models = hmtl.load_run(tmp_path / "models.npz")
    for k, (raw, task) in enumerate(zip(raws, tasks, strict=True)):
        inside = task.x_test.double() @ mocha.W[:, k] + (raw.y_test - task.y_test)
        np.testing.assert_allclose(models.scores(raw.name, raw.x_test.numpy()), inside.numpy(), rtol=1e-9, atol=1e-9)
        if loss is Hinge:
            assert models.predict(raw.name, raw.x_test.numpy()).tolist() == [1.0 if s > 0 else -1.0 for s in inside]


@pytest.mark.parametrize(
    "wrong",
    [
        "x",
        3,
        True,
        [],
        torch.zeros(3, 3),
        lambda: None,
        lambda d: torch.nn.Linear(d, 2),
        lambda d, C: "x",
        torch.nn.Conv2d,
    ],
)
def test_what_makes_no_network_is_refused(wrong: Any, tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    data = [TensorDataset(torch.randn(6, 4, generator=draw), torch.arange(6) % 2) for _ in range(5)]
    hmtl.Federation(torch.nn.Linear(4, 2), data, output_dir=tmp_path).train(1)
    with pytest.raises(ConfigError, match="model") as refused:
        hmtl.load_run(tmp_path, wrong).model("user 0")
    assert "\n" not in str(refused.value)


def test_what_does_not_fit_is_named(configure: Configure, tmp_path: Path) -> None:
    write(tmp_path, "two")
    where = ("dataset=files", f"dataset.path={tmp_path}/train", "dataset.test_fraction=0", "topology=any_r", "H=3")
    with pytest.raises(DataError, match=r"models\.npz does not hold the models"):
        hmtl.load_run(tmp_path)
    train(configure(*where, "r=2", "rounds=2", "logger=none"))
    models = hmtl.load_run(tmp_path)
    with pytest.raises(DataError, match=r"no user 'town9' among the 4. Did you mean 'town \d'"):
        models.predict("town9", np.ones((1, 4)))
    with pytest.raises(DataError, match=r"shape \[2, 5\], not \[n, d\] with d=4"):
        models.predict("town 1", np.ones((2, 5)))
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(DataError, match=r"x is NaN or infinite in row 3 \(from 0\)"):
            models.predict("town 1", [[1, 1, 1, 1]] * 3 + [[1, 1, bad, 1]] * 2)
    text = np.array([["a", 1, 1, 1]], object)
    for rows in ([["a"] * 4], text, [[1, 1, 1, 1], [1]], [[1j] * 4], np.ones((2, 4)).astype(str)):
        with pytest.raises(
            DataError, match=r"x is not an array of numbers \(.*\)\. Give rows of equal length, of numbers"
        ):
            models.predict("town 1", rows)
    for user in ("zzz", 4):
        with pytest.raises(DataError, match=rf"no user {user!r} among the 4. Give one of town 0, town 1, .*"):
            models.predict(user, np.ones((1, 4)))  # type: ignore[arg-type]
    assert len(repr(models)) < 150
    with pytest.raises(ConfigError, match="linear models"):
        hmtl.load_run(tmp_path, torch.nn.Linear)
    assert models.predict("town 1", np.empty((0, 4))).shape == (0,)
    x = np.random.default_rng(0).normal(size=(9, 4))
    x[:, 1] *= 1e3
    table = pd.DataFrame(x, columns=list(models.columns)).assign(beside="x")
    for order in (["beside", *models.columns], [*models.columns[::-1], "beside"]):
        assert models.scores("town 1", table[order]).tolist() == models.scores("town 1", x).tolist()
    for same in (x[:, ::-1].copy()[:, ::-1], x.astype(">f8"), np.asfortranarray(x), x.astype(object)):
        assert models.scores("town 1", same).tolist() == models.scores("town 1", x).tolist()
    with pytest.raises(DataError, match=r"x has no column b"):
        models.predict("town 1", table.drop(columns=["b", "same"]))
    with np.load(tmp_path / "models.npz") as file:
        arrays = dict(file)
    for name in ("W", "mean", "scale", "target_mean"):
        for other in (arrays[name][:-1], arrays[name][..., None], np.full_like(arrays[name], np.nan)):
            save(tmp_path / "models.npz", {**arrays, name: other})
            with pytest.raises(DataError, match=rf"does not hold the models of a run \(({name}|index) "):
                hmtl.load_run(tmp_path)
    np.savez(tmp_path / "models.npz", **arrays)
    with pytest.raises(DataError, match=r"does not hold the models .* or it has none\)\. Give"):
        hmtl.load_run(tmp_path)
    (tmp_path / "models.npz").write_bytes((tmp_path / "models.npz").read_bytes()[:300])
    with pytest.raises(DataError, match="does not hold the models"):
        hmtl.load_run(tmp_path)
    train(configure(*where, "r=2", "rounds=2", "logger=none", "algorithm=fedu"))
    with pytest.raises(ConfigError, match="holds networks, but not the code"):
        hmtl.load_run(tmp_path)
    with pytest.raises(ConfigError, match="model creates a network"):
        hmtl.load_run(tmp_path, hmtl_mlp).predict("town 1", np.ones((1, 4)))


@pytest.mark.parametrize("columns", [(), ("age", "größe")])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_an_error_and_never_another_model(
    tmp_path: Path, columns: tuple[str, ...], place: float, bit: int
) -> None:
    """One error in one line; numpy reads the file as before."""
    path, W = tmp_path / "models.npz", np.arange(6.0).reshape(2, 3)
    Models(("a", "b"), W, np.zeros((2, 2)), np.ones((2, 2)), np.zeros(2), True, np.array([]), 0, (2,), columns).save(
        path
    )
    assert np.array_equal(np.load(path)["W"], W)
    assert hmtl.load_run(path).columns == columns
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(DataError, match="does not hold the models") as error:
        hmtl.load_run(path)
    assert "\n" not in str(error.value)


def hmtl_mlp(d: int, C: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(d, 7), torch.nn.Linear(7, C))


@pytest.mark.parametrize("algorithm", ["mocha", pytest.param("fedavg", marks=pytest.mark.slow)])
def test_without_tests_there_is_no_test_error(
    configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str], algorithm: str
) -> None:
    """Neither NaN nor a line: not in the metrics, not in the summary, not on the console."""
    write(tmp_path, "two")
    where = ("dataset=files", f"dataset.path={tmp_path}/train", "dataset.test_fraction=0", "topology=any_r", "H=3")
    train(configure(*where, "r=2", "rounds=2", f"algorithm={algorithm}"))
    assert "test" not in (tmp_path / "metrics.csv").read_text().splitlines()[0]
    assert not [key for key in json.loads((tmp_path / "summary.json").read_text()) if "test" in key]
    out = capsys.readouterr().out
    assert "test error" not in out
    assert "training error" in out


def test_scaling_over_all_rows_is_counted_as_set_up(configure: Configure, tmp_path: Path) -> None:
    """1 + 2d float64 for the features from each user to each relay that hears it, and 3 for y."""
    write(tmp_path, "numbers")
    where = (
        "dataset=files",
        f"dataset.path={tmp_path}/train",
        "dataset.kind=regression",
        "loss=squared",
        "logger=none",
    )
    bits = {}
    for standardize in ("task", "all"):
        for center in ("task", "all"):
            chosen = (f"dataset.standardize={standardize}", f"dataset.center={center}")
            run = build(configure(*where, *chosen, "topology=any_r", "H=3", "r=2", "rounds=1"))
            run.trainer.fit()
            ledger = run.communicator.ledger
            bits[standardize, center] = ledger.bits("users_to_relays", round="setup").total
            assert (ledger.bits("relays_to_users", round="setup").total > 0) is ("all" in (standardize, center))
    users, number = 4, 64
    assert bits["task", "task"] == 0
    assert bits["all", "task"] == users * number * (1 + 2 * 4)
    assert bits["task", "all"] == users * number * 3
    assert bits["all", "all"] == bits["all", "task"] + bits["task", "all"]


def test_fitting_features_of_raw_tables_is_counted_as_set_up(configure: Configure, tmp_path: Path) -> None:
    """Bytes from each user, as many as the longest has: 6 kinds of columns; 4 counts, 4 sums and its categories."""
    table = mixed_table(0)
    table.to_csv(tmp_path / "own.csv", index=False)
    where = (f"dataset.path={tmp_path}/own.csv", "dataset.test_fraction=0", "dataset.standardize=none", "logger=none")
    run = build(configure("dataset=files", *where, *SETTINGS, "topology=any_r", "H=3", "r=2", "rounds=1"))
    run.trainer.fit()
    nbytes = []
    for _, own in pd.read_csv(tmp_path / "own.csv").groupby(table["who"]):
        numbers = own[["age", "height", "weight", "income"]]
        known = {name: sorted(set(own[name].fillna(""))) for name in ("city", "plan")}
        facts = [numbers.count().tolist(), [np.nansum(x) for x in numbers.T.to_numpy()], known]
        nbytes.append(len(json.dumps(facts, ensure_ascii=False, separators=(",", ":")).encode()))
    bits = run.communicator.ledger.bits("users_to_relays", round="setup").total
    assert bits == len(nbytes) * 64 * (math.ceil(len("[0,0,0,0,1,1]") / 8) + math.ceil(max(nbytes) / 8))
