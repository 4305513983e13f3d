"""Local solvers: what a user does between two exchanges."""
