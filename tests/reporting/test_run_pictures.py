"""Pictures of a run: what they show are the numbers that there are."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hmtl.mtl import Dense
from hmtl.reporting.network_picture import draw
from hmtl.reporting.run_pictures import omega_figure
from hmtl.topology import Names, Topology


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


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["Zoë 🦊", "漢字", "k$i^$m", "$", r"\$", "_{", "a\u0301", ""])
@pytest.mark.slow
def test_any_name_can_be_drawn(name: str, tmp_path: Path) -> None:
    """In the pictures of Ω and of a network, whose relays have it too, also as SVG and PDF."""
    names = [name, "kim", "lee"]
    figure = omega_figure(Dense(torch.eye(3, dtype=torch.float64)), names)
    assert figure.to_png(20)
    if name:
        t = Topology(np.ones((3, 3), np.uint8), names=Names(tuple(names), tuple(names)))
        draw(t, (0,)).write(tmp_path / "topology", "png", "svg", "pdf")
        assert len(list(tmp_path.iterdir())) == 3


def test_names_of_more_than_a_hundred_users_are_left_out() -> None:
    axes, *_ = omega_figure(Dense(torch.eye(101, dtype=torch.float64)), [f"user {k}" for k in range(101)]).axes
    assert not {label.get_text() for label in axes.get_yticklabels()} & {"user 0", "user 100"}
