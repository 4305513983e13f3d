"""Learning algorithms, one module each, with two sides that exchange nothing but messages (see `base`)."""
