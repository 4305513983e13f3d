"""The machine: files that are written whole and read with care, and the clock of its processor."""
