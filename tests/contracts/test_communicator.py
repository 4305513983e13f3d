"""What every communicator owes: the same models as plain forwarding, bit for bit, and a true account of the bits."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import topologies

from hmtl.coding import loads
from hmtl.communication import TIERS, CodedHierarchical, Communicator, Uncoded, tier_loads
from hmtl.errors import CodingError, ConfigError
from hmtl.topology import Topology, symmetric

SCHEMES = ("uncoded", "optimal", "paper", "equal", "generations")


def make(scheme: str, topology: Topology, medium: str = "broadcast") -> Communicator:
    if scheme == "uncoded":
        return Uncoded(topology, medium)
    if scheme == "generations":
        return CodedHierarchical(topology, seed=3, medium=medium, max_pieces=2, generation=8)
    return CodedHierarchical(topology, scheme, seed=3, medium=medium)


def random_ivs(K: int, m: int, seed: int) -> torch.Tensor:
    """Any bit pattern whatever, NaNs and denormals included: a transport must not care."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (K, 8 * m), np.uint8)).view(torch.float64)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=60)
@given(
    topology=topologies(),
    m=st.integers(1, 40),
    seed=st.integers(0, 1000),
    medium=st.sampled_from(("broadcast", "unicast")),
)
def test_models_arrive_bit_for_bit_and_loads_are_those_of_the_formula(
    scheme: str, topology: Topology, m: int, seed: int, medium: str
) -> None:
    ivs = random_ivs(topology.K, m, seed)
    communicator = make(scheme, topology, medium)
    seen = []

    def global_update(received: torch.Tensor) -> torch.Tensor:
        seen.append(received.clone())
        return received.flip(0)

    for _ in range(2):
        assert same_bits(communicator.exchange(ivs, global_update), ivs.flip(0))
    assert len(seen) == 2
    assert all(same_bits(received, ivs) for received in seen)

    V = 64 * m
    load = communicator.plan.loads if scheme == "generations" else loads(topology, scheme)
    measured = communicator.ledger.loads(V)
    formula = {tier: ivs.sum() for tier, ivs in tier_loads(topology, scheme, medium, load).items()}
    assert measured["users_to_relays"] == measured["relays_to_users"] == topology.K
    largest = max((block.pieces for block in communicator.plan.blocks), default=1) if scheme != "uncoded" else 1
    for tier in TIERS:  # c pieces of ceil(L/c) bytes are at most c − 1 bytes longer than the IV
        assert formula[tier] - 1e-9 <= measured[tier] <= formula[tier] * (1 + (largest - 1) * 8 / V) + 1e-9


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_travels_beside_the_model_is_overhead(scheme: str) -> None:
    topology = symmetric(K=20, H=5, r=3)
    communicator = make(scheme, topology)
    communicator.exchange(random_ivs(20, 6, 0), lambda ivs: torch.cat([ivs, ivs[:, :2]], 1))
    down = communicator.ledger.bits("relays_to_users")
    assert down == (20 * 6 * 64, 20 * 2 * 64)
    assert communicator.ledger.bits("relays_to_users", link=7, round=0) == (6 * 64, 2 * 64)
    if scheme == "uncoded":
        assert communicator.ledger.bits("server_to_relays") == down


@pytest.mark.parametrize("scheme", SCHEMES)
def test_as_many_rows_as_users(scheme: str) -> None:
    with pytest.raises(CodingError, match=r"shape \(4, 3\).*5 users"):
        make(scheme, symmetric(K=5, H=5, r=1)).exchange(torch.zeros(4, 3), lambda ivs: ivs)


def test_unknown_medium() -> None:
    with pytest.raises(ConfigError, match="medium=smoke"):
        Uncoded(symmetric(K=5, H=5, r=1), medium="smoke")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_narrow_numbers(dtype: torch.dtype) -> None:
    topology = symmetric(K=10, H=5, r=2)
    ivs = torch.randn(10, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    results: list[torch.Tensor] = [make(scheme, topology).exchange(ivs, lambda x: x * 2) for scheme in SCHEMES]
    assert all(result.dtype == dtype and same_bits(result, ivs * 2) for result in results)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_users_and_aggregator_share_messages_only(scheme: str) -> None:
    """Nobody's memory changes by what another does to what it received."""
    ivs = torch.ones(10, 7, dtype=torch.float64)
    kept = []

    def global_update(received: torch.Tensor) -> torch.Tensor:
        kept.append(received)
        return received.mul_(3)

    models = make(scheme, symmetric(K=10, H=5, r=2)).exchange(ivs, global_update)
    models.add_(1)
    assert (ivs == 1).all()
    assert (kept[0] == 3).all()
    assert (models == 4).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_numbers_on_a_gpu(scheme: str) -> None:
    ivs = random_ivs(10, 7, 0).cuda()
    models = make(scheme, symmetric(K=10, H=5, r=2)).exchange(ivs, lambda received: received.flip(0))
    assert models.is_cuda
    assert same_bits(models, ivs.flip(0))


Update = Callable[[torch.Tensor], torch.Tensor]
