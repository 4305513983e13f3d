"""Processes that meet, and processes that never arrive."""

import logging
import socket
from contextlib import ExitStack
from datetime import timedelta

import pytest

from hmtl.distributed import rendezvous as module
from hmtl.distributed.connections import connect
from hmtl.distributed.launching import free_port
from hmtl.distributed.rendezvous import VARIABLES, Rendezvous
from hmtl.errors import ConfigError, DataError, EngineError


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    port = free_port()
    for name, value in zip(VARIABLES, ("0", "1", "127.0.0.1", str(port)), strict=True):
        monkeypatch.setenv(name, value)
    return port


def test_without_the_environment_of_a_launcher_the_error_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="RANK is not set"):
        Rendezvous(60)


def test_the_store_listens_on_the_given_address_alone(port: int) -> None:
    rendezvous = Rendezvous(60)
    rendezvous.store.set("key", "value")
    socket.create_connection(("127.0.0.1", port)).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port))


def test_the_error_of_a_block_is_raised_at_the_barrier(port: int) -> None:
    rendezvous = Rendezvous(60)
    with rendezvous.barrier():
        pass
    with pytest.raises(DataError, match="damaged"), rendezvous.barrier():
        raise DataError("damaged")


@pytest.mark.slow
@pytest.mark.parametrize("when", ["barrier", "connect"])
def test_a_process_that_never_arrives_is_an_error(
    port: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, when: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(module, "REMIND", 0.2)
    monkeypatch.setattr(module, "START", timedelta(seconds=0.5))
    rendezvous = Rendezvous(60)
    rendezvous.wait = timedelta(seconds=1)
    with caplog.at_level(logging.WARNING), pytest.raises(EngineError), ExitStack() as stack:
        connect(rendezvous) if when == "connect" else stack.enter_context(rendezvous.barrier())
    assert ("waits for process 1 of 2" in caplog.text) == (when == "barrier")
