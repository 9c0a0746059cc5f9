"""One place to touch: whatever is declared once must be there everywhere."""

import inspect
from pathlib import Path

import numpy as np
import pytest
from numba.core.errors import NumbaError

import kuproxy.dataplane.graph as graph
from kuproxy.codes import N_REASONS, NODE_NAMES, REASON_TEXT, VIP_COUNTER_TEXT, Node, Reason, VipCounter
from kuproxy.dataplane import nodes
from kuproxy.dataplane._jit import COMPILED, kernel
from kuproxy.reference import forwarding

DOCUMENT = (Path(__file__).parents[2] / "docs" / "forwarding.md").read_text()


def test_every_node_has_a_name_a_function_and_a_place_in_the_document():
    assert set(NODE_NAMES) == set(Node) == set(graph.NODES)
    assert len(set(NODE_NAMES.values())) == len(Node)
    for node, function in graph.NODES.items():
        assert function.py_func.__name__ if hasattr(function, "py_func") else function.__name__
        assert node.label in DOCUMENT, f"docs/forwarding.md does not tell what {node.label} does"


def test_run_graph_visits_the_nodes_of_the_table_in_order():
    source = inspect.getsource(getattr(graph.run_graph, "py_func", graph.run_graph))
    names = [getattr(function, "py_func", function).__name__ for function in graph.NODES.values()]
    places = [source.index(f"{name}(frame, tables, state, now)") for name in names]
    assert places == sorted(places)


def test_every_node_is_a_file_of_its_own_that_says_why():
    for path in Path(nodes.__file__).parent.glob("*.py"):
        first = path.read_text().split('"""')
        assert len(first) > 1 and len(first[1]) > 20, f"{path.name} has no docstring"


def test_every_reason_has_a_sentence_and_every_one_its_own():
    assert set(REASON_TEXT) == set(Reason)
    assert len(set(REASON_TEXT.values())) == len(Reason)
    assert max(Reason) < N_REASONS
    assert set(VIP_COUNTER_TEXT) == set(VipCounter)


def test_the_reference_knows_every_reason():
    """What only kernels count would never be compared."""
    text = "".join(path.read_text() for path in Path(forwarding.__file__).parent.glob("*.py"))
    compared = set(Reason) - {Reason.NONE, Reason.WORKER_ENDED}  # the latter is no kernel's: engine/repair.py
    missing = [reason.name for reason in compared if f"Reason.{reason.name}" not in text]
    assert not missing


@pytest.mark.skipif(not COMPILED, reason="the compiler is off")
def test_kernels_cannot_allocate():
    """docs/adr/002: with Numba's reference counts in them kernels would run several times slower."""

    @kernel
    def greedy(size):
        return np.empty(size, np.uint8)[0]

    with pytest.raises(NumbaError):
        greedy(3)
