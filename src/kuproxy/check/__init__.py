"""Lint: configurations that are accepted, and still do not do what their writer wants."""
