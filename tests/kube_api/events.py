"""events.k8s.io/v1 as the server keeps it: one event, which core/v1 shows under other names.

Source: k8s.io/kubernetes pkg/apis/core/validation/events.go.
"""

from __future__ import annotations

from typing import Any

from .errors import ApiError

Object = dict[str, Any]


def to_core(event: Object) -> Object:
    """What `kubectl get events` sees of a new event.  Raises ApiError for what a real server refuses."""
    for field in ("eventTime", "reportingController", "reportingInstance", "action", "reason", "regarding"):
        if not event.get(field):
            raise ApiError(422, "Invalid", f"Event is invalid: {field}: Required value")
    if event.get("type") not in ("Normal", "Warning"):
        raise ApiError(422, "Invalid", f"Event is invalid: type: Invalid value: {event.get('type')!r}")
    if len(event.get("note", "")) > 1024 or len(event["reportingInstance"]) > 128:
        raise ApiError(422, "Invalid", "Event is invalid: can have at most 1024 (note) and 128 characters")
    namespace = event["metadata"].get("namespace")
    if (event["regarding"].get("namespace") or "default") != namespace:
        raise ApiError(
            422, "Invalid", "Event is invalid: involvedObject.namespace: does not match event.namespace"
        )
    renamed = {"regarding": "involvedObject", "note": "message", "reportingController": "reportingComponent"}
    kept = {renamed.get(name, name): value for name, value in event.items()}
    return kept | {"apiVersion": "v1", "kind": "Event"}
