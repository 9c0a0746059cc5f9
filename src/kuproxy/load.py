"""Configuration files into one `Config`: `ku` scripts and Kubernetes manifests, told apart by their suffix.

This is where files are read; what they mean is decided by `vppcli`, `kube` and `control`, which read none.

The files are one configuration: scripts continue each other in the order given, and a Service may stand in another
file than its EndpointSlices.  Every file is read to its end before anything is refused, and the refusal names all
problems of all files.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from kuproxy.control import policy
from kuproxy.control.store import Store
from kuproxy.errors import ConfigError, ConflictError, Problem
from kuproxy.kube.manifest import Manifest, read_manifest
from kuproxy.kube.reader import Finding
from kuproxy.kube.reader import Path as FieldPath
from kuproxy.model.config import Config, Settings
from kuproxy.model.node import DetectLocalMode, NodeInfo, NodeView, ProxySettings
from kuproxy.model.service import EndpointSlice, Service, ServiceObjects
from kuproxy.model.vip import Prefix, Vip
from kuproxy.vppcli.apply import Desired

__all__ = ["MANIFEST_SUFFIXES", "SCRIPT_SUFFIX", "load_config", "load_with_places", "read_text"]

T = TypeVar("T")

SCRIPT_SUFFIX = ".ku"
SCRIPT_OWNER = "ku"  # of the VIPs of scripts
MANIFEST_SUFFIXES = (".yaml", ".yml", ".json")

# Scripts have VPP's 1,024 buckets unless they say otherwise. A node whose configuration is manifests alone has nobody
# to say it: 262,144 flows, as many as Linux' connection tracking has room for by default. Unused memory is not taken.
MANIFEST_BUCKETS = 65_536


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an object stands; its line is looked up only when there is something to say about it."""

    manifest: Manifest
    subject: str
    path: FieldPath

    def problem(self, message: str) -> Problem:
        finding = Finding(self.subject, self.path, message, depth=len(self.path))
        return self.manifest.place([finding])[0]


@dataclass(slots=True)
class _Objects:
    """What all manifests together hold, each object once."""

    services: dict[str, tuple[Service, _Place]] = field(default_factory=dict)
    slices: dict[str, tuple[EndpointSlice, _Place]] = field(default_factory=dict)
    nodes: dict[str, tuple[NodeInfo, _Place]] = field(default_factory=dict)
    service_cidrs: list[Prefix] = field(default_factory=list)


def load_config(paths: Sequence[Path | str]) -> Config:
    """Read files.  Raises ConfigError with every problem, in the order of the files and their lines."""
    return _load(paths)[0]


def load_with_places(paths: Sequence[Path | str]) -> tuple[Config, Callable[[Vip], Problem]]:
    """The same, and what says of a VIP where it stands: a problem with file and line, and no message."""
    config, objects, desired = _load(paths)

    def place(vip: Vip) -> Problem:
        if vip.owner == SCRIPT_OWNER:
            return desired.place_of(vip.key).problem("")
        found = objects.services.get(vip.owner.partition(":")[0])
        return Problem("") if found is None else found[1].problem("")

    return config, place


def _load(paths: Sequence[Path | str]) -> tuple[Config, _Objects, Desired]:
    problems: list[Problem] = []
    notes: list[Problem] = []
    desired = Desired()
    objects = _Objects()
    for name in paths:
        path = Path(name)
        try:
            _load_file(path, desired, objects, notes)
        except ConfigError as error:
            problems.extend(error.problems)
    config = desired.config(tuple(map(str, paths)))
    view = _view(objects, config.settings, notes)
    vips = _service_vips(objects, view, notes)
    problems.extend(_conflicts(desired.vips, vips))
    if problems:
        raise ConfigError(problems)
    if view is not None:
        # What no script says the node's object does.
        settings = config.settings
        if not settings.pod_ranges:
            settings = replace(settings, pod_ranges=policy.pod_ranges(view))
        config = replace(config, settings=settings, node_addresses=view.node.addresses)
    if not any(Path(name).suffix == SCRIPT_SUFFIX for name in paths):
        config = replace(config, settings=replace(config.settings, buckets=MANIFEST_BUCKETS))
    config = replace(
        config,
        vips=config.vips + tuple(vips),
        notes=tuple(notes),
        services=_service_objects(objects),
        view=view,
    )
    return config, objects, desired


