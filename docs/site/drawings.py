"""The drawings of the explanations, by the code that draws the daemon's page and `ku plot`'s files."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address

from kuproxy.control.compile import ring_owners
from kuproxy.model.vip import Pod
from kuproxy.pictures.chart import bars_svg
from kuproxy.pictures.ring import ring_svg

PODS = [f"10.0.0.{number}" for number in range(1, 6)]
SLOTS = 256


def _owners(pods: list[str]) -> list[int]:
    """By slot, a position in PODS."""
    made = ring_owners([Pod(ip_address(each)) for each in pods], SLOTS)
    return [PODS.index(str(pod.address)) for pod in made]


def graph() -> str:
    """Nodes and the ways between them, with the packets of the example."""
    from docs.site.example import controller
    from kuproxy.daemon.api.graph import get_graph_picture

    return get_graph_picture(controller(), None, None).svg


def ring() -> str:
    """A table of five pods."""
    return ring_svg(_owners(PODS), PODS, title="new-flow table of five pods")


def moved() -> str:
    """What changes in it when the third pod goes."""
    rest = [pod for pod in PODS if pod != PODS[2]]
    return ring_svg(_owners(rest), PODS, _owners(PODS), title="without 10.0.0.3")


def shares() -> str:
    """How many slots each has, one of them with half the weight."""
    pods = [Pod(ip_address(each), 0, 50 if each == PODS[4] else 100) for each in PODS]
    owners = [str(pod.address) for pod in ring_owners(pods, SLOTS)]
    bars = [(pod, float(owners.count(pod))) for pod in PODS]
    return bars_svg(bars, title="slots of 256; 10.0.0.5 has half the weight")


DRAWINGS: dict[str, Callable[[], str]] = {"graph": graph, "ring": ring, "moved": moved, "shares": shares}
