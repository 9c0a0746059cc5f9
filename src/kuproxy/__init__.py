"""kuproxy: a kube-proxy data plane in user space, an L4 Maglev load balancer in Python and Numba.

Importing the package must stay cheap, because the command `ku` does it at every start: only public names
belong here, and nothing that imports NumPy or Numba.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
