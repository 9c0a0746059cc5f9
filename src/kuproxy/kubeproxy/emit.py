"""YAML as kube-proxy writes its configuration: names sorted, lists not indented, text quoted only where it must be."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

__all__ = ["to_yaml"]

# Text that YAML reads as something else: numbers, words for true, false and null, and what begins with an indicator.
_PLAIN = re.compile(r"[A-Za-z0-9_./\[-][A-Za-z0-9_./:\[\]-]*")
_OTHER = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9]*)?|\[.*|-|~|null|true|false|yes|no|on|off|y|n", re.IGNORECASE)


def to_yaml(document: dict[str, Any]) -> str:
    return "\n".join(_lines(document, "")) + "\n"


def _lines(document: dict[str, Any], indent: str) -> Iterator[str]:
    for name in sorted(document):
        value = document[name]
        if isinstance(value, dict) and value:
            yield f"{indent}{name}:"
            yield from _lines(value, f"{indent}  ")
        elif isinstance(value, list) and value:
            yield f"{indent}{name}:"
            yield from (f"{indent}- {_scalar(each)}" for each in value)
        else:
            yield f"{indent}{name}: {_scalar(value)}"


def _scalar(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str) and _PLAIN.fullmatch(value) and not _OTHER.fullmatch(value):
        return value
    return json.dumps(value)
