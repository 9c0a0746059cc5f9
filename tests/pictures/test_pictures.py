"""Pictures are well-formed, show what they are given, and carry nothing that a strict policy would refuse."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from kuproxy.pictures.chart import bars_svg, lines_svg
from kuproxy.pictures.graph import GraphEdge, GraphNode, graph_svg
from kuproxy.pictures.ring import ring_svg
from kuproxy.pictures.svg import colour, short

SVG = "{http://www.w3.org/2000/svg}"


def parsed(text: str) -> ElementTree.Element:
    for forbidden in ("style=", "<style", "<script", "href", "onload"):
        assert forbidden not in text
    return ElementTree.fromstring(text)


def cells(path: ElementTree.Element) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"M([\d.]+) ([\d.]+)h", path.get("d", ""))]


def test_a_cell_for_each_slot_in_its_owners_colour() -> None:
    owners = [0, 1, 1, 0, -1, 2, 2, 2]
    picture = parsed(ring_svg(owners, ["a", "b", "c"]))
    paths = {path.get("data-pod"): path for path in picture.iter(f"{SVG}path")}
    assert {pod: len(cells(path)) for pod, path in paths.items()} == {"-1": 1, "0": 2, "1": 2, "2": 3}
    assert len({path.get("stroke") for path in paths.values()}) == 4
    places = [place for path in paths.values() for place in cells(path)]
    assert len(set(places)) == len(owners)
    assert "8 slots" in picture.get("aria-label", "") and "moved" not in picture.get("aria-label", "")


def test_slots_that_moved_show_both_owners() -> None:
    picture = parsed(ring_svg([0, 1, 1, 1], ["a", "b"], [0, 0, 1, 0]))
    assert "2 moved by the last change (50.0 %)" in picture.get("aria-label", "")
    [core] = [path for path in picture.iter(f"{SVG}path") if path.get("class") == "before"]
    assert (core.get("data-before"), len(cells(core))) == ("0", 2)
    bold = [
        path
        for path in picture.iter(f"{SVG}path")
        if path.get("class") == "pod" and not path.get("stroke-opacity")
    ]
    assert [(path.get("data-pod"), len(cells(path))) for path in bold] == [("1", 2)]


@pytest.mark.parametrize("slots", [0, 1, 2, 16, 1000, 16384])
def test_every_size_is_drawn(slots: int) -> None:
    picture = parsed(ring_svg([number % 5 for number in range(slots)], list("abcde")))
    assert sum(len(cells(path)) for path in picture.iter(f"{SVG}path")) == slots


def test_a_large_ring_is_thinned_and_says_so() -> None:
    picture = parsed(ring_svg([0] * 64, ["a"], [0] * 64, total=256, moved=3))
    label = picture.get("aria-label", "")
    assert "256 slots, 3 moved by the last change (1.2 %); one in 4 is drawn" in label


def test_names_cannot_break_out() -> None:
    picture = parsed(ring_svg([0], ['<script>alert("x")</script>'.replace("script", "s")], title='"<&>'))
    assert '"<&>: 1 slots' in picture.get("aria-label", "")
    assert [each.text for each in picture.iter(f"{SVG}title")] == ['<s>alert("x")</s>']


def test_colours_are_apart() -> None:
    assert len({colour(number) for number in range(64)}) == 64
    assert all(re.fullmatch("#[0-9a-f]{6}", colour(number)) for number in range(-1, 200))


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (0.44, "0.4"), (7, "7"), (42, "42"), (999.4, "999"), (999.6, "1.0k"), (1250, "1.2k"),
     (99_960, "100k"), (25e6, "25.0M"), (3.2e15, "3.2P")],
)  # fmt: skip
def test_short_numbers(number: float, text: str) -> None:
    assert short(number) == text


def test_the_graph_goes_left_to_right_and_nothing_overlaps() -> None:
    nodes = [
        GraphNode("in", 10, 5.0),
        GraphNode("left", 4),
        GraphNode("right", 6, 3.0, dropped=2, dropped_per_s=1.0),
        GraphNode("out", 8),
    ]
    edges = [
        GraphEdge("in", "left", 4, 2.0), GraphEdge("in", "right", 6, 3.0), GraphEdge("left", "out", 4),
        GraphEdge("right", "out"), GraphEdge("in", "out", 0, 0.0),
    ]  # fmt: skip
    picture = parsed(graph_svg(nodes, edges))
    places = {}
    for group in picture.iter(f"{SVG}g"):
        if group.get("class") == "node":
            found = re.search(r"\(([\d.]+) ([\d.]+)\)", group.get("transform", ""))
            title = group.find(f"{SVG}title")
            assert found is not None and title is not None and title.text is not None
            places[title.text.partition(":")[0]] = (float(found[1]), float(found[2]))
    assert places["in"][0] < places["left"][0] == places["right"][0] < places["out"][0]
    assert abs(places["left"][1] - places["right"][1]) > 44
    lines = [path for path in picture.iter(f"{SVG}path") if path.get("class") == "edge"]
    assert len(lines) == len(edges)
    assert [line.get("stroke-dasharray") is not None for line in lines] == [False, False, False, True, False]
    texts = [each.text for each in picture.iter(f"{SVG}text")]
    assert {"2/s", "3/s", "✕ 1/s", "5/s · 10"} <= set(texts)


def test_lines_lie_where_their_values_are() -> None:
    picture = parsed(
        lines_svg({"a & b": [(0, 0.0), (5, 1.0), (10, 2.0)]}, title="t", x_label="seconds", y_label="flows")
    )
    [line] = [path for path in picture.iter(f"{SVG}path") if path.get("class") == "line"]
    points = [tuple(map(float, point)) for point in re.findall(r"([\d.]+) ([\d.]+)", line.get("d", ""))]
    assert points == [(64.0, 256.0), (384.0, 143.0), (704.0, 30.0)]
    words = [each.text for each in picture.iter(f"{SVG}text")]
    assert "a & b" in words and "10" in words and "2" in words


def test_lines_have_gaps_where_nothing_was_measured() -> None:
    nothing = float("nan")
    picture = lines_svg(
        {"a": [(0, 1.0), (1, nothing), (2, 3.0), (3, 4.0)]}, title="t", x_label="x", y_label="y"
    )
    [path] = re.findall(r'class="line" d="([^"]+)"', picture)
    assert path.count("M") == 2 and path.count("L") == 1
    with pytest.raises(ValueError, match="no points"):
        lines_svg({"a": [(0, nothing)]}, title="t", x_label="x", y_label="y")


def test_bars_are_as_long_as_their_values() -> None:
    picture = parsed(bars_svg([("<a>", 10.0), ("b", 5.0)], title="shares", unit="slots", even=7.5))
    first, second = (float(bar.get("width", "")) for bar in picture.iter(f"{SVG}rect"))
    assert first == pytest.approx(2 * second)
    assert any(path.get("class") == "even" for path in picture.iter(f"{SVG}path"))
    cut = bars_svg([(str(number), 1.0) for number in range(300)], title="many")
    assert cut.count('class="bar"') == 200 and "the first 200 of 300" in cut
