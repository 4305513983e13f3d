"""The contract of `Learner`, as tests that pytest collects from a subclass.

    class TestMyLearner(LearnerContract):
        def make(self):
            return MyLearner(beta=0.5)

The tests train small networks of K users over a network of relays, and compare models bit for bit.
"""

from abc import ABC, abstractmethod
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hmtl.communication import CodedHierarchical, Communicator, Sums, Uncoded
from hmtl.data import Task
from hmtl.mtl import Learner, LocalSGD, Mean, NetworkAlgorithm, Participation, Problem, Squared, mlp
from hmtl.mtl.algorithms import learner_sides
from hmtl.testing.learning import cases
from hmtl.topology import any_r

few_cases = partial(cases, n=5)
SOME = Participation(low=0.5, fraction=0.7)


class LearnerContract(ABC):
    """A learner's models depend neither on what carries its numbers nor on who trains beside whom.

    Override `make`, and `network` if the learner needs another one.
    """

    K, d, rounds = 6, 3, 3

    @abstractmethod
    def make(self) -> Learner:
        """Return a new learner."""

    def network(self, d: int, C: int) -> nn.Module:
        """Return the network that users train."""
        return mlp(d, C, hidden=3)

    def algorithm(self, seed: int, **options: Any) -> NetworkAlgorithm:
        """Return the learner on random tasks of unequal sizes."""
        rng, tasks = np.random.default_rng(seed), []
        for k in range(self.K):
            x, y = (torch.from_numpy(rng.normal(size=size)) for size in ((5 + 3 * k, self.d), 5 + 3 * k))
            tasks.append(Task(str(k), x[2:], y[2:], x[:2], y[:2]))
        problem, solver = Problem(tasks, Squared(), Mean(0.1)), LocalSGD(0.02, epochs=2, batch=6)
        return NetworkAlgorithm(self.make(), problem, solver, self.network, seed % 1000, **options)

    def played(self, algorithm: NetworkAlgorithm, communicator: Communicator, rounds: int) -> Tensor:
        """Return the models [m, K] after rounds over a network."""
        if setup := algorithm.setup():
            communicator.setup(*setup)
        for number in range(rounds):
            communicator.round(number, algorithm.users, algorithm.aggregator)
        return algorithm.W

    @few_cases
    def test_all_that_carries_them_leads_to_the_same_models(self, seed: int) -> None:
        """Uncoded rows, coded rows, and secure sums."""
        t = any_r(self.K, 4, 2, seed % 1000)
        algorithm = self.algorithm(seed, participation=SOME)
        expected = self.played(algorithm, Uncoded(t), self.rounds)
        assert expected.isfinite().all()
        coded = self.algorithm(seed, participation=SOME)
        assert torch.equal(self.played(coded, CodedHierarchical(t, aggregators="all"), self.rounds), expected)
        if algorithm.users.row_layout.numbers and algorithm.users.make_meaning():
            sums, over = self.algorithm(seed, participation=SOME), Sums(t, secure=True, colluding=0)
            assert torch.equal(self.played(sums, over, self.rounds), expected)

    @few_cases
    def test_few_bits_lead_nearly_there(self, seed: int) -> None:
        t, models = any_r(self.K, 4, 2, seed % 1000), []
        for wire in (None, "int8"):
            algorithm = self.algorithm(seed)
            models.append(self.played(algorithm, CodedHierarchical(t, wire=wire), self.rounds))
        assert (models[0] - models[1]).abs().max() < 0.1 * (1 + models[0].abs().max())

    @few_cases
    def test_users_train_in_blocks_of_any_size(self, seed: int) -> None:
        models, usual, t = [], learner_sides.MODEL_CHUNK_BYTES, any_r(self.K, 4, 2, seed % 1000)
        try:
            for size in (usual, 1):
                learner_sides.MODEL_CHUNK_BYTES = size
                for over in (CodedHierarchical(t), Sums(t)):
                    algorithm = self.algorithm(seed, participation=SOME)
                    if over.recipe.adds and not algorithm.users.make_meaning():
                        continue
                    models.append(self.played(algorithm, over, self.rounds))
        finally:
            learner_sides.MODEL_CHUNK_BYTES = usual
        for other in models[1:]:
            torch.testing.assert_close(other, models[0], rtol=1e-5, atol=1e-6)

    @few_cases
    def test_a_round_that_does_not_count_changes_nothing(self, seed: int) -> None:
        """No relay takes part."""
        t = any_r(self.K, 4, 2, seed % 1000)
        algorithm, other = self.algorithm(seed), self.algorithm(seed)
        if not algorithm.users.row_layout.numbers:
            pytest.skip("nothing travels")
        before = algorithm.W.clone()
        communicator = Uncoded(t)
        communicator.round(0, algorithm.users, algorithm.aggregator, range(t.H))
        assert torch.equal(algorithm.W, before)
        state = algorithm.users.state_dict()
        for name, rows in held(other).items():
            assert torch.equal(rows, state[name]), f"{name} changed, although no update counted"

    @few_cases
    def test_a_resumed_run_goes_on_with_the_same_bits(self, seed: int) -> None:
        whole, first, second = (self.algorithm(seed, participation=SOME) for _ in range(3))
        for number in range(self.rounds):
            whole.step(number)
        for number in range(2):
            first.step(number)
        second.load_state_dict(first.state_dict())
        for number in range(2, self.rounds):
            second.step(number)
        assert torch.equal(second.W, whole.W)

    @few_cases
    def test_local_leaves_its_arguments_unchanged(self, seed: int) -> None:
        """The old rows of users whose updates do not count are needed again."""
        algorithm = self.algorithm(seed)
        before = {name: rows.clone() for name, rows in held(algorithm).items()}
        algorithm.users.local_update(0)
        for name, rows in held(algorithm).items():
            assert torch.equal(rows, before[name]), f"local writes into {name}"


def held(algorithm: NetworkAlgorithm) -> dict[str, Tensor]:
    """Return what users hold, without what they propose."""
    return {name: rows for name, rows in algorithm.users.state_dict().items() if not name.endswith(".proposed")}
