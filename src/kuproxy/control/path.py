"""How many packets went along each edge of the graph, concluded from what its nodes counted.

Nodes count what they were given and what they ended; nothing is counted per edge, because that would cost every
packet.  What goes into a node comes along its edges, what it does not end leaves along its edges, and with that all
edges but a few are known: `None` where the graph leaves it open (kp-masquerade with both IP versions at once).
"""

from __future__ import annotations

from collections.abc import Mapping

from kuproxy.codes import NODE_NEXT, Node

__all__ = ["Edge", "edge_packets"]

Edge = tuple[Node, Node]

EDGES: tuple[Edge, ...] = tuple((node, following) for node, nexts in NODE_NEXT.items() for following in nexts)


def edge_packets(given: Mapping[Node, int], ended: Mapping[Node, int]) -> dict[Edge, int | None]:
    """By edge; both maps by node, absent is 0. Counters that were read while they moved give no negative result."""
    found: dict[Edge, int | None] = dict.fromkeys(EDGES)
    sums: list[tuple[list[Edge], int]] = []
    for node in NODE_NEXT:
        into = [edge for edge in EDGES if edge[1] is node]
        out = [edge for edge in EDGES if edge[0] is node]
        sums.append((into, given.get(node, 0)))
        if node is not Node.FRAGMENT:  # what it holds leaves in a later vector, or not at all
            sums.append((out, given.get(node, 0) - ended.get(node, 0)))
    changed = True
    while changed:
        changed = False
        for edges, total in sums:
            unknown = [edge for edge in edges if found[edge] is None]
            rest = total - sum(found[edge] or 0 for edge in edges)
            if unknown and (len(unknown) == 1 or rest <= 0):
                found |= dict.fromkeys(unknown, max(rest, 0))
                changed = True
    return found
