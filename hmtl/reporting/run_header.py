"""What a run is, known before its first round: its users, network, learner, and what travels."""

from hmtl.communication import Communicator
from hmtl.communication.flows.ivs import IVs
from hmtl.data.items import described
from hmtl.mtl import Algorithm


def run_header(algorithm: Algorithm, communicator: Communicator) -> dict[str, str]:
    """Return a line of text on each of these subjects."""
    network, problem, about = communicator.topology, algorithm.problem, algorithm.describe()
    tests = sum(len(task.y_test) for task in problem.everybody)
    regularizer = f"; {about['regularizer']} with lam={about['lam']:g}" if "regularizer" in about else ""
    recipe, users = communicator.recipe, algorithm.users
    kind = "sums" if recipe.adds else "coded IVs" if isinstance(recipe, IVs) and recipe.coded else "IVs"
    nodes = str(recipe.aggregators).translate(dict.fromkeys(map(ord, "[]'")))
    meaning = users.means() if recipe.adds and users.numbers else None
    numbers = meaning.words if meaning else users.numbers
    how = f"{'secure ' * bool(recipe.secure)}{kind} of {numbers:,} numbers" + f" in {recipe.wire}" * bool(recipe.wire)
    row = f"{problem.d} numbers"
    if problem.items:
        inputs, _ = problem.everybody[0].example
        row = described(inputs)
    return {
        "users": f"{problem.K}: {sum(problem.counts):,} training and {tests:,} test rows of {row}",
        "network": f"{network.H} relays, {network.r:.3g} hear each user; {communicator.network.medium}",
        "learner": f"{about['algorithm']}; {about['loss']}{regularizer}",
        "travels": f"{how}; aggregators: {nodes}" if users.numbers else "nothing",
    }
