"""The choice of what travels: IVs, or sums where these take less time."""

from collections.abc import Callable

from hmtl.communication import BySection, Communicator, Uncoded, sums_if_faster
from hmtl.communication.flows.sums import SumsOfRows
from hmtl.communication.rounding_of_sums import FEW_BITS
from hmtl.communication.wires import row_bits
from hmtl.mtl import Algorithm, Problem


def matched(
    make: Callable[..., Algorithm], problem: Problem, communicator: Communicator
) -> tuple[Algorithm, Communicator]:
    """Return an algorithm and its communicator; both use sums if `communicator` does, or if that takes less time.

    If a section of numbers travels after the averages, `communicator` carries it, and sums carry the averages.

    Args:
        make: makes the algorithm; see `Algorithm` for its keyword `messages`.
        problem: the algorithm's.
        communicator: how IVs would travel.
    """
    messages = communicator.recipe.messages
    algorithm = make(messages=messages)
    if len(algorithm.users.sections) > 1:
        recipe = communicator.recipe
        if not isinstance(communicator, Uncoded):
            wire = recipe.wire if recipe.wire in FEW_BITS else None
            recipe = SumsOfRows(wire=wire, secure=recipe.secure)
        shared = Communicator(communicator.contacts, communicator.network, recipe, communicator.make_links)
        return make(messages=recipe.messages, coupled_messages=messages), BySection(shared, communicator)
    if messages == "sums":
        return algorithm, communicator.for_rows(64 * algorithm.users.numbers)
    m, dtype = algorithm.users.numbers, algorithm.W.dtype
    communicator = communicator.for_rows(row_bits(communicator.recipe.wire, m, dtype))
    q = algorithm.sums_needed(problem)
    if q and (sums := sums_if_faster(communicator, q, dtype, m, algorithm.averaged)):
        return make(messages="sums"), sums
    return algorithm, communicator
