"""Losses: the contract, values by hand, and the logistic step to 12 digits."""

from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hmtl.errors import ConfigError
from hmtl.mtl import CrossEntropy, Hinge, Logistic, OneVsRest, SmoothHinge, Squared
from hmtl.testing import DualLossContract, LossContract

label = st.sampled_from([-1.0, 1.0])


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


class TestOneVsRest(LossContract):
    def make(self):
        return OneVsRest(Logistic())


class TestHinge(DualLossContract):
    def make(self):
        return Hinge()


class TestSmoothHinge(DualLossContract):
    def make(self):
        return SmoothHinge(0.5)


class TestSmootherHinge(DualLossContract):
    def make(self):
        return SmoothHinge(2.0)


class TestSquared(DualLossContract):
    def make(self):
        return Squared()


class TestLogistic(DualLossContract):
    def make(self):
        return Logistic()


class TestCrossEntropy(LossContract):
    def make(self):
        return CrossEntropy()


@given(b=st.floats(0, 1), y=label)
def test_a_row_of_zeros(b, y):
    """The best b is 1."""
    assert call(Hinge().coordinate_step, b * y, 0.0, y, 0.0) == y


@given(
    y=label,
    b=st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0, 1e-300, 1e-9, 1 - 1e-9])),
    m=st.one_of(st.floats(-50, 50), st.floats(-1, 1)),
    log_q=st.floats(-9, 9),
)
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
