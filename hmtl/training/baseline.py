"""The local baseline of a run: the error of users who learn alone, by a fit of a few rounds without messages."""

from hmtl.mtl import MOCHA, Algorithm, Local

BASELINE_ROUNDS = 8  # a fit that takes more is left out
BASELINE_GAP = 1e-3  # duality gap of a fit, relative to the primal


def local_baseline(algorithm: Algorithm) -> dict[str, float] | None:
    """Return λ, errors and gap of `Local` on the problem of a dual learner; None if a few rounds do not suffice.

    λ is the mean diagonal of the first A, the strength of the regularizer without its coupling: with a smaller one,
    such as λ of A = λΩ, users who learn alone overfit. For networks there is none: no gap shows whether they are near.
    """
    problem = algorithm.problem
    if not isinstance(algorithm, MOCHA) or isinstance(algorithm, Local) or len(problem.users) < problem.K:
        return None
    A = problem.regularizer.coupling(problem.regularizer.start(problem.K, problem.size).to(problem.s))
    lam = float(A.diagonal().mean())
    local = Local(problem, algorithm.solver, lam, seed=algorithm.seed)
    for round in range(BASELINE_ROUNDS):
        local.step(round)
        figures = local.metrics()
        if figures["gap"] <= BASELINE_GAP * abs(figures["primal"]) and "test_error" in figures:
            return {"lam": lam, **{name: figures[name] for name in ("test_error", "test_error_worst", "gap")}}
    return None
