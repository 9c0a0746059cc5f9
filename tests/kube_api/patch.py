"""PATCH: merge patches, strategic merge patches as kubectl makes them, and a server-side apply that merges."""

from __future__ import annotations

import copy
from typing import Any

import yaml

from .errors import ApiError
from .kinds import MERGE_KEYS

Object = dict[str, Any]


def patched(kind: str, old: Object, content_type: str, body: bytes) -> Object:
    """The object after the patch.  Raises ApiError 415 for a type of patch that is not known."""
    patch = yaml.safe_load(body)  # YAML, because apply sends it; JSON is YAML
    match content_type.partition(";")[0]:
        case "application/merge-patch+json":
            return _merge(old, patch)
        case "application/strategic-merge-patch+json":
            return _strategic(kind, "", old, patch)
        case "application/apply-patch+yaml":
            return _strategic(kind, "", old, patch)
        case other:
            raise ApiError(
                415, "UnsupportedMediaType", f"the body of the request was in an unknown format: {other}"
            )


def _merge(old: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = copy.deepcopy(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merge(merged.get(key), value)
    return merged


def _strategic(kind: str, path: str, old: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    if patch.get("$patch") == "replace":
        return {key: value for key, value in patch.items() if key != "$patch"}
    merged = copy.deepcopy(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if key.startswith(("$setElementOrder/", "$retainKeys")):
            continue
        below = f"{path}.{key}" if path else key
        if key.startswith("$deleteFromPrimitiveList/"):
            field = key.partition("/")[2]
            merged[field] = [item for item in merged.get(field) or () if item not in value]
        elif value is None:
            merged.pop(key, None)
        elif isinstance(value, list):
            merged[key] = _list(kind, below, merged.get(key) or [], value)
        else:
            merged[key] = _strategic(kind, below, merged.get(key), value)
    return merged


def _list(kind: str, path: str, old: list[Any], patch: list[Any]) -> list[Any]:
    merge_key = MERGE_KEYS.get((kind, path), MERGE_KEYS.get(("*", path)))
    if merge_key is None:
        return copy.deepcopy(patch)
    if not merge_key:
        return old + [item for item in patch if item not in old]
    merged = [copy.deepcopy(item) for item in old]
    for item in patch:
        if item.get("$patch") == "replace":
            return [other for other in patch if "$patch" not in other]
        where = [i for i, other in enumerate(merged) if other.get(merge_key) == item.get(merge_key)]
        if item.get("$patch") == "delete":
            merged = [other for i, other in enumerate(merged) if i not in where]
        elif where:
            merged[where[0]] = _strategic(kind, f"{path}[]", merged[where[0]], item)
        else:
            merged.append(copy.deepcopy(item))
    return merged
