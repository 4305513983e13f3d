"""A run over processes: connections, frames, links and the engine."""
