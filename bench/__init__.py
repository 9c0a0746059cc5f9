"""Benchmarks of kuproxy: `python -m bench`, or `make bench`. What the figures mean: docs/performance.md."""