def _service_objects(objects: _Objects) -> tuple[ServiceObjects, ...]:
    slices: dict[str, list[EndpointSlice]] = {}
    for endpoint_slice, _place in objects.slices.values():
        slices.setdefault(endpoint_slice.service_full_name, []).append(endpoint_slice)
    return tuple(
        ServiceObjects(service, tuple(slices.get(name, ())))
        for name, (service, _place) in objects.services.items()
    )


def read_text(path: Path) -> str:
    """What a file of the user's says, UTF-8 with or without a byte order mark.  Raises ConfigError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(Problem(f"cannot be read: {error.strerror}", str(path))) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(Problem("is not UTF-8", str(path), line)) from None


def _load_file(path: Path, desired: Desired, objects: _Objects, notes: list[Problem]) -> None:
    file = str(path)
    if path.suffix not in (SCRIPT_SUFFIX, *MANIFEST_SUFFIXES):
        known = ", ".join((SCRIPT_SUFFIX, *MANIFEST_SUFFIXES))
        raise ConfigError(
            Problem(f"unknown kind of file {path.suffix!r}", file, hint=f"it is one of {known}")
        )
    text = read_text(path)
    if path.suffix == SCRIPT_SUFFIX:
        desired.run(text, file)
    else:
        _load_manifest(text, file, objects, notes)


def _load_manifest(text: str, file: str, objects: _Objects, notes: list[Problem]) -> None:
    manifest = read_manifest(text, file)
    converted = manifest.converted
    problems = manifest.place(converted.problems)
    notes.extend(manifest.place(converted.notes))
    for service, path in converted.services:
        place = _Place(manifest, f"Service {service.full_name}", path)
        problems += _add_once(objects.services, service.full_name, service, place)
    for endpoint_slice, path in converted.slices:
        name = f"{endpoint_slice.namespace}/{endpoint_slice.name}"
        place = _Place(manifest, f"EndpointSlice {name}", path)
        problems += _add_once(objects.slices, name, endpoint_slice, place)
    for node, path in converted.nodes:
        problems += _add_once(objects.nodes, node.name, node, _Place(manifest, f"Node {node.name}", path))
    objects.service_cidrs += converted.service_cidrs
    if problems:
        raise ConfigError(sorted(problems, key=lambda problem: problem.line))


def _add_once(known: dict[str, tuple[T, _Place]], name: str, item: T, place: _Place) -> list[Problem]:
    if name in known:
        first = known[name][1].problem("")
        return [place.problem(f"is given twice, first at {first.file}:{first.line}")]
    known[name] = (item, place)
    return []


def _view(objects: _Objects, settings: Settings, notes: list[Problem]) -> NodeView | None:
    """From which node the manifests are looked at: the only Node among them, or the one that has this host's name.

    Its pods are known by `ku conf pod-ranges`, else by its podCIDRs.
    """
    nodes = objects.nodes
    host = socket.gethostname().lower()
    if not nodes or (len(nodes) > 1 and host not in nodes):
        for _, place in nodes.values():
            notes.append(
                place.problem(f"skipped: of {len(nodes)} nodes none is called {host!r}, as this host")
            )
        return None
    node, _place = nodes[host] if len(nodes) > 1 else next(iter(nodes.values()))
    by_prefix = DetectLocalMode.CLUSTER_CIDR if settings.pod_ranges else DetectLocalMode.NODE_CIDR
    first = {prefix.version: prefix for prefix in reversed(settings.pod_ranges)}
    proxy = ProxySettings(
        detect_local_mode=by_prefix,
        cluster_cidrs=tuple(first.values()),
        service_cidrs=tuple(objects.service_cidrs),
    )
    return NodeView(node, proxy)


def _service_vips(objects: _Objects, view: NodeView | None, notes: list[Problem]) -> list[Vip]:
    for service, place in objects.services.values():
        reason = policy.skip_reason(service)
        texts = [f"skipped: {reason}"] if reason is not None else []
        if reason is None and view is None:
            texts = policy.not_honoured(service)
        notes.extend(map(place.problem, texts))
    return policy.vips_of(
        (service for service, _place in objects.services.values()),
        (endpoint_slice for endpoint_slice, _place in objects.slices.values()),
        view,
    )


def _conflicts(*groups: Iterable[Vip]) -> tuple[Problem, ...]:
    try:
        Store().replace("files", (vip for group in groups for vip in group))
    except ConflictError as error:
        return error.problems
    return ()
