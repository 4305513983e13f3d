"""The pictures of a finished run: its network, and how the tasks are related."""

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator

from hmtl.communication import Communicator
from hmtl.inference.models import learned_omega
from hmtl.mtl import Algorithm
from hmtl.mtl.symmetric import Symmetric
from hmtl.reporting.network_picture import draw
from hmtl.reporting.style import Picture

MAX_NAMED_USERS = 100  # users whose names fit beside the picture of Ω
MAX_PICTURED_USERS = 400  # users that a picture of Ω shows: more have no pixels of their own


def topology_picture(communicator: Communicator) -> bytes:
    """Return the PNG file with the network of a run, its bits, and the nodes that compute models or learn the sums."""
    role = "learns the sums" if communicator.recipe.adds else "computes models"
    planner = communicator.planner
    contacts, ledger = communicator.contacts, communicator.ledger
    return draw(contacts, planner.preferred, role, planner.server, ledger).to_png(dpi=150)


def omega_picture(algorithm: Algorithm) -> dict[str, bytes]:
    """Return the PNG file with the learned Ω of a run by its name; {} if there is none."""
    if (Omega := learned_omega(algorithm)) is None:
        return {}
    return {"omega": omega_figure(Omega, [task.name for task in algorithm.problem.everybody]).to_png(dpi=150)}


def omega_figure(Omega: Symmetric, names: Sequence[str] = ()) -> Picture:
    """Draw Σ = Ω⁻¹ [K, K] scaled to a unit diagonal, so that each entry is the correlation of two tasks.

    The diagonal is gray. If there are many users, every second, third, ...
    is shown. With more than 100 users, or without `names`, they have numbers.
    """
    step = -(-len(Omega) // MAX_PICTURED_USERS)
    Sigma = Omega.inverse().block(slice(None, None, step)).cpu().numpy()
    end = step * len(Sigma) - 0.5
    scale = np.sqrt(np.diag(Sigma))
    shown = np.where(np.eye(len(Sigma)), np.nan, Sigma / np.outer(scale, scale))
    labels = list(names) if len(names) <= MAX_NAMED_USERS else []
    side = max(4.6, 2.5 + 0.14 * len(labels))  # inches
    figure = Picture(figsize=(side + 0.9, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shown, cmap="RdBu_r", vmin=-1, vmax=1, extent=(-0.5, end, end, -0.5))
    title = "Task relationship" if step == 1 else f"Task relationship, one user in {step}"
    axes.set(title=title, xlabel="user", ylabel="user", facecolor="lightgray")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
        if labels:
            rotation = 90 if axis is axes.xaxis else 0
            axis.set_ticks(range(len(labels)), labels, fontsize=8, rotation=rotation, parse_math=False)
    figure.colorbar(image, ax=axes, label="correlation, from Σ = Ω⁻¹ (gray: a user with itself)", shrink=0.8)
    return figure
