"""A run whose nodes are actors of Ray ends as one in one process, also if the process of a host is killed."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cells import SMALL, Trained, train, trained
from omegaconf import DictConfig

from hmtl.config.build import Run
from hmtl.distributed.launching import free_port
from hmtl.distributed.ray import RayCluster
from hmtl.errors import ConfigError, EngineError

ray = pytest.importorskip("ray")


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A cluster of this machine, which all runs use."""
    variables = {"PYTHONPATH": os.environ.get("PYTHONPATH", ""), "OMP_NUM_THREADS": "1"}
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", runtime_env={"env_vars": variables})
    yield
    ray.shutdown()


def train_by_actors(cfg: DictConfig, prepare: Callable[[Run], object] = bool, **settings: Any) -> Trained:
    cfg = cfg.copy()
    cfg.engine = {"_target_": "hmtl.distributed.ray.RayCluster", "hosts": 2, "seconds": 30, **settings}
    engines: list[RayCluster] = []

    def begin(run: Run) -> None:
        engines.append(run.engine)  # type: ignore[arg-type]
        prepare(run)

    try:
        return trained(cfg, begin)
    finally:
        for engine in engines:
            engine.close()


@pytest.mark.slow
def test_nodes_whose_resources_no_machine_has_are_refused(configure: Callable[..., DictConfig], cluster: None) -> None:
    with pytest.raises(ConfigError, match=r"resources host-0, host-1, relay-0.*resources=false"):
        train_by_actors(configure(*SMALL), resources=True)


@pytest.mark.slow
def test_actors_learn_what_one_process_does_and_a_host_that_is_killed_in_a_turn_comes_back(
    configure: Callable[..., DictConfig], cluster: None, caplog: pytest.LogCaptureFixture
) -> None:
    """All rounds since the last checkpoint are played again, with the same numbers as by one process."""
    words = ("aggregators=all", "loss=smooth_hinge", "algorithm.omega_every=0", "rounds=25", "checkpoint_every=5")
    cfg = configure(*SMALL, *words)

    def prepare(run: Run) -> None:
        engine: Any = run.engine
        pid = ray.get(engine._actors["host 1"].__ray_call__.remote(lambda _: os.getpid()))
        call, left = engine.call, {3, 10}

        def call_and_kill(calls: Any, *rest: Any) -> Any:
            name, values = calls.get("host 1", ("", {}))
            round = values["round"] if name == "play" else -1
            if round in left:
                left.remove(round)
                if round == 3:
                    os.kill(pid, signal.SIGKILL)
                while round == 10 and engine._lost and not engine._back:
                    time.sleep(0.05)
                    engine._look()
            return call(calls, *rest)

        engine.call = call_and_kill

    rows, alone = train_by_actors(cfg, prepare).rows, train(cfg).rows
    assert rows[:3] == [pytest.approx(row, rel=0, abs=0, nan_ok=True) for row in alone[:3]]
    assert [row["round"] for row in rows] == list(range(25))
    assert "goes back to the last checkpoint" in caplog.text
    assert {row["users"] for row in rows} == {10}, "no round that counts lacks the users of a host"
    assert all(row["gap"] >= -1e-9 for row in rows)
    assert rows[-1]["primal"] == pytest.approx(alone[-1]["primal"], rel=1e-6)


def test_more_hosts_than_a_machine_can_start_are_refused_at_once() -> None:
    with pytest.raises(ConfigError, match=r"engine\.hosts"):
        RayCluster(hosts=1 + 16 * (os.cpu_count() or 1))
    RayCluster(hosts=1 + 16 * (os.cpu_count() or 1), address="auto")


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "[::1]:{}", "nowhere.invalid:{}"])
def test_a_cluster_that_cannot_be_reached_is_an_error_soon(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("it would try for minutes"))
    begin, place = time.monotonic(), address.format(free_port())
    with pytest.raises(EngineError, match="cannot be reached"):
        RayCluster(address=place).start(bool, bool)  # type: ignore[arg-type]
    assert time.monotonic() - begin < 30
    assert place in caplog.messages[0], "before it tries"
