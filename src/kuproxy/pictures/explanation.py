"""One packet's way: where it came from, the VIP, the nodes that it met, and the pods, of which one or none got it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kuproxy.pictures.svg import DROPPED, NOBODY, colour, document, text

__all__ = ["PictureEnd", "PictureStep", "explanation_svg"]

_BOX_W, _LINE, _PAD = 360, 15, 8
_GAP = 22
_END_W, _END_X = 320, 440
_MARGIN = 8
_MOST_ENDS = 24


@dataclass(frozen=True, slots=True)
class PictureStep:
    """A box of the way: a name, and what happened there."""

    name: str
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PictureEnd:
    """A pod: whether it serves, and why; at most one is chosen."""

    name: str
    rule: str
    serves: bool
    chosen: bool


def _cut(line: str, most: int) -> str:
    return line if len(line) <= most else line[: most - 1] + "…"


def _step(step: PictureStep, y: float, height: float) -> str:
    lines = "".join(
        f'<text x="{_PAD}" y="{_PAD + 11 + _LINE * number}" font-size="11">{text(_cut(line, 52))}</text>'
        for number, line in enumerate(step.lines, start=1)
    )
    told = "; ".join((step.name, *step.lines))
    return (
        f'<g class="step" transform="translate({_MARGIN} {y:g})"><title>{text(told)}</title>'
        f'<rect width="{_BOX_W}" height="{height:g}" rx="6" fill="currentColor" fill-opacity=".05" '
        f'stroke="currentColor" stroke-opacity=".35"/>'
        f'<text x="{_PAD}" y="{_PAD + 11}" font-size="12" font-weight="600">{text(_cut(step.name, 46))}</text>'
        f"{lines}</g>"
    )


def _end(end: PictureEnd, number: int, y: float, height: float) -> str:
    stroke = colour(number) if end.serves or end.chosen else NOBODY
    opacity = "" if end.serves or end.chosen else ' opacity=".6"'
    shade = ".25" if end.chosen else ".05"
    return (
        f'<g class="{"pod chosen" if end.chosen else "pod"}" transform="translate({_END_X} {y:g})"{opacity}>'
        f"<title>{text(f'{end.name}: {end.rule}')}</title>"
        f'<rect width="{_END_W}" height="{height:g}" rx="6" fill="{stroke}" fill-opacity="{shade}" '
        f'stroke="{stroke}" stroke-width="{2 if end.chosen else 1}"/>'
        f'<text x="{_PAD}" y="{_PAD + 11}" font-size="12" font-weight="600">{text(_cut(end.name, 40))}</text>'
        f'<text x="{_PAD}" y="{_PAD + 11 + _LINE}" font-size="11">{text(_cut(end.rule, 46))}</text></g>'
    )


def explanation_svg(
    title: str,
    steps: Sequence[PictureStep],
    ends: Sequence[PictureEnd],
    result: str,
    *,
    dropped: bool = False,
) -> str:
    """Steps from the top down, pods at their side; `result` is what became of the packet."""
    shown = sorted(ends, key=lambda end: not end.chosen)[:_MOST_ENDS]
    parts: list[str] = []
    y = float(_MARGIN)
    middle = _MARGIN + _BOX_W / 2
    for number, step in enumerate(steps):
        height = 2 * _PAD + _LINE * (1 + len(step.lines))
        if number:
            parts.append(
                f'<path d="M{middle:g} {y - _GAP:g}V{y:g}" stroke="currentColor" stroke-opacity=".6" fill="none"/>'
            )
        parts.append(_step(step, y, height))
        y += height + _GAP
    bottom = y - _GAP
    height = 2 * _PAD + 2 * _LINE
    for number, end in enumerate(shown):
        place = _MARGIN + number * (height + 8)
        if end.chosen:
            x = _MARGIN + _BOX_W
            parts.append(
                f'<path class="chosen" d="M{x} {bottom - _PAD:g}C{x + 40} {bottom - _PAD:g} {_END_X - 40} '
                f'{place + height / 2:g} {_END_X} {place + height / 2:g}" fill="none" '
                f'stroke="{colour(number)}" stroke-width="2"/>'
            )
        parts.append(_end(end, number, place, height))
    left = len(ends) - len(shown)
    ends_bottom = _MARGIN + len(shown) * (height + 8) + (_LINE if left else 0)
    if left:
        parts.append(
            f'<text x="{_END_X}" y="{ends_bottom:g}" font-size="11">{text(f"and {left} more")}</text>'
        )
    fill = f' fill="{DROPPED}"' if dropped else ""
    foot = max(bottom, ends_bottom) + 22
    parts.append(
        f'<text x="{_MARGIN}" y="{foot:g}" font-size="13" font-weight="600"{fill}>{text(result)}</text>'
    )
    return document(_END_X + _END_W + _MARGIN, foot + _MARGIN, f"{title}: {result}", parts)
