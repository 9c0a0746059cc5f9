"""What kubectl asks before it does anything: versions, groups, resources, and OpenAPI v3 as far as it looks."""

from __future__ import annotations

from typing import Any

from .kinds import KINDS, Kind

Object = dict[str, Any]
_VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]

VERSION = {"major": "1", "minor": "36", "gitVersion": "v1.36.3", "platform": "linux/amd64"}
API_VERSIONS = {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}


def group_versions() -> list[tuple[str, str]]:
    return sorted({(kind.group, kind.version) for kind in KINDS.values()})


def _group(group: str, version: str) -> Object:
    both = {"groupVersion": f"{group}/{version}", "version": version}
    return {"name": group, "versions": [both], "preferredVersion": both}


def group_list() -> Object:
    groups = [_group(group, version) for group, version in group_versions() if group]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}


def group(name: str) -> Object | None:
    for known, version in group_versions():
        if known == name and known:
            return {"kind": "APIGroup", "apiVersion": "v1", **_group(known, version)}
    return None


def resource_list(of_group: str, version: str) -> Object | None:
    kinds = [kind for kind in KINDS.values() if (kind.group, kind.version) == (of_group, version)]
    if not kinds:
        return None
    resources = []
    for kind in kinds:
        resource = {
            "name": kind.plural,
            "singularName": kind.kind.lower(),
            "namespaced": kind.namespaced,
            "kind": kind.kind,
            "verbs": _VERBS,
            "shortNames": list(kind.short),
        }
        resources.append(resource)
        if kind.status:
            resources.append(
                {**resource, "name": f"{kind.plural}/status", "verbs": ["get", "patch", "update"]}
            )
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": kinds[0].api_version,
        "resources": resources,
    }


def openapi_index() -> Object:
    paths = {}
    for of_group, version in group_versions():
        path = f"apis/{of_group}/{version}" if of_group else f"api/{version}"
        paths[path] = {"serverRelativeURL": f"/openapi/v3/{path}?hash=0"}
    return {"paths": paths}


def openapi(of_group: str, version: str) -> Object:
    """Enough for kubectl to see that PATCH knows fieldValidation: the server then validates, not kubectl."""
    paths: Object = {}
    schemas: Object = {}
    for kind in KINDS.values():
        if (kind.group, kind.version) != (of_group, version):
            continue
        meaning = {"group": kind.group, "kind": kind.kind, "version": kind.version}
        parameters = [
            {"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": True}}
            for name in ("dryRun", "fieldManager", "fieldValidation", "force")
        ]
        operation = {
            "operationId": f"patch{kind.kind}",
            "parameters": parameters,
            "x-kubernetes-action": "patch",
            "x-kubernetes-group-version-kind": meaning,
            "responses": {"200": {"description": "OK"}},
        }
        paths[_object_path(kind)] = {"patch": operation}
        schemas[f"fake.{kind.kind}"] = {"type": "object", "x-kubernetes-group-version-kind": [meaning]}
    info = {"title": "Kubernetes", "version": VERSION["gitVersion"]}
    return {"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": schemas}}


def _object_path(kind: Kind) -> str:
    namespace = "/namespaces/{namespace}" if kind.namespaced else ""
    return f"{kind.prefix}{namespace}/{kind.plural}/{{name}}"
