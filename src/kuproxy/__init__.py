"""kuproxy: a kube-proxy data plane in user space, an L4 Maglev load balancer in Python and Numba.

    import kuproxy

    web = kuproxy.service("90.0.0.1", port=80, pods=["10.0.0.1:8080", "10.0.0.2:8080"])
    balancer = kuproxy.Balancer([web])
    result = balancer.process(frame)

docs/tutorial.md goes through all of it.  Importing the package is cheap, because the command `ku` does it at every
start: NumPy and Numba are loaded with the first name that needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kuproxy.api import Balancer, Result, maglev, read_config, service
    from kuproxy.codes import Outcome, Reason
    from kuproxy.errors import ConfigError, KuError
    from kuproxy.explain.report import Explanation
    from kuproxy.model.report import FlowReport
    from kuproxy.model.vip import Pod, Vip

__all__ = [
    "Balancer",
    "ConfigError",
    "Explanation",
    "FlowReport",
    "KuError",
    "Outcome",
    "Pod",
    "Reason",
    "Result",
    "Vip",
    "__version__",
    "maglev",
    "read_config",
    "service",
]

__version__ = "0.1.0"

_HOMES = {
    "Balancer": "api",
    "ConfigError": "errors",
    "Explanation": "explain.report",
    "FlowReport": "model.report",
    "KuError": "errors",
    "Outcome": "codes",
    "Pod": "model.vip",
    "Reason": "codes",
    "Result": "api",
    "Vip": "model.vip",
    "maglev": "api",
    "read_config": "api",
    "service": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
