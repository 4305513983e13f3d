"""Sources: one module per data set that rows are read from."""
