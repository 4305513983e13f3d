"""Checks of a whole configuration: ranges, settings without an effect, and parts that do not go together."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
from omegaconf import OmegaConf

from hmtl.communication.secure.neighbors import Secure
from hmtl.config.build import agreed, build, check, conf_dir
from hmtl.data import Task
from hmtl.errors import ConfigError, HmtlError

SMALL = ("dataset.rows_per_user=20", "logger=none")
ROOT = {  # words of the command line, and the setting that the error names
    "rounds=0": "rounds",
    "seed=-1": "seed",
    "gap_tolerance=nan": "gap_tolerance",
    "r=nan": "r",
    "resume=": "resume",
    "+tune.fold=3": "tune.fold",
    "+logger={foo:3}": "logger.foo",
    "participation=speeds": "participation.speeds",
    "scheme=paper communicator=uncoded": "scheme",
    "sums=whole": "sums",
    "lam=0.2 regularizer.lam=0.1": "lam",
    "d=0.2": "d",
    "algorithm=fedavg regularizer=graph": "regularizer",
}
ROOT_MORE = {
    "checkpoint_every=0": "checkpoint_every",
    "evaluate_every=0": "evaluate_every",
    "evaluate=[train]": "evaluate",
    "K=100000000000000000000": "K",
    "+solver.pases=3": "solver.pases",
    "topology=file": "topology.path",
    "dataset=files": "dataset.path",
    "aggregators=[null]": "communicator.aggregators",
    "aggregators=[0] communicator=uncoded": "aggregators",
    "secure=true": "secure",
    "algorithm=local regularizer=mean": "regularizer",
}


@pytest.mark.parametrize(
    ("words", "name"), [*ROOT.items(), *(pytest.param(*case, marks=pytest.mark.slow) for case in ROOT_MORE.items())]
)
def test_what_is_wrong_by_itself_is_found_before_data_are_read(configure, words: str, name: str) -> None:
    with pytest.raises(HmtlError) as error:
        check(configure(*words.split()))
    assert str(error.value).startswith(name)
    assert "\n" not in str(error.value)


def test_the_smallest_value_of_each_setting_is_accepted(configure) -> None:
    check(configure("rounds=1", "checkpoint_every=1", "evaluate_every=1", "seed=0", "gap_tolerance=0"))
    check(configure("V_bits=1", name="plan"))


def test_nodes_agree_on_the_version_and_on_settings_of_all_nodes(configure, monkeypatch) -> None:
    """Nodes that do not are refused, see tests/distributed/test_dialing.py."""
    before = agreed(configure())
    assert agreed(configure("device=meta")) == before
    assert agreed(configure("lam=0.5")) != before
    monkeypatch.setattr("hmtl.config.build.distributions", lambda name: [SimpleNamespace(version="0.0.1")])
    assert agreed(configure()) != before


BUILT = {
    "K=null": "K",
    "r=9": "r",
    "H=0": "H",
    "aggregators=some": "aggregators",
    "aggregators=[a]": "aggregators",
    "scheme=magic": "scheme",
    "wire=float8": "wire",
    "device=meta": "device",
    "network.W1=1e-320": "network.W1",
    "network.medium=smoke": "medium",
    "K=200 dataset.rows_per_user=500": "rows_per_user",
    "dataset.test_fraction=1": "test_fraction",
    "algorithm.rounds=0": "rounds",
    "lam=0": "lam",
    "algorithm=fedprox algorithm.mu=-1": "mu",
    "participation.dropout=2": "dropout",
    "participation.relays=[[3,9]]": "relay",
    "communicator=sums": "communicator=coded",
    "communicator=sums algorithm=fedavg secure=true aggregators=[0,1]": "aggregators",
    "communicator=sums algorithm=fedavg secure=true communicator.colluding=1": "colluding",
    "communicator=sums algorithm=fedavg secure=true communicator.least=21": "least",
    "communicator=sums algorithm=fedavg secure=true participation=fraction": "secure",  # 2 users in a round
    "communicator=sums algorithm=fedavg communicator.colluding=0.2": "secure=true",
    "engine=site": "hmtl.launch",
    "engine.seconds=0 engine=ray": "engine.seconds",
}
BUILT_MORE = {
    "dataset=mnist dataset.path=/nowhere dataset.download=false": "/nowhere",
    "algorithm=ditto lam=100 solver.step=0.03": "lam",
    "aggregators=[0,7]": "aggregators",
    "aggregators=[server,server]": "aggregators",
    "communicator=sums algorithm=fedavg wire=float32": "wire",
    "solver=sgd": "solver",
    "algorithm=fedu solver=sdca": "solver",
    "reduction=max": "reduction",
    "H=1000000 r=1": "H",
    "communicator=sums secure=true": "communicator=coded",  # needs all IVs
    "K=0": "K",
    "aggregators=3": "aggregators",
    "fraction_bits=61": "fraction_bits",
    "solver.passes=0": "passes",
    "topology=geometric r=2": "r",
    "partition=dirichlet": "partition",
    "communicator=sums regularizer=ridge": "algorithm=local",
    "communicator=sums algorithm=fedavg sums=half": "sums",
    "communicator=sums algorithm=fedavg aggregators=[0]": "aggregators",
}


@pytest.mark.parametrize(
    ("words", "name"),
    [*BUILT.items(), *(pytest.param(*case, marks=pytest.mark.slow) for case in BUILT_MORE.items())],
)
def test_what_parts_refuse_is_one_line_that_names_it(configure, words: str, name: str, monkeypatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(HmtlError) as error:
        build(configure(*SMALL, *words.split()))
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_coupled_and_shared_layers_travel_in_secure_sums(configure) -> None:
    words = "algorithm=fedper algorithm.coupled=true regularizer=mean communicator=sums secure=true"
    training = build(configure(*SMALL, *words.split(), "communicator.colluding=0.2", "metrics=sums"))
    assert training.communicator.recipe.secure == Secure(0.2)


@pytest.mark.parametrize(("fraction", "sampled"), [("0.5", 10), ("1.0", None)])
def test_secure_sums_know_how_many_users_are_sampled(configure, fraction: str, sampled: int | None) -> None:
    words = "algorithm=fedper algorithm.coupled=true regularizer=mean communicator=sums secure=true"
    sample = ("participation=fraction", f"participation.fraction={fraction}")
    communicator = build(configure(*SMALL, *words.split(), *sample)).communicator
    assert communicator.recipe.secure == Secure(sampled=sampled)


PARTS = sorted((path.parent.name, path.stem) for path in conf_dir().glob("*/*.yaml") if path.stem != "own")
NEEDED = {
    "file": "topology.path=nowhere",
    "files": "dataset.path=nowhere",
    "torchvision": "dataset.name=FakeData",
    "speeds": "participation.speeds=[1]",
    "site": "engine.deployment=nowhere",
    "links": "network.links=nowhere",
}


FIRST = dict(reversed(PARTS))


@pytest.mark.parametrize(
    ("group", "choice"),
    [
        pytest.param(group, choice, marks=[] if FIRST[group] == choice else pytest.mark.slow)
        for group, choice in PARTS
        if group not in ("experiment", "logger")
    ],
)
def test_a_word_where_a_number_belongs(configure, group: str, choice: str) -> None:
    """Each numeric setting of each part is named."""
    cfg = configure(f"{group}={choice}", *NEEDED.get(choice, "seed=0").split(), "logger=none")
    for key in [key for key, value in cfg[group].items() if isinstance(value, int | float)]:
        wrong = copy.deepcopy(cfg)
        wrong[group][key] = "abc"
        with pytest.raises(ConfigError, match=f"{key}=abc"):
            check(wrong)


def test_defaults_are_in_conf_alone(configure) -> None:
    for name in ("config", "plan"):
        assert not {key for key in OmegaConf.missing_keys(configure(name=name)) if "." not in key}


def one_label_in_three() -> tuple[Task, ...]:
    """Tasks of a function that takes no argument, with integers as labels."""
    x = np.random.default_rng(0).normal(size=(12, 2))
    return tuple(Task(name, x + k, np.arange(12) % 3, x, np.arange(12) % 3) for k, name in enumerate("abc"))


def test_a_data_function_gets_only_what_it_takes(configure) -> None:
    cfg = configure("dataset=files", "topology=any_r", "r=2", "H=3", "logger=none")
    cfg.dataset = {"_target_": f"{__name__}.one_label_in_three"}
    assert [(task.classes, task.labels) for task in build(cfg).algorithm.problem.tasks] == [(3, (0, 1, 2))] * 3
