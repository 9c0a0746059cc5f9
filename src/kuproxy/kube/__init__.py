"""Services and endpoints from a Kubernetes API server: list and watch, conversion, transport."""
