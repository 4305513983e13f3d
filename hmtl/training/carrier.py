"""Where a learner and a communicator are joined: its rows travel as they are, or as sums where these take less time."""

from hmtl.communication import Communicator
from hmtl.communication.prices.sums_or_ivs import chosen
from hmtl.errors import ConfigError
from hmtl.mtl import Algorithm


def carrier_of(algorithm: Algorithm, communicator: Communicator) -> Communicator:
    """Return the communicator that carries the rows of an algorithm: the given one, or sums if they take less time.

    From now on, terms are made of rows where the communicator needs it, at the users or at the aggregator.

    Raises:
        ConfigError: the learner needs every row, but sums would travel; or noise protects users only in sums, but rows
            would travel one by one.
    """
    users, recipe = algorithm.users, communicator.recipe
    if not recipe.adds:
        communicator = chosen(communicator, users.make_meaning(), users.row_layout.numbers, users.row_layout.dtype)
    elif users.row_layout.numbers and not users.hold_meaning():
        raise _needs_rows(algorithm)
    communicator.recipe.joined(users, algorithm.aggregator, communicator.planner)
    return communicator


def _needs_rows(algorithm: Algorithm) -> ConfigError:
    name, regularizer = algorithm.describe()["algorithm"], type(algorithm.problem.regularizer).__name__
    return ConfigError(
        f"{name} with {regularizer} needs the IVs of all users, not only sums. Set communicator=coded. "
        "communicator=sums works with algorithm=cocoa, fedavg and its relatives, and with mocha and fedu if "
        "regularizer=mean; algorithm=local and local_networks send nothing."
    )
