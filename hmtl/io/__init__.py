"""What everything stands on: types of arrays and rows, files that are written whole, and the processor's clock."""
