"""Processes that meet, and processes that never arrive."""

import logging
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from hmtl.distributed import meeting as module
from hmtl.distributed.launching import SECRET, free_port
from hmtl.distributed.meeting import VARIABLES, Meeting
from hmtl.distributed.placement import names_of
from hmtl.errors import ConfigError, EngineError


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    port = free_port()
    for name, value in zip(VARIABLES, ("0", "3", "127.0.0.1", str(port)), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(SECRET, "a secret")
    return port


def others(monkeypatch: pytest.MonkeyPatch, first: Meeting) -> list[Meeting]:
    """All processes, each with its own end of the store that the first one serves."""
    found = [first]
    assert first.store
    for rank in ("1", "2"):
        monkeypatch.setenv("RANK", rank)
        found.append(Meeting(60))
        assert found[-1].store
    return found


def test_without_the_environment_of_a_launcher_the_error_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="RANK is not set"):
        Meeting(60)


def test_the_store_listens_on_the_given_address_alone(port: int) -> None:
    meeting = Meeting(60)
    meeting.store.set("key", "value")
    socket.create_connection(("127.0.0.1", port)).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port))


def test_all_trust_the_certificates_of_all_and_no_key_is_in_the_store(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, stored = names_of(3, 1), {}
    meetings = others(monkeypatch, Meeting(60))
    for meeting in meetings:
        put = meeting._put
        meeting._put = lambda key, value, put=put: (stored.update({key: value}), put(key, value))  # type: ignore
    with ThreadPoolExecutor(3) as pool:
        parties = list(pool.map(lambda meeting: meeting.party(names, ""), meetings))
        addresses = list(pool.map(lambda n: meetings[n].addresses(parties[n], 7000 + n if n < 2 else 0), range(3)))
    assert len({party.credentials.key for party in parties}) == 3
    assert len({party.credentials.trusted for party in parties}) == 1
    assert all(party.credentials.certificate in parties[0].credentials.trusted for party in parties)
    assert not any(b"PRIVATE" in value for value in stored.values())
    assert len(stored) == 5
    assert addresses == [{"server": "127.0.0.1:7000", "relay 0": "127.0.0.1:7001"}] * 3


def test_what_is_not_signed_with_the_secret_is_refused(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    names = names_of(3, 1)
    first, stranger, _ = others(monkeypatch, Meeting(60))
    stranger._secret = b"another"
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(meeting.party, names, "") for meeting in (first, stranger)]
        for future in futures:
            with pytest.raises(EngineError, match=SECRET):
                future.result()


def test_a_process_that_never_arrives_is_an_error(
    port: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "REMIND", 0.1)
    monkeypatch.setattr(module, "START", 0.5)
    with caplog.at_level(logging.WARNING), pytest.raises(EngineError, match="relay 0"):
        Meeting(60).party(names_of(3, 1), "")
    assert "waits for the certificate of relay 0" in caplog.text
