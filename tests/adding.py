"""Learners of sums whose users send given terms."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hmtl.communication.codecs.few_bit_words import FewBits, FewBitTermCoder
from hmtl.communication.nodes.host import Host
from hmtl.communication.secure.neighbors import Secure
from hmtl.communication.terms import Words
from hmtl.errors import ConfigError
from hmtl.mtl import Algorithm
from hmtl.testing.scripted import ScriptedAggregator, ScriptedUsers
from hmtl.topology import Topology


class Terms(ScriptedUsers):
    """Users who send given terms, with a number beside m."""

    def __init__(self, terms: Sequence[Tensor], absent: Sequence[set[int]], mine: Sequence[int] | None = None) -> None:
        super().__init__(terms, absent, 1, mine)

    def hold_meaning(self) -> Words:
        return Words(self.row_layout.numbers, self.row_layout.further, self.row_layout.further + 1)

    def receive(self, users: np.ndarray, models: Tensor) -> None:
        super().receive(users, models.clone())


class Total(ScriptedAggregator):
    """An aggregator of sums: what it has had so far, and how often."""

    def __init__(self, width: int) -> None:
        super().__init__(1, width)
        self.state["last"] = torch.zeros(1, width, dtype=torch.int64)

    def update(self, users: np.ndarray, ivs: Tensor) -> Tensor:
        self.seen.append((users, ivs.clone()))
        self.state = {"last": self.state["last"] + ivs.sum(0, keepdim=True), "updates": self.state["updates"] + 1}
        return torch.cat([self.state["last"], self.state["updates"].view(1, 1)], dim=1)


def adding(algorithm: Algorithm) -> Algorithm:
    """Let the users of an algorithm make terms of their rows, as over sums."""
    algorithm.users.hold_meaning()
    return algorithm


def terms_of(algorithm: Algorithm, round: int) -> tuple[np.ndarray, Tensor]:
    """Return who takes part in a round, and the terms of their rows."""
    users, rows = algorithm.users.local_update(round)
    return users, algorithm.users.hold_meaning().terms(round, users, rows)[:]


def terms(seed: int, K: int, m: int = 7, reach: int = 50) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(-(2**reach), 2**reach, (K, m)))


def fit(secure: Secure, t: Topology) -> bool:
    """Whether a network has enough users for secure sums."""
    try:
        secure.check(t.K, t.G)
    except ConfigError:
        return False
    return True


def rounded(formats: FewBits, x: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Return q's and votes of terms of users who owe nothing [n, L], and what is left over [n, m]."""
    n, errors = len(x), torch.zeros(2 * len(x), formats.numbers, dtype=torch.int64)
    rows = formats.rounded(x, scales, errors, torch.arange(n), torch.arange(n, 2 * n))
    return formats.terms.unpack(rows), errors[n:]


def left_over(coder: FewBitTermCoder, counts: bool = False) -> Tensor:
    """What each user of a host owes, or would, if its pending update counted [n, m]."""
    rows, heard = torch.zeros(len(coder.members), coder.formats.numbers, dtype=torch.int64), coder.owed >= 0
    rows[heard] = coder.errors.flatten(0, 1)[coder.owed[heard] ^ int(counts)]
    return rows


def owed(hosts: Sequence[Host], counted: set[tuple[int, int]]) -> Tensor:
    """What all users owe: a pending update leaves over what it would, if it counted."""
    total = torch.zeros(hosts[0].coder.formats.numbers, dtype=torch.int64)
    for host in hosts:
        for place, k in enumerate(host.members.tolist()):
            late = host.pending[k] and (int(host.sent[k]), k) in counted
            total += left_over(host.coder, late)[place]
    return total
