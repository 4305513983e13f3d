"""Pictures of a run: what they show are the numbers that there are."""

import numpy as np
import torch

from hmtl.mtl import Dense
from hmtl.reporting.run_pictures import omega_figure


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
