"""What all nodes know before a round: plans, routes and codes."""
