"""Owns the workers: their memory, the compiled loops that run the graph, and what they have counted."""
