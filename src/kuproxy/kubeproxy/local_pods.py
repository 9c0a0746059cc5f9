"""`detectLocalMode` by interface: the pods of this node are whoever is behind an interface of theirs.

The tables know a packet's origin by its source alone (ADR 010), so the kernel's routes are asked which addresses are
there, and followed as pods come and go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from kuproxy.daemon.kubernetes import KubernetesSource
from kuproxy.daemon.thread import ControlThread
from kuproxy.model.node import DetectLocalMode, ProxySettings
from kuproxy.steering.pod_routes import PodRoutes
from kuproxy.steering.steering import Steering

__all__ = ["follow_pods", "interfaces_of"]


def interfaces_of(settings: ProxySettings) -> Callable[[str], bool] | None:
    """Which interface, by its name, is pods'; None: pods are told by prefixes."""
    if settings.detect_local_mode is DetectLocalMode.BRIDGE_INTERFACE:
        return settings.bridge_interface.__eq__
    if settings.detect_local_mode is DetectLocalMode.INTERFACE_NAME_PREFIX:
        return lambda name: name.startswith(settings.interface_name_prefix)
    return None


async def follow_pods(
    is_pods: Callable[[str], bool],
    source: KubernetesSource,
    thread: ControlThread,
    steering: Steering,
    log: Any,
) -> None:
    """Until cancelled.  Raises SteeringError if the kernel does not say."""
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    routes = await thread(PodRoutes, is_pods)
    try:
        known = routes.networks(steering.addresses)
        await thread(source.follow_pods, known)
        if not known:
            log.warning("detectLocalMode", text="no route leads to an interface of pods (yet): no traffic is pods'")
        while True:
            loop.add_reader(routes.fileno(), readable.set)
            try:
                await readable.wait()
            finally:
                loop.remove_reader(routes.fileno())
            readable.clear()
            await thread(routes.poll)
            found = routes.networks(steering.addresses)
            if found != known:
                known = found
                await thread(source.follow_pods, known)
    finally:
        routes.close()
