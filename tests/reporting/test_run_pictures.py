"""Pictures of a run and of a cross-validation: what they show are the numbers that there are."""

import numpy as np
import pytest
import torch

from hmtl.mtl import Dense
from hmtl.reporting.run_pictures import omega_figure
from hmtl.tuning.report import tuning_figure


def test_omega_is_shown_as_correlations() -> None:
    G = np.random.default_rng(1).normal(size=(5, 4))
    Sigma = np.cov(G, rowvar=False)
    correlations = np.corrcoef(G, rowvar=False)
    np.fill_diagonal(correlations, np.nan)
    axes, *_ = omega_figure(Dense(torch.from_numpy(np.linalg.inv(Sigma))), ["north", "east", "south", "west"]).axes
    (image,) = axes.images
    np.testing.assert_allclose(image.get_array().filled(np.nan), correlations)
    assert image.get_clim() == (-1, 1)
    for axis in (axes.xaxis, axes.yaxis):
        assert [label.get_text() for label in axis.get_ticklabels()] == ["north", "east", "south", "west"]


def test_names_of_more_than_a_hundred_users_are_left_out() -> None:
    axes, *_ = omega_figure(Dense(torch.eye(101, dtype=torch.float64)), [f"user {k}" for k in range(101)]).axes
    assert not {label.get_text() for label in axes.get_yticklabels()} & {"user 0", "user 100"}


def test_errors_over_the_grid() -> None:
    """A line for each combination of the other settings, even where these differ by little."""
    grid = {"lam": [0.1, 1.0, 10.0], "floor": [1e-4, 1.0000001e-4]}
    values = [{"lam": lam, "floor": floor} for lam in grid["lam"] for floor in grid["floor"]]
    errors = [0.5, 0.6, 0.3, 0.4, 0.1, 0.2]
    points = [{"values": v, "error": e, "sd": v["lam"] / 100} for v, e in zip(values, errors, strict=True)]
    result = {"grid": grid, "points": points, "best": values[4], "error": 0.1, "error_measure": "share misclassified"}
    (axes,) = tuning_figure(result).axes
    first, second = axes.containers
    for drawn, expected in ((first, [50, 30, 10]), (second, [60, 40, 20])):
        line, _, (bars,) = drawn.lines
        assert line.get_xdata().round().tolist() == [0, 1, 2]
        assert line.get_ydata().tolist() == pytest.approx(expected)
        assert [np.ptp(ends[:, 1]) for ends in bars.get_segments()] == pytest.approx([0.2, 2, 20])
    assert (first.lines[0].get_xdata() < second.lines[0].get_xdata()).all()
    assert first.lines[0].get_color() is not second.lines[0].get_color()
    (best,) = (line for line in axes.lines if line.get_label() == "best")
    assert (best.get_xdata()[0].round(), best.get_ydata()[0]) == (2, pytest.approx(10))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.1", "1", "10"]
