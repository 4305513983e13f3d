"""Settings become objects: schema, checks, builders and the command line."""
