"""The way of packets through the graph, with counters on nodes and edges; and the same as a picture."""

from __future__ import annotations

from typing import Any

import numpy as np

from kuproxy.codes import NODE_NEXT, REASON_TEXT, Node, Reason, end_of
from kuproxy.control.path import edge_packets
from kuproxy.daemon.api.views import Picture, View
from kuproxy.daemon.control import Controller
from kuproxy.daemon.sampler import Span
from kuproxy.pictures.graph import GraphEdge, GraphNode, graph_svg

__all__ = ["Graph", "get_graph", "get_graph_picture"]


class NodeCounts(View):
    """`outcome`: what became of the packets; `none`: an event beside that."""

    reason: str
    text: str
    outcome: str
    count: int
    per_s: float | None


class NodeView(View):
    node: str
    packets: int
    per_s: float | None
    counters: list[NodeCounts]


class EdgeView(View):
    """Null: what the nodes count leaves it open."""

    source: str
    target: str
    packets: int | None
    per_s: float | None


class Graph(View):
    """The way of packets; nodes in the order in which a vector visits them."""

    interval_s: float | None
    nodes: list[NodeView]
    edges: list[EdgeView]


def _ended(counters: np.ndarray) -> dict[Node, int]:
    """Packets that each node ended, from [nodes, reasons]."""
    return {
        node: round(sum(counters[node, reason] for reason in Reason if end_of(node, reason))) for node in Node
    }


def _edges(span: Span) -> list[EdgeView]:
    def of(given: np.ndarray, counters: np.ndarray) -> dict[tuple[Node, Node], int | None]:
        return edge_packets({node: round(given[node]) for node in Node}, _ended(counters))

    counts = of(span.now.given, span.now.counters)
    grown = None
    if span.before is not None:
        before = span.before
        grown = of(span.now.given - before.given, (span.now.counters - before.counters).astype(np.int64))
    edges = []
    for (source, target), packets in counts.items():
        more = None if grown is None else grown[source, target]
        rate = None if more is None or not span.seconds else more / span.seconds
        edges.append(EdgeView(source=source.label, target=target.label, packets=packets, per_s=rate))
    return edges


def _graph(span: Span) -> Graph:
    rates = span.rates(lambda sample: sample.counters)
    given = span.rates(lambda sample: sample.given)
    nodes = []
    for node in NODE_NEXT:
        counters = [
            NodeCounts(
                reason=reason.name,
                text=REASON_TEXT[reason],
                outcome=end_of(node, reason).name.lower(),
                count=int(span.now.counters[node, reason]),
                per_s=None if rates is None else float(rates[node, reason]),
            )
            for reason in Reason
            if span.now.counters[node, reason]
        ]
        nodes.append(
            NodeView(
                node=node.label,
                packets=int(span.now.given[node]),
                per_s=None if given is None else float(given[node]),
                counters=counters,
            )
        )
    return Graph(interval_s=span.seconds, nodes=nodes, edges=_edges(span))


def get_graph(controller: Controller, _query: Any, _body: None) -> Graph:
    return controller.sampler.answer("graph", _graph)


def get_graph_picture(controller: Controller, _query: Any, _body: None) -> Picture:
    def make(span: Span) -> Picture:
        graph = _graph(span)
        nodes = []
        for node in graph.nodes:
            drops = [(each.per_s, each.count) for each in node.counters if each.outcome == "drop"]
            nodes.append(
                GraphNode(
                    name=node.node,
                    packets=node.packets,
                    per_s=node.per_s,
                    dropped=sum(count for _, count in drops),
                    dropped_per_s=sum(rate or 0.0 for rate, _ in drops),
                )
            )
        edges = [GraphEdge(each.source, each.target, each.packets, each.per_s) for each in graph.edges]
        return Picture(svg=graph_svg(nodes, edges))

    return controller.sampler.answer("graph picture", make)
