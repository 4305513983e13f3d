"""What a run is, known before its first round: its users, network, learner, and what travels."""

from hmtl.communication import Communicator
from hmtl.communication.flows.ivs import IVs
from hmtl.data.items import described
from hmtl.errors import few
from hmtl.mtl import Algorithm
from hmtl.mtl.networks.flat import FlatModel


def run_header(algorithm: Algorithm, communicator: Communicator) -> dict[str, str]:
    """Return a line of text on each of these subjects."""
    network, problem, about = communicator.topology, algorithm.problem, algorithm.describe()
    tests = sum(len(task.y_test) for task in problem.everybody)
    regularizer = f"; {about['regularizer']} with lam={about['lam']:g}" if "regularizer" in about else ""
    recipe, users = communicator.recipe, algorithm.users
    kind = "sums" if recipe.adds else "coded IVs" if isinstance(recipe, IVs) and recipe.coded else "IVs"
    nodes = str(recipe.aggregators).translate(dict.fromkeys(map(ord, "[]'")))
    meaning = users.make_meaning() if recipe.adds and users.row_layout.numbers else None
    numbers = meaning.words if meaning else users.row_layout.numbers
    how = f"{'secure ' * bool(recipe.secure)}{kind} of {numbers:,} numbers" + f" in {recipe.wire}" * bool(recipe.wire)
    row = f"{problem.d} numbers"
    if problem.items:
        inputs, _ = problem.everybody[0].example
        row = described(inputs)
    model: FlatModel | None = getattr(algorithm, "model", None)
    trains = {}
    if model and (frozen := [w for w in model.module.parameters() if not w.requires_grad]):
        rest = sum(w.numel() for w in frozen)
        kept = " in evaluation mode" * bool(model.frozen)
        names = list(model.shapes)
        shown = few(names) if len(few(names)) < 60 else f"{len(names)} tensors, as {'.'.join(names[0].split('.')[-4:])}"
        trains = {"trains": f"{shown}: {len(model.start):,} numbers; {rest:,} are frozen{kept}"}
    hear = "hears" if network.r == 1 else "hear"
    turns = ""
    if model and problem.tasks:
        turns = "; users train " + ("side by side" if model.side_by_side else "one after the other")
    return {
        "users": f"{problem.K}: {sum(problem.counts):,} training and {tests:,} test rows of {row}",
        "network": f"{network.H} relays, {network.r:.3g} {hear} each user; {communicator.network.medium}",
        "learner": f"{about['algorithm']}; {about['loss']}{regularizer}{turns}",
        **trains,
        "travels": f"{how}; aggregators: {nodes}" if users.row_layout.numbers else "nothing",
        **({"why": communicator.note} if communicator.note else {}),
    }
