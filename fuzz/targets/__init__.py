"""The targets, by name. Each module's first line is its promise."""

from __future__ import annotations

from importlib import import_module

from fuzz.target import Target

__all__ = ["TARGETS", "make", "promise_of"]

# name: class; the module has the target's name
TARGETS = {
    "packets": "Packets",
    "language": "Language",
    "settings": "Settings",
    "manifests": "Manifests",
    "api": "Api",
    "watch": "Watch",
    "captures": "Captures",
    "handover": "Handover",
    "datagrams": "Datagrams",
}


def make(name: str) -> Target:
    """A target, imported only now. Raises KeyError."""
    module = import_module(f"fuzz.targets.{name}")
    made: Target = getattr(module, TARGETS[name])()
    made.name = name
    made.promise = promise_of(name)
    return made


def promise_of(name: str) -> str:
    """What a target holds its case to. Raises ImportError."""
    text = import_module(f"fuzz.targets.{name}").__doc__ or ""
    return " ".join(text.partition("\n")[0].split())
