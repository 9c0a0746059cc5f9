"""The Maglev ring: a cell for each slot in its owner's colour, in reading order.

With a ring before, slots that moved stand out: the cell is the new owner's, its core the former one's, and all others
step back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kuproxy.pictures.svg import colour, document, text

__all__ = ["MOST_CELLS", "ring_svg"]

MOST_CELLS = 16384  # to be drawn: cells below 4 pixels tell nothing
_WIDTH = 960
_CAPTION = 26
_GAP = 0.1  # of a cell
_CORE = 0.42


def _cells(slots: Iterable[int], columns: int, side: float) -> str:
    """A path of horizontal strokes, one for each cell, in units of cells; centred."""
    inset = f"{(1 - side) / 2:g}"
    return "".join(
        f"M{slot % columns}{inset.lstrip('0') if inset != '0' else ''} {slot // columns}h{side:g}"
        for slot in slots
    )


def _by_owner(owners: Sequence[int], wanted: Iterable[int]) -> dict[int, list[int]]:
    groups: dict[int, list[int]] = {}
    for slot in wanted:
        groups.setdefault(owners[slot], []).append(slot)
    return dict(sorted(groups.items()))


def ring_svg(
    owners: Sequence[int],
    names: Sequence[str],
    before: Sequence[int] | None = None,
    *,
    total: int = 0,
    moved: int = 0,
    title: str = "new-flow table",
) -> str:
    """`owners[slot]` is a position in `names`, -1 nobody; `before` the same before the last change, None if unknown.

    Of a ring above MOST_CELLS, give every so manyth slot, and `total` and `moved` of the whole.  Each owner's cells are
    an element of class `pod` with `data-pod`, its position (cores: `before`, `data-before`), so that a page may point
    it out.
    """
    total = total or len(owners)
    changed = [] if before is None else [slot for slot in range(len(owners)) if owners[slot] != before[slot]]
    caption = f"{total} slots"
    if before is not None:
        number = moved or len(changed)
        caption += f", {number} moved by the last change ({100 * number / total if total else 0:.1f} %)"
    if total > len(owners):
        caption += f"; one in {total // len(owners)} is drawn"
    drawn = len(owners)
    columns = 1 << ((drawn.bit_length() - 1) // 2 + 1) if drawn > 1 else 1
    columns = min(columns, drawn or 1)
    rows = -(-drawn // columns)
    size = min(_WIDTH / columns, 40)
    gone = set(changed)
    parts = [
        f'<g transform="scale({size:g}) translate(0 .5)" fill="none" stroke-width="{1 - _GAP:g}">',
    ]
    still = _by_owner(owners, (slot for slot in range(drawn) if slot not in gone))
    fade = ' stroke-opacity=".3"' if changed else ""
    for groups, opacity in ((still, fade), (_by_owner(owners, changed), "")):
        for owner, slots in groups.items():
            name = names[owner] if owner >= 0 else "nobody"
            parts.append(
                f'<path class="pod" data-pod="{owner}" stroke="{colour(owner)}"{opacity} '
                f'd="{_cells(slots, columns, 1 - _GAP)}"><title>{text(name)}</title></path>'
            )
    parts.append("</g>")
    if changed and before is not None:
        parts.append(f'<g transform="scale({size:g}) translate(0 .5)" fill="none" pointer-events="none">')
        # A light rim sets the core off when the two colours are alike.
        for stroke, side, groups in (
            ("#fff", _CORE + 0.14, {0: changed}),
            ("", _CORE, _by_owner(before, changed)),
        ):
            for owner, slots in groups.items():
                known = "" if stroke else f' class="before" data-before="{owner}"'
                parts.append(
                    f'<path{known} stroke="{stroke or colour(owner)}" stroke-width="{side:g}" '
                    f'd="{_cells(slots, columns, side)}"/>'
                )
        parts.append("</g>")
    width, height = columns * size, rows * size
    parts.append(f'<text x="0" y="{height + 18:g}" font-size="13">{text(caption)}</text>')
    return document(max(width, 420), height + _CAPTION, f"{title}: {caption}", parts)
