"""Training from Python, without a configuration: `MultiTask` in one process, `Federation` over a network."""
