"""What people look at when a proxy puzzles them: /statusz, /flagz and /configz.

Text unless a client names one of the structured forms in `Accept`; JSON without naming it is refused, as upstream does.
The times are the caller's, in seconds of Unix time.
Our own: Python's version instead of Go's, and /configz names the fields as the file does.
Source: KEP-4827, KEP-4828, k8s.io/component-base zpages, Kubernetes 1.36.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping
from typing import Any

from kuproxy import __version__
from kuproxy.kubeproxy.config import complete, document_of
from kuproxy.kubeproxy.flags import FLAGS
from kuproxy.kubeproxy.listen import Answer, text
from kuproxy.kubeproxy.schema import KubeProxyConfiguration

__all__ = ["KUBERNETES", "PATHS", "configz", "flags_of", "flagz", "statusz"]

KUBERNETES = "1.36"  # whose kube-proxy this one does the work of
PATHS = ("/configz", "/flagz", "/healthz", "/metrics", "/proxyMode", "/statusz")
_COMPONENT = "kube-proxy"
_GROUP, _VERSIONS = "config.k8s.io", ("v1alpha1", "v1beta1")
_CONFIG_GROUP = "kubeproxy.config.k8s.io"
_WARNING = (
    "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees "
    "and is for debugging purposes only.\n"
)


def statusz(accept: str, started_s: float, now_s: float) -> Answer:
    """Since when it runs, and as what."""
    up = max(int(now_s - started_s), 0)
    minutes, seconds = divmod(up, 60)
    hours, minutes = divmod(minutes, 60)
    lines = (
        f"Started: {time.strftime('%a %b %e %H:%M:%S UTC %Y', time.gmtime(started_s))}\n"
        f"Up: {hours} hr {minutes:02} min {seconds:02} sec\n"
        f"Python version: {platform.python_version()}\n"
        f"Binary version: kuproxy {__version__}\n"
        f"Emulation version: {KUBERNETES}\n"
        f"Paths: {' '.join(PATHS)}\n"
    )
    structured = {
        "startTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started_s)),
        "uptimeSeconds": up,
        "binaryVersion": f"kuproxy {__version__}",
        "emulationVersion": KUBERNETES,
        "paths": list(PATHS),
    }
    return _page(accept, "Statusz", "statusz", lines, structured)


def flagz(accept: str, flags: Mapping[str, str]) -> Answer:
    """Every flag with its value."""
    lines = "".join(f"{name}={value}\n" for name, value in sorted(flags.items()))
    return _page(accept, "Flagz", "flags", lines, {"flags": dict(sorted(flags.items()))})


def configz(config: KubeProxyConfiguration) -> Answer:
    """The configuration that holds, with every default."""
    headers = {"Content-Type": "application/json", "X-Content-Type-Options": "nosniff"}
    return Answer(200, headers, json.dumps({_CONFIG_GROUP: document_of(config)}).encode())


def flags_of(words: Mapping[str, str], **others: str) -> dict[str, str]:
    """All flags by name: as they were said, else their default.  `others`: those that are no field of a file."""
    usual = document_of(complete(KubeProxyConfiguration()))
    return {flag.name: words.get(flag.name, _shown(usual, flag.path)) for flag in FLAGS} | others


def _shown(document: Mapping[str, Any], path: str) -> str:
    value: Any = document
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    if isinstance(value, Mapping):
        return ",".join(f"{name}={each}" for name, each in value.items())
    return "" if value is None else str(value)


def _page(accept: str, kind: str, title: str, lines: str, structured: dict[str, Any]) -> Answer:
    """In the form that comes first in `Accept` and that there is."""
    for asked in accept.split(",") if accept else ["*/*"]:
        media, *parts = (part.strip() for part in asked.split(";"))
        if media in ("*/*", "text/*", "text/plain"):
            return text(f"\n{_COMPONENT} {title}\n{_WARNING}\n{lines}")
        parameters = dict(part.partition("=")[::2] for part in parts)
        named = parameters.get("g") == _GROUP and parameters.get("as") == kind
        if media == "application/json" and named and parameters.get("v") in _VERSIONS:
            body = {"kind": kind, "apiVersion": f"{_GROUP}/{parameters['v']}", "metadata": {"name": _COMPONENT}}
            headers = {"Content-Type": "application/json", "X-Content-Type-Options": "nosniff"}
            return Answer(200, headers, json.dumps(body | structured).encode())
    forms = ", ".join(f"application/json;v={each};g={_GROUP};as={kind}" for each in _VERSIONS)
    return text(f"not acceptable; there are text/plain, {forms}\n", 406)
