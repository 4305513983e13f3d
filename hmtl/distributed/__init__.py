"""A run in several processes: connections, frames, links and the engine."""
