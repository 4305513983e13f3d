"""Training from Python: `MultiTask` without a network, `Federation` over one by the settings of `hmtl.train`."""
