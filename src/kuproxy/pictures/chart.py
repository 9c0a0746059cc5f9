"""Lines over a common axis, and bars: shares of pods, occupancy and imbalance in time, results of a sweep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from kuproxy.pictures.svg import colour, document, short, text

__all__ = ["bars_svg", "lines_svg"]

_WIDTH, _HEIGHT = 720, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 30, 44
_TICKS = 5
_BAR = 22
_MOST_BARS = 200


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers, 1, 2 or 5 times a power of ten apart, that cover low ... high."""
    if not high > low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * number for number in range(first, last + 1)]


def _label(value: float) -> str:
    if abs(value) >= 1000:
        return ("-" if value < 0 else "") + short(abs(value))
    return f"{value:.4g}"


def _axes(x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str, y_label: str) -> list[str]:
    parts = []
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for number, tick in enumerate(y_ticks):
        y = bottom - (bottom - _TOP) * number / (len(y_ticks) - 1)
        parts.append(
            f'<path d="M{_LEFT} {y:.1f}H{right}" stroke="currentColor" stroke-opacity=".15"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" font-size="11" text-anchor="end">{_label(tick)}</text>'
        )
    for number, tick in enumerate(x_ticks):
        x = _LEFT + (right - _LEFT) * number / (len(x_ticks) - 1)
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 16}" font-size="11" text-anchor="middle">{_label(tick)}</text>'
        )
    parts.append(
        f'<text x="{(_LEFT + right) / 2:g}" y="{_HEIGHT - 8}" font-size="12" text-anchor="middle">'
        f"{text(x_label)}</text>"
        f'<text x="{_LEFT}" y="{_TOP - 12}" font-size="12">{text(y_label)}</text>'
    )
    return parts


def _path(points: Sequence[tuple[float, float]]) -> str:
    """Steps over what is not a number are gaps."""
    path, pen = "", "M"
    for x, y in points:
        if math.isnan(y):
            pen = "M"
            continue
        path += f"{pen}{x:.1f} {y:.1f}"
        pen = "L"
    return path


def lines_svg(
    lines: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    y_from: float | None = 0.0,
) -> str:
    """`lines` maps names to points in the order of x; y may be NaN.  The y axis begins at `y_from`, None: where it may.

    Raises ValueError without any point.
    """
    points = [point for line in lines.values() for point in line if not math.isnan(point[1])]
    if not points:
        raise ValueError("no points to draw")
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x_ticks = _ticks(min(xs), max(xs))
    y_ticks = _ticks(min(ys) if y_from is None else min(y_from, *ys), max(ys))
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x = _LEFT + (right - _LEFT) * (point[0] - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        y = bottom - (bottom - _TOP) * (point[1] - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return x, y

    parts = _axes(x_ticks, y_ticks, x_label, y_label)
    for number, (name, line) in enumerate(lines.items()):
        parts.append(
            f'<path class="line" d="{_path([place(point) for point in line])}" fill="none" '
            f'stroke="{colour(number)}" stroke-width="1.8" stroke-linejoin="round"><title>{text(name)}</title></path>'
        )
    height = float(_HEIGHT)
    for number, name in enumerate(lines):
        x, y = _LEFT + number % 2 * 320, _HEIGHT + 14 + number // 2 * 18
        parts.append(
            f'<path d="M{x} {y - 4}h18" stroke="{colour(number)}" stroke-width="3"/>'
            f'<text x="{x + 24}" y="{y}" font-size="12">{text(name)}</text>'
        )
        height = y + 10.0
    return document(_WIDTH, height, title, parts)


def bars_svg(
    bars: Sequence[tuple[str, float]],
    *,
    title: str,
    unit: str = "",
    even: float | None = None,
    names_px: int = 220,
) -> str:
    """A bar for each (name, value), values not negative; a line at `even`, what each would have if all had the same.

    Names have `names_px` pixels, some seven a letter.

    Of more than 200 the first are drawn, and the caption says so.  Raises ValueError without any bar.
    """
    if not bars:
        raise ValueError("no bars to draw")
    drawn = bars[:_MOST_BARS]
    most = max(*(value for _, value in drawn), even or 0.0) or 1.0
    left, room = names_px, _WIDTH - names_px - 110
    parts = [f'<text x="0" y="16" font-size="13" font-weight="600">{text(title)}</text>']
    for number, (name, value) in enumerate(drawn):
        y = 28 + number * _BAR
        parts.append(
            f'<text x="{left - 8}" y="{y + 14}" font-size="12" text-anchor="end">{text(name)}</text>'
            f'<rect class="bar" x="{left}" y="{y + 2}" width="{room * value / most:.2f}" height="{_BAR - 6}" rx="2" '
            f'fill="{colour(number)}"><title>{text(f"{name}: {value:g} {unit}".strip())}</title></rect>'
            f'<text x="{left + room * value / most + 6:.1f}" y="{y + 14}" font-size="12">'
            f"{text(f'{value:.4g} {unit}'.strip())}</text>"
        )
    bottom = 28 + len(drawn) * _BAR
    if even is not None:
        x = left + room * even / most
        parts.append(
            f'<path class="even" d="M{x:.1f} 26V{bottom}" stroke="currentColor" stroke-dasharray="4 3"/>'
            f'<text x="{x:.1f}" y="{bottom + 14}" font-size="11" text-anchor="middle">even: {even:.4g}</text>'
        )
    if len(drawn) < len(bars):
        parts.append(
            f'<text x="0" y="{bottom + 14}" font-size="11">the first {len(drawn)} of {len(bars)}</text>'
        )
    return document(_WIDTH, bottom + 22, title, parts)
