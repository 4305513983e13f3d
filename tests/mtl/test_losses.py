"""Every loss: its conjugate by Fenchel–Young, its coordinate step by brute force, logistic to 12 digits."""

from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hmtl.errors import ConfigError
from hmtl.mtl import Hinge, Logistic, SmoothHinge, Squared

LOSSES = [Hinge(), SmoothHinge(0.5), SmoothHinge(2.0), Squared(), Logistic()]
GRID = np.linspace(-20, 20, 4001)  # predictions; holds the kinks at ±1
finite = st.floats(-5, 5)
label = st.sampled_from([-1.0, 1.0])
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=["hinge", "smooth", "smoother", "squared", "logistic"])


def call(function, *numbers):
    return float(function(*(torch.tensor(x, dtype=torch.float64) for x in numbers)))


def test_hinge_values():
    for y, p, value in [(1, 0, 1), (1, 1, 0), (1, 3, 0), (-1, 0.5, 1.5), (-1, -2, 0)]:
        assert call(Hinge(), p, y) == value


def test_other_values():
    smooth, log2 = SmoothHinge(0.5), np.log(2)
    for y, p, value in [(1, 1, 0), (1, 0.75, 0.0625), (1, 0.5, 0.25), (-1, 1, 1.75), (-1, -1.5, 0)]:
        assert call(smooth, p, y) == pytest.approx(value)
    assert [call(Squared(), 3, -1), call(Squared(), 2, 2)] == [8, 0]
    assert [call(Logistic(), 0, 1), call(Logistic(), 800, -1)] == pytest.approx([log2, 800])
    assert call(Logistic(), 30, 1) == pytest.approx(np.exp(-30), rel=1e-12)
    assert call(Logistic().conjugate, 0.5, 1) == pytest.approx(-log2)
    for a, y in [(0, 1), (1, 1), (0, -1), (-1, -1)]:
        assert call(Logistic().conjugate, a, y) == 0


@every_loss
@given(p=finite, other=finite, y=label)
@settings(deadline=None, max_examples=50)
def test_fenchel_young(loss, p, other, y):
    """ℓ(p) + ℓ*(−a) ≥ −a·p, with equality where −a is the slope of ℓ at p."""
    at = torch.tensor(p, dtype=torch.float64, requires_grad=True)
    loss(at, torch.tensor(y, dtype=torch.float64)).backward()
    a = -float(at.grad)
    conjugate = call(loss.conjugate, a, y)
    assert call(loss, p, y) + conjugate == pytest.approx(-a * p, abs=1e-11)
    assert call(loss, other, y) + conjugate >= -a * other - 1e-11


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


@given(
    y=label,
    b=st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0, 1e-300, 1e-9, 1 - 1e-9])),
    m=st.one_of(st.floats(-50, 50), st.floats(-1, 1)),
    log_q=st.floats(-9, 9),
)
@settings(deadline=None, max_examples=40)
def test_logistic_step_to_the_last_digits(y, b, m, log_q):
    """The root of log(1/b′ − 1) − m − q(b′ − b), by bisection with 60 digits."""
    q = 10.0**log_q
    with localcontext(prec=60):
        b_, m_, q_ = Decimal(b), Decimal(m), Decimal(q)
        low, high = max(m_ - q_, Decimal(-999)), min(m_ + q_, Decimal(999))  # of t = log(1/b′ − 1)
        for _ in range(120):
            t = (low + high) / 2
            low, high = (t, high) if t - m_ - q_ * (1 / (1 + t.exp()) - b_) < 0 else (low, t)
        want = float(1 / (1 + low.exp()))
    got = y * call(Logistic().coordinate_step, b * y, m * y, y, q)
    assert got == pytest.approx(want, rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("width", [0.0, -1.0, np.nan, np.inf])
def test_width_must_be_positive(width):
    with pytest.raises(ConfigError, match="width"):
        SmoothHinge(width)


def test_error_counts_wrong_signs_and_zero():
    prediction, y = torch.tensor([2.0, -0.1, 0.0, -3.0]), torch.tensor([1.0, 1.0, 1.0, -1.0])
    assert Hinge().error(prediction, y).tolist() == [0, 1, 1, 0]
    assert Squared().error(torch.tensor([2.0]), torch.tensor([-1.0])).tolist() == [9]
