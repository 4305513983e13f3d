"""Every loss: its conjugate by Fenchel–Young, its coordinate step by brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hmtl.mtl import Hinge

LOSSES = [Hinge()]
GRID = np.linspace(-20, 20, 4001)  # predictions; holds the kinks at ±1
finite = st.floats(-5, 5)
label = st.sampled_from([-1.0, 1.0])
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)


def call(function, *numbers):
    return float(function(*(torch.tensor(x, dtype=torch.float64) for x in numbers)))


def test_hinge_values():
    for y, p, value in [(1, 0, 1), (1, 1, 0), (1, 3, 0), (-1, 0.5, 1.5), (-1, -2, 0)]:
        assert call(Hinge(), p, y) == value


@every_loss
@given(hundredths=st.integers(-500, 500), y=label)
@settings(deadline=None, max_examples=50)
def test_conjugate_is_the_supremum(loss, hundredths, y):
    a = hundredths / 100  # no closer to the border of the feasible set than the grid can tell
    values = -a * GRID - loss(torch.from_numpy(GRID), torch.tensor(y)).numpy()
    conjugate = call(loss.conjugate, a, y)
    if np.isfinite(conjugate):
        assert conjugate == pytest.approx(values.max(), abs=1e-4)
    else:  # it still grows where the grid ends
        assert values.argmax() in (0, len(GRID) - 1)


@every_loss
@given(b=st.floats(0, 1), p=finite, y=label, q=st.one_of(st.floats(1e-3, 50), st.just(0.0)))
@settings(deadline=None, max_examples=100)
def test_coordinate_step_beats_every_other(loss, b, p, y, q):
    a, p = b * y, p if q else 0.0
    others = np.linspace(-1, 1, 2001)
    conjugate = loss.conjugate(torch.from_numpy(others), torch.tensor(y)).numpy()

    def value(new, conjugate):
        return -conjugate - (new - a) * p - q / 2 * (new - a) ** 2

    new = call(loss.coordinate_step, a, p, y, q)
    assert value(new, call(loss.conjugate, new, y)) >= value(others, conjugate).max() - 1e-12
    if q == 0 and isinstance(loss, Hinge):
        assert new == y  # a row of zeros: b = 1


def test_error_counts_wrong_signs_and_zero():
    prediction, y = torch.tensor([2.0, -0.1, 0.0, -3.0]), torch.tensor([1.0, 1.0, 1.0, -1.0])
    assert Hinge().error(prediction, y).tolist() == [0, 1, 1, 0]
