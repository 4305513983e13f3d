"""What every node derives without communication: plans, routes, and how IVs are cut and coded."""
