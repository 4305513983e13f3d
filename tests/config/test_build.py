"""Checks of a whole configuration: ranges, settings without an effect, and parts that do not go together."""

import pytest

from hmtl.config.build import build, check
from hmtl.errors import HmtlError

SMALL = ("dataset.rows_per_user=20", "logger=none")
ROOT = {  # words of the command line, and the setting that the error names
    "rounds=0": "rounds",
    "checkpoint_every=0": "checkpoint_every",
    "evaluate_every=0": "evaluate_every",
    "seed=-1": "seed",
    "gap_tolerance=nan": "gap_tolerance",
    "r=nan": "r",
    "K=100000000000000000000": "K",
    "resume=": "resume",
    "+tune.fold=3": "tune.fold",
    "+solver.pases=3": "solver.pases",
    "+logger={foo:3}": "logger.foo",
    "topology=file": "topology.path",
    "aggregators=[null]": "communicator.aggregators",
    "scheme=paper communicator=uncoded": "scheme",
    "aggregators=[0] communicator=sums": "aggregators",
    "lam=0.2 regularizer.lam=0.1": "lam",
    "d=0.2": "d",
    "algorithm=fedavg regularizer=graph": "regularizer",
    "algorithm=local regularizer=mean": "regularizer",
}


@pytest.mark.parametrize("words", ROOT)
def test_what_is_wrong_by_itself_is_found_before_data_are_read(configure, words: str) -> None:
    with pytest.raises(HmtlError) as error:
        check(configure(*words.split()))
    assert str(error.value).startswith(ROOT[words])
    assert "\n" not in str(error.value)


BUILT = {
    "K=null": "K",
    "r=9": "r",
    "H=1000000 r=1": "H",
    "aggregators=[0,7]": "aggregators",
    "scheme=magic": "scheme",
    "wire=float8": "wire",
    "device=meta": "device",
    "fraction_bits=61": "fraction_bits",
    "network.W1=1e-320": "network.W1",
    "dataset.test_fraction=1": "test_fraction",
    "solver.passes=0": "passes",
    "algorithm.rounds=0": "rounds",
    "lam=-1": "lam",
    "participation.dropout=2": "dropout",
    "participation.relays=[[3,9]]": "relay",
    "topology=geometric r=2": "r",
    "partition=dirichlet": "partition",
    "solver=sgd": "solver",
    "algorithm=fedu solver=sdca": "solver",
    "communicator=sums": "communicator",
    "engine=torch_distributed": "engine",
}


@pytest.mark.parametrize("words", BUILT)
def test_what_parts_refuse_is_one_line_that_names_it(configure, words: str, monkeypatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(HmtlError) as error:
        build(configure(*SMALL, *words.split()))
    assert BUILT[words] in str(error.value)
    assert "\n" not in str(error.value)


def test_defaults_are_in_conf_alone(configure) -> None:
    from omegaconf import OmegaConf

    for name in ("config", "plan"):
        assert not {key for key in OmegaConf.missing_keys(configure(name=name)) if "." not in key}
