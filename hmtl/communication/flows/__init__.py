"""What every node derives without communication: plans, routes, and codes."""
