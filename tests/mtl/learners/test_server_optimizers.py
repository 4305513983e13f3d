"""FedAvgM, FedAdam and FedYogi beside numpy, which computes the next model from what users send."""

import numpy as np
import torch
from adding import adding
from hypothesis import given
from hypothesis import strategies as st
from quadratics import P, learn, shared

from hmtl.mtl import FedAdam, FedAvg, FedAvgM, FedYogi, Participation


def momentum(delta, memory, beta, eta, **_):
    """Hsu, Qi, Brown 2019, section 4.3, with Δ for their −Δw."""
    v = memory.get("v", 0) * beta + delta
    return eta * v, {"v": v}


def adaptive(second_moment):
    """Reddi et al. 2021, algorithm 2."""

    def step(delta, memory, beta, beta2, eta, tau):
        u = beta * memory.get("u", 0) + (1 - beta) * delta
        v = second_moment(memory.get("v", tau**2), delta**2, beta2)
        return eta * u / (np.sqrt(v) + tau), {"u": u, "v": v}

    return step


STEPS = {
    "fedavgm": momentum,
    "fedadam": adaptive(lambda v, square, beta2: beta2 * v + (1 - beta2) * square),
    "fedyogi": adaptive(lambda v, square, beta2: v - (1 - beta2) * square * np.sign(v - square)),
}


@given(
    seed=st.integers(0, 10**6),
    name=st.sampled_from(list(STEPS)),
    beta=st.sampled_from([0.0, 0.5, 0.9]),
    beta2=st.sampled_from([0.0, 0.9, 0.99]),
    eta=st.floats(0.01, 1.5),
    tau=st.sampled_from([1e-3, 0.1]),
    adds=st.booleans(),
    part=st.sampled_from([Participation(), Participation(fraction=0.5)]),
)
def test_every_round_is_that_of_numpy(seed, name, beta, beta2, eta, tau, adds, part):
    learner = {
        "fedavgm": lambda: FedAvgM(beta, eta),
        "fedadam": lambda: FedAdam(eta, beta, beta2, tau),
        "fedyogi": lambda: FedYogi(eta, beta, beta2, tau),
    }[name]()
    of = {"step": 0.1, "epochs": 2, "seed": seed, "participation": part}
    tested, sends = learn(learner, **of), learn(FedAvg(), **of)
    if adds:
        adding(tested)
    w, memory = shared(tested).copy(), {}
    for round in range(4):
        sends.users.receive(np.arange(len(P)), torch.from_numpy(w).expand(len(P), -1))
        users, ivs = sends.users.local_update(round)
        change = P[users] @ (ivs.numpy() - w) / P[users].sum()
        step, memory = STEPS[name](change, memory, beta=beta, beta2=beta2, eta=eta, tau=tau)
        w = w + step
        tested.step(round)
        np.testing.assert_allclose(shared(tested), w, rtol=0, atol=1e-7)  # near 0, √v magnifies the grid's rounding
        for key, value in memory.items():
            np.testing.assert_allclose(tested.averages.memory.get_buffer(key), value, rtol=1e-6, atol=1e-9)
