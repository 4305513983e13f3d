"""A loss of your own on modules that return more than their predictions: what it gets is decided in the first batch."""

from operator import attrgetter, itemgetter
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from hmtl.mtl import TorchLoss

LOGITS, Y = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)), torch.arange(7) % 3
OUTPUTS = {
    "tuple": (LOGITS, LOGITS[:, :1]),
    "dictionary": {"logits": LOGITS, "hidden": LOGITS.exp()},
    "object": SimpleNamespace(logits=LOGITS),
}
READ = {"tuple": itemgetter(0), "dictionary": itemgetter("logits"), "object": attrgetter("logits")}


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("wants_all", [True, False])
def test_what_a_function_gets_is_decided_once(output, wants_all):
    got = []

    def function(given, y):
        got.append(given)
        return F.cross_entropy(READ[output](given) if wants_all else given, y)

    loss = TorchLoss(function)
    assert [float(loss.of_batch(OUTPUTS[output], Y)) for _ in range(5)] == [float(F.cross_entropy(LOGITS, Y))] * 5
    assert len(got) == (5 if wants_all else 6)
    assert all(each is (OUTPUTS[output] if wants_all else LOGITS) for each in got[-5:])


@pytest.mark.parametrize("wants_all", [True, False])
def test_later_errors_are_the_functions_own(wants_all):
    """A function that fails later is not tried in another way, which could hide what went wrong."""
    calls = []

    def function(output, y):
        calls.append(output)
        scores = output[0] if wants_all else output.flatten()
        if len(y) < 7:
            raise ValueError("too few")
        return scores.sum()

    loss = TorchLoss(function)
    loss.of_batch(OUTPUTS["tuple"], Y)
    n = len(calls)
    with pytest.raises(ValueError, match="too few"):
        loss.of_batch(OUTPUTS["tuple"], Y[:2])
    assert len(calls) == n + 1


def test_a_function_that_fails_in_both_ways_says_why_it_fails_on_all():
    def function(output, y):
        raise ValueError(type(output).__name__)

    for _ in range(2):
        with pytest.raises(ValueError, match="tuple"):
            TorchLoss(function).of_batch(OUTPUTS["tuple"], Y)
