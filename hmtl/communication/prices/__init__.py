"""What rounds cost, by dry rounds; nothing below this package knows of it."""
