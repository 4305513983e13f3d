"""The choice of what travels: IVs, or sums where these take less time."""

from collections.abc import Callable

from hmtl.communication import CodedHierarchical, Communicator, Sums
from hmtl.communication.communicators.sums import sums_if_faster
from hmtl.mtl import Algorithm, Problem


def matched(
    make: Callable[..., Algorithm], problem: Problem, communicator: Communicator
) -> tuple[Algorithm, Communicator]:
    """Return an algorithm and its communicator; both use sums if `communicator` does, or if that takes less time.

    Args:
        make: makes the algorithm; see `Algorithm` for its keyword `messages`.
        problem: the algorithm's.
        communicator: how IVs would travel.

    Raises:
        ConfigError: the communicator cannot serve this algorithm.
    """
    if isinstance(communicator, Sums):
        return make(messages="sums"), communicator
    algorithm = make()
    q = algorithm.sums_needed(problem)
    if q and isinstance(communicator, CodedHierarchical):
        sums = sums_if_faster(communicator, q, algorithm.W.element_size())
        if sums is not None:
            return make(messages="sums"), sums
    if len(problem.users) == problem.K:  # otherwise the aggregator learns from a set-up what this depends on
        communicator.check_learner(algorithm.aggregator)
    return algorithm, communicator
