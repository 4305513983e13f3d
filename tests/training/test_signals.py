"""Signals are held until the work is done, once, in the main thread, and act as usual afterwards."""

import signal
import threading

import pytest

from hmtl.training.signals import catch_signals


@pytest.fixture
def usual():
    """SIGTERM acts by telling its number here, SIGINT as in Python, which ignores it where a shell's job does."""
    told = []
    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda signum, frame: told.append(signum)),
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
    }
    yield told
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_is_held_the_second_acts(usual, number):
    with catch_signals() as caught:
        assert caught == []
        signal.raise_signal(number)
        assert (caught, usual) == ([number], [])
        signal.raise_signal(signal.SIGTERM)
        assert usual == [signal.SIGTERM]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert caught == [number]


def test_afterwards_all_is_as_before(usual):
    with pytest.raises(ZeroDivisionError), catch_signals():
        _ = 1 / 0
    signal.raise_signal(signal.SIGTERM)
    assert usual == [signal.SIGTERM]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_in_another_thread_nothing_is_caught(usual):
    def work():
        with catch_signals() as caught:
            signal.raise_signal(signal.SIGTERM)
            found.append(list(caught))

    found = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [[]]
    assert usual == [signal.SIGTERM]
