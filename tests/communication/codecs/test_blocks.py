"""What coders of few bits remember: both ends agree, and learners may overwrite the IVs that they get."""

import numpy as np
import pytest
import torch
from torch import Tensor

from hmtl.communication.codecs.blocks import Blocks, QuantisedAggregatorCoder, QuantisedUserCoder
from hmtl.testing.scripted import ScriptedUsers

K, M = 4, 70
ALL = np.arange(K)


def numbers(seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(K, M)))


def ends() -> tuple[QuantisedUserCoder, QuantisedAggregatorCoder]:
    users = ScriptedUsers([numbers(0)], [set()], extras=0)
    return QuantisedUserCoder(users, Blocks(4), ALL), QuantisedAggregatorCoder(users, Blocks(4), len(ALL))


def test_an_aggregator_may_overwrite_ivs() -> None:
    host, aggregator = ends()
    target = numbers(1)
    for _ in range(30):
        ivs = aggregator.decode(ALL, *host.encode(ALL, target, 0), torch.float64, "blocks4")
        got = ivs.clone()
        ivs.zero_()
        host.commit(ALL)
        assert torch.equal(got, aggregator.held)
        assert torch.equal(got, host.held)
    torch.testing.assert_close(got, target, rtol=0, atol=1e-9)


@pytest.mark.parametrize("lost", [False, True])
def test_a_model_is_a_change_of_what_the_user_is_known_to_hold(lost: bool) -> None:
    """If the IV of user 2 is lost, its base stays; so it does at both ends."""
    host, aggregator = ends()
    nobody = np.empty(0, np.int64)
    payload, extras, row_format = aggregator.encode(nobody, numbers(2), torch.float64)
    assert row_format == "blocks4"
    got: Tensor = host.decode(ALL, payload, extras, torch.float64, row_format)
    heard = ALL[ALL != 2] if lost else ALL
    host.commit(heard)
    payload, extras, row_format = aggregator.encode(heard, numbers(3), torch.float64)
    assert torch.equal(aggregator.base, host.base)
    assert torch.equal(host.base[heard], got[heard])
    assert torch.equal(host.base[2], torch.zeros(M, dtype=torch.float64)) == lost
    assert torch.equal(host.decode(ALL, payload, extras, torch.float64, row_format), aggregator.newest)


@pytest.mark.parametrize("deltas", [False, True])
def test_an_iv_that_did_not_count_leaves_no_trace(deltas: bool) -> None:
    """The next one is encoded as if it had never been, and both ends hold the same bits."""
    (host, aggregator), (plain, _) = ends(), ends()
    for coder in (host, aggregator, plain):
        coder.deltas = deltas
    host.users.deltas = plain.users.deltas = deltas
    host.encode(ALL, numbers(1), 0)  # is lost
    lost, first = (each.encode(ALL, numbers(2), 0) for each in (host, plain))
    assert all(map(torch.equal, lost, first))
    aggregator.decode(ALL, *lost, torch.float64, "blocks4")
    host.commit(ALL)
    assert deltas or torch.equal(host.held, aggregator.held)
