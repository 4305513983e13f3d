"""The choice of what travels: IVs, or sums where these take less time."""

from collections.abc import Callable

from hmtl.communication import Communicator, sums_if_faster
from hmtl.communication.wires import row_bits
from hmtl.mtl import Algorithm, Problem


def matched(
    make: Callable[..., Algorithm], problem: Problem, communicator: Communicator
) -> tuple[Algorithm, Communicator]:
    """Return an algorithm and its communicator; both use sums if `communicator` does, or if that takes less time.

    Args:
        make: makes the algorithm; see `Algorithm` for its keyword `messages`.
        problem: the algorithm's.
        communicator: how IVs would travel.
    """
    if communicator.recipe.messages == "sums":
        algorithm = make(messages="sums")
        return algorithm, communicator.for_rows(64 * algorithm.users.numbers)
    algorithm = make()
    m, dtype = algorithm.users.numbers, algorithm.W.dtype
    communicator = communicator.for_rows(row_bits(communicator.recipe.wire, m, dtype))
    q = algorithm.sums_needed(problem)
    if q and (sums := sums_if_faster(communicator, q, dtype, m, algorithm.averaged)):
        return make(messages="sums"), sums
    return algorithm, communicator
