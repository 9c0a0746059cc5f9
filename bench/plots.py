"""Pictures of result files: bars of medians, one SVG a suite, metric and unit."""

from pathlib import Path

from bench.harness import Figure
from kuproxy.pictures.chart import bars_svg

# What is drawn; of the other suites, the first metric of each case.
METRICS = {
    "graph": ("graph",),
    "lookup": ("lookup", "graph"),
    "live": ("rate", "throughput", "requests", "p50", "p99", "CPU"),
}
_LETTER_PX, _MOST_PX = 7, 400


def _labels(names: list[str]) -> list[str]:
    """Names without the words that all of them have."""
    words = [name.split("-") for name in names]
    common = set(words[0]).intersection(*words[1:]) if len(words) > 1 else set()
    return ["-".join(word for word in each if word not in common) or "-".join(each) for each in words]


def draw(suite: str, figures: list[Figure]) -> dict[str, str]:
    """SVG by name of its file."""
    wanted = METRICS.get(suite)
    groups: dict[tuple[str, str], list[Figure]] = {}
    seen = set()
    for figure in figures:
        if figure.metric in wanted if wanted else figure.case not in seen:
            groups.setdefault((figure.metric, figure.unit), []).append(figure)
        seen.add(figure.case)
    pictures = {}
    for (metric, unit), members in groups.items():
        labels = _labels([figure.case for figure in members])
        bars = [(label, max(0.0, figure.median)) for label, figure in zip(labels, members, strict=True)]
        words = "".join(c if c.isalnum() else " " for c in f"{metric} {unit}").split()
        name = "-".join([suite, *words])
        width = min(_MOST_PX, 16 + _LETTER_PX * max(map(len, labels)))
        pictures[f"{name}.svg"] = bars_svg(
            bars, title=f"{suite}: {metric}, {unit}, median", unit=unit, names_px=width
        )
    return pictures


def write_plots(directory: Path, suite: str, figures: list[Figure]) -> list[Path]:
    """Replace the suite's pictures; returns their files."""
    for old in directory.glob(f"{suite}-*.svg"):
        old.unlink()
    written = []
    for name, picture in draw(suite, figures).items():
        (directory / name).write_text(picture + "\n")
        written.append(directory / name)
    return written
