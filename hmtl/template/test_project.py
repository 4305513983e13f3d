"""The data and the module fit each other, and training lowers the error."""

from functools import partial

from data import users
from model import network

from hmtl import Federation


def test_a_round():
    federation = Federation(partial(network, 8, 3), users(), algorithm="fedper")
    assert len(federation.train(rounds=1)) == 12
    assert federation.history[0]["test_error"] < 2 / 3  # that of a guess
