"""The graph of nodes, left to right in the order in which packets meet them, with what is counted on it.

A node stands as far right as the longest way to it; an edge is as thick as the number of packets that take it, and goes
through lanes where it passes other nodes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from kuproxy.pictures.svg import DROPPED, document, short, text

__all__ = ["GraphEdge", "GraphNode", "graph_svg"]

_BOX_W, _BOX_H = 124, 44
_COLUMN, _GAP = 172, 17
_LANE = 4
_MARGIN = 8

Place = tuple[float, float]
Lane = tuple[str, int]  # of the edges to a node, through a column on their way
Stop = str | Lane


@dataclass(frozen=True, slots=True)
class GraphNode:
    """A node and what it was given; rates are None where nobody measured."""

    name: str
    packets: int = 0
    per_s: float | None = None
    dropped: int = 0
    dropped_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class GraphEdge:
    """From one node to another; None: not known."""

    source: str
    target: str
    packets: int | None = None
    per_s: float | None = None


def _columns(nodes: Sequence[GraphNode], edges: Sequence[GraphEdge]) -> dict[str, int]:
    """By name: the length of the longest way there.  Nodes come in such an order that no edge goes back."""
    column = {node.name: 0 for node in nodes}
    for node in nodes:
        for edge in edges:
            if edge.source == node.name:
                column[edge.target] = max(column[edge.target], column[node.name] + 1)
    return column


def _ways(edges: Sequence[GraphEdge], column: dict[str, int]) -> dict[GraphEdge, list[Stop]]:
    """Where an edge goes through: edges to one node share a lane through each column between."""
    return {
        edge: [
            edge.source,
            *((edge.target, number) for number in range(column[edge.source] + 1, column[edge.target])),
            edge.target,
        ]
        for edge in edges
    }


def _places(
    nodes: Sequence[GraphNode], column: dict[str, int], ways: Iterable[list[Stop]]
) -> dict[Stop, Place]:
    """Left ends, at half height.  In a column, boxes and lanes are sorted by the middle of what leads to them."""
    before: dict[Stop, set[Stop]] = {}
    for way in ways:
        for first, second in pairwise(way):
            before.setdefault(second, set()).add(first)
    lanes = {stop for stop in before if isinstance(stop, tuple)}
    columns: list[list[Stop]] = []
    for number in range(max(column.values()) + 1):
        boxes: list[Stop] = [node.name for node in nodes if column[node.name] == number]
        columns.append([*boxes, *sorted(lane for lane in lanes if lane[1] == number)])
    heights = [sum(map(_height, members)) + _GAP * (len(members) - 1) for members in columns]
    places: dict[Stop, Place] = {}
    for number, members in enumerate(columns):

        def middle(stop: Stop) -> float:
            ys = [places[each][1] for each in before.get(stop, ())]
            return sum(ys) / len(ys) if ys else 0.0

        y = _MARGIN + (max(heights) - heights[number]) / 2
        for stop in sorted(members, key=middle):
            places[stop] = (_MARGIN + number * _COLUMN, y + _height(stop) / 2)
            y += _height(stop) + _GAP
    return places


def _height(stop: Stop) -> float:
    return _BOX_H if isinstance(stop, str) else _LANE


def _curve(way: list[Stop], places: dict[Stop, Place]) -> str:
    x, y = places[way[0]]
    path = f"M{x + _BOX_W:g} {y:g}"
    for stop in way[1:]:
        start = x + _BOX_W
        x, end = places[stop]
        bend = (x - start) / 2
        path += f"C{start + bend:g} {y:g} {x - bend:g} {end:g} {x:g} {end:g}"
        if isinstance(stop, tuple):
            path += f"H{x + _BOX_W:g}"
        y = end
    return path


def _edge(edge: GraphEdge, way: list[Stop], places: dict[Stop, Place]) -> tuple[str, str]:
    """The line, and its label, which lies above all lines."""
    seen, flowing = edge.packets, edge.per_s
    amount = flowing if flowing is not None else float(seen or 0)
    width = 1 + min(6.0, math.log10(1 + amount)) if amount else 1
    opacity = 0.5 if amount else 0.28 if seen else 0.1
    dash = ' stroke-dasharray="3 3"' if seen is None else ""
    told = "not known" if seen is None else f"{seen} packets"
    label = ""
    if amount:
        words = f"{short(amount)}/s" if flowing is not None else short(amount)
        (x1, y1), (x2, y2) = places[way[-2]], places[way[-1]]
        x, y = (x1 + _BOX_W + x2) / 2, (y1 + y2) / 2 + 3
        label = (
            f'<text x="{x:g}" y="{y:g}" font-size="10" text-anchor="middle" stroke="Canvas" stroke-width="3" '
            f'stroke-linejoin="round" paint-order="stroke">{text(words)}</text>'
        )
    title = text(f"{edge.source} to {edge.target}: {told}")
    line = (
        f'<path class="edge" d="{_curve(way, places)}" fill="none" stroke="currentColor" '
        f'stroke-width="{width:.2g}" stroke-opacity="{opacity}"{dash}><title>{title}</title></path>'
    )
    return line, label


def _box(node: GraphNode, place: Place) -> str:
    x, y = place[0], place[1] - _BOX_H / 2
    busy = bool(node.per_s) or (node.per_s is None and node.packets > 0)
    shade = 0.12 if busy else 0.03
    opacity = "" if node.packets else ' opacity=".55"'
    counted = short(node.packets)
    if node.per_s:
        counted = f"{short(node.per_s)}/s · {counted}"
    dropped = ""
    if node.dropped:
        rate = f"{short(node.dropped_per_s)}/s" if node.dropped_per_s else short(node.dropped)
        dropped = (
            f'<text x="{_BOX_W - 4}" y="{_BOX_H + 12}" font-size="11" text-anchor="end" fill="{DROPPED}" '
            f'stroke="Canvas" stroke-width="3" paint-order="stroke">{text(f"✕ {rate}")}</text>'
        )
    title = f"{node.name}: {node.packets} packets, {node.dropped} dropped"
    size = f'width="{_BOX_W}" height="{_BOX_H}" rx="6"'
    # Opaque first, in the colour of the page, so that no line seems to go through.
    return (
        f'<g class="node" transform="translate({x:g} {y:g})"><title>{text(title)}</title>'
        f'<rect {size} fill="Canvas"/>'
        f'<g{opacity}><rect {size} fill="currentColor" fill-opacity="{shade}" stroke="currentColor" '
        f'stroke-opacity=".35"/><text x="8" y="18" font-size="12" font-weight="600">{text(node.name)}</text>'
        f'<text x="8" y="34" font-size="11">{text(counted)}</text></g>{dropped}</g>'
    )


def graph_svg(nodes: Sequence[GraphNode], edges: Sequence[GraphEdge]) -> str:
    """Nodes in an order in which no edge goes back."""
    column = _columns(nodes, edges)
    ways = _ways(edges, column)
    places = _places(nodes, column, ways.values())
    width = max(x for x, _ in places.values()) + _BOX_W + _MARGIN
    height = max(y for _, y in places.values()) + _BOX_H / 2 + 2 * _MARGIN
    drawn = [_edge(edge, way, places) for edge, way in ways.items()]
    parts = [line for line, _ in drawn]
    parts += [_box(node, places[node.name]) for node in nodes]
    parts += [label for _, label in drawn]
    return document(width, height, "the way of packets through the graph", parts)
