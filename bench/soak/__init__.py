"""A real daemon under mixed load and churn for as long as one likes: `python -m bench.soak --minutes 30`.

What it is for: memory, descriptors and threads of every process of the daemon stay what they were, nothing that is
asked fails, and no connection breaks, while services come and go.
"""
