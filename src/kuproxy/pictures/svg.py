"""What every picture needs: colours that tell things apart, short numbers, and text that cannot break out.

Pictures carry no style sheet and no style attribute, so that the strictest content security policy lets them in; text
and lines take `currentColor`, so that they suit a light page and a dark one.
"""

from __future__ import annotations

import colorsys
from xml.sax.saxutils import escape, quoteattr

__all__ = ["DROPPED", "NOBODY", "attribute", "colour", "document", "short", "text"]

# The first ten by hand: apart in hue and lightness, legible on white and on black.
_FIRST = (
    "#4c8dd9", "#e8893b", "#4fae6a", "#c95f8f", "#8f7fd6", "#c2a32d", "#3fb1b5", "#d9605a", "#8d9a4d", "#a8775a",
)  # fmt: skip
_GOLDEN = 0.6180339887498949  # of the circle of hues: each falls into the largest gap that is left
DROPPED = "#e5484d"
NOBODY = "#8c8c8c"


def colour(number: int) -> str:
    """`#rrggbb`; negative: nobody's."""
    if number < 0:
        return NOBODY
    if number < len(_FIRST):
        return _FIRST[number]
    lightness = (0.42, 0.56, 0.68)[number % 3]
    rgb = colorsys.hls_to_rgb(number * _GOLDEN % 1.0, lightness, 0.55)
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)


def short(number: float) -> str:
    """Three digits and a unit: 0.4, 12, 1.3k, 25.0M."""
    if 0 < number < 10:
        return f"{number:.1f}".removesuffix(".0")
    for unit in ("", "k", "M", "G", "T"):
        if number < 999.5:
            return f"{number:.0f}{unit}" if not unit or number >= 99.95 else f"{number:.1f}{unit}"
        number /= 1000
    return f"{number:.1f}P"


def text(content: str) -> str:
    """As the content of an element."""
    return escape(content)


def attribute(value: str) -> str:
    """As an attribute's value, with its quotes."""
    return quoteattr(value)


def document(width: float, height: float, label: str, parts: list[str]) -> str:
    """A whole SVG document; `label` is what a screen reader says."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" role="img" aria-label={attribute(label)} fill="currentColor" '
        f'font-family="ui-sans-serif, system-ui, sans-serif">{"".join(parts)}</svg>'
    )
