"""An API server for tests: the store's semantics without I/O, and HTTP around it."""
