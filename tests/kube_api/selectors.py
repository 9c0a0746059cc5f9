"""Label and field selectors, as the API has them in query parameters."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from .errors import ApiError

Object = dict[str, Any]
Predicate = Callable[[Object], bool]

_SET = re.compile(r"^(\S+)\s+(in|notin)\s+\(([^)]*)\)$")


def _requirements(text: str) -> list[str]:
    """Cut at commas outside parentheses."""
    parts = re.split(r",(?![^(]*\))", text)
    return [part.strip() for part in parts if part.strip()]


def _label_test(requirement: str) -> Predicate:
    def labels(obj: Object) -> dict[str, str]:
        return obj.get("metadata", {}).get("labels") or {}

    if match := _SET.match(requirement):
        key, operator, values = match.groups()
        allowed = {value.strip() for value in values.split(",")}
        if operator == "in":
            return lambda obj: labels(obj).get(key) in allowed
        return lambda obj: labels(obj).get(key) not in allowed
    if requirement.startswith("!"):
        return lambda obj: requirement[1:].strip() not in labels(obj)
    for operator in ("!=", "==", "="):
        key, found, value = requirement.partition(operator)
        if found:
            key, value = key.strip(), value.strip()
            if operator == "!=":
                return lambda obj: labels(obj).get(key) != value
            return lambda obj: labels(obj).get(key) == value
    return lambda obj: requirement in labels(obj)


def _field_test(requirement: str) -> Predicate:
    negative = "!=" in requirement
    field, _, value = requirement.replace("==", "=").partition("!=" if negative else "=")
    if field not in ("metadata.name", "metadata.namespace"):
        raise ApiError(400, "BadRequest", f"field label not supported: {field}")
    name = field.removeprefix("metadata.")
    return lambda obj: (obj["metadata"].get(name, "") == value) != negative


def selector(label_selector: str = "", field_selector: str = "", namespace: str = "") -> Predicate:
    tests = [_label_test(requirement) for requirement in _requirements(label_selector)]
    tests += [_field_test(requirement) for requirement in _requirements(field_selector)]
    if namespace:
        tests.append(lambda obj: obj["metadata"].get("namespace") == namespace)
    return lambda obj: all(test(obj) for test in tests)
