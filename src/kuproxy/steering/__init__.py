"""How a node's own traffic reaches the workers: BPF programs, links, routes and neighbours.

Importing the package is cheap; LLVM and netlink are loaded with `Steering`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .namespace import PrivateNamespace
    from .steering import Steering
    from .targets import Targets

__all__ = ["PrivateNamespace", "Steering", "Targets"]

_HOMES = {"PrivateNamespace": "namespace", "Steering": "steering", "Targets": "targets"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
