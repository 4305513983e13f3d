"""Settings become objects: schema, parts, builders and the command line."""
