"""What a run is, known before its first round: its users, network, learner, and what travels."""

from typing import Any

from hmtl.communication import BySection, Communicator
from hmtl.mtl import Algorithm


def run_header(algorithm: Algorithm, communicator: Communicator) -> dict[str, str]:
    """Return a line of text on each of these subjects."""
    network, problem, about = communicator.topology, algorithm.problem, algorithm.describe()
    tests = sum(len(task.y_test) for task in problem.everybody)
    regularizer = f"; {about['regularizer']} with lam={about['lam']:g}" if "regularizer" in about else ""
    sent = []  # of each section of numbers
    carriers: Any = communicator.parts if isinstance(communicator, BySection) else (communicator,)
    for carrier, users in zip(carriers, algorithm.users.sections, strict=True):
        kind = "sums" if carrier.recipe.adds else "coded IVs" if carrier.recipe.coded else "IVs"
        nodes = str(carrier.recipe.aggregators).translate(dict.fromkeys(map(ord, "[]'")))
        meaning = users.means() if carrier.recipe.adds else None
        numbers = meaning.words if meaning else users.numbers
        how = f"{'secure ' * bool(carrier.recipe.secure)}{kind} of {numbers:,} numbers"
        how += f" in {carrier.recipe.wire}" * bool(carrier.recipe.wire)
        sent += [f"{how}; aggregators: {nodes}"] * (users.numbers > 0)
    return {
        "users": f"{problem.K}: {sum(problem.counts):,} training and {tests:,} test rows of {problem.d} numbers",
        "network": f"{network.H} relays, {network.r:.3g} hear each user; {communicator.network.medium}",
        "learner": f"{about['algorithm']}; {about['loss']}{regularizer}",
        "travels": "; ".join(sent) or "nothing",
    }
