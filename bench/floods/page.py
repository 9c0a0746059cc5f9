"""The tables of docs/floods.md, from the result files."""

from __future__ import annotations

from pathlib import Path

from bench import results
from bench.floods.traffic import FLOODS
from bench.harness import Figure

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "floods.md"
_BEGIN, _END = "<!-- {}: written by python -m bench.floods --docs -->", "<!-- end -->"


def _by_case(file: str) -> tuple[str, dict[str, dict[str, Figure]]]:
    """(one line about machine and command, figures by case and metric)."""
    machine, figures = results.read_csv(results.RESULTS / file)
    found: dict[str, dict[str, Figure]] = {}
    for each in figures:
        found.setdefault(each.case, {})[each.metric] = each
    facts = "; ".join(f"{name} {value}" for name, value in machine.items() if name != "command")
    return f"`{machine['command']}` on: {facts}.", found


def memory_table() -> str:
    """One row for each flood, ratio and hash."""
    about, cases = _by_case("floods.csv")
    lines = [
        about, "",
        "| flood | packets to one established | flows | hash | quiet, ns | flood, ns | both, ns "
        "| rate at the same share | strictly | lost | moved |",
        "|---|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    for case, metrics in cases.items():
        name, ratio, hash_name = case.rsplit("-", 3)[1:]
        if name not in FLOODS:
            continue
        value = {metric: figure.median for metric, figure in metrics.items()}
        spread = metrics["rate at the same share"]
        strictly = f"{value['the same, strictly']:.0f} %" if ratio == "1to1" else ""  # else noise, ten times as loud
        flows = case.split("-")[3].removesuffix("flow")
        lines.append(
            f"| {FLOODS[name][0]} | {ratio.removeprefix('1to')} | {flows} | {hash_name} | {value['quiet']:.0f} "
            f"| {value['flood']:.0f} | {value['mixed']:.0f} "
            f"| {spread.median:.0f} % ({spread.min:.0f} to {spread.max:.0f}) "
            f"| {strictly} | {value['lost']:.0f} | {value['moved']:.0f} |"
        )
    return "\n".join(lines)


def hash_table() -> str:
    """What both hashes cost established flows."""
    about, cases = _by_case("floods.csv")
    lines = [about, "", "| established flows | graph, ns a packet | kp-input alone |", "|---|--:|--:|"]
    for case, metrics in cases.items():
        if "kp-input" in metrics:
            graph, alone = metrics["graph"], metrics["kp-input"]
            lines.append(
                f"| `{case}` | {graph.median:.1f} ({graph.min:.1f} to {graph.max:.1f}) "
                f"| {alone.median:.1f} ({alone.min:.1f} to {alone.max:.1f}) |"
            )
    return "\n".join(lines)


def live_table() -> str:
    """One row for each flood and hash."""
    lines: list[str] = []
    for file in ("floods-live.csv", "floods-live-keyed.csv"):
        if not (results.RESULTS / file).exists():
            continue
        about, cases = _by_case(file)
        lines += [
            about, "",
            "| flood | hash | requests a second, quiet | flooded | plane, quiet, µs a packet | flooded "
            "| rate at the same share | failed |",
            "|---|---|--:|--:|--:|--:|--:|--:|",
        ]  # fmt: skip
        for case, metrics in cases.items():
            name, hash_name = case.rsplit("-", 2)[1:]
            value = {metric: figure.median for metric, figure in metrics.items()}
            spread = metrics["rate at the same share"]
            lines.append(
                f"| {FLOODS[name][0]} | {hash_name} | {value['requests, quiet']:.0f} "
                f"| {value['requests, flooded']:.0f} | {value['plane, quiet']:.2f} | {value['plane, flooded']:.2f} "
                f"| {spread.median:.0f} % ({spread.min:.0f} to {spread.max:.0f}) | {value['failures']:.0f} |"
            )
        lines.append("")
    return "\n".join(lines).rstrip()


def write() -> None:
    """Replace what stands between the marks."""
    text = PAGE.read_text(encoding="utf-8")
    for name, table in (("hash", hash_table()), ("memory", memory_table()), ("live", live_table())):
        begin = _BEGIN.format(name)
        head, _, rest = text.partition(begin)
        _, _, tail = rest.partition(_END)
        text = f"{head}{begin}\n\n{table}\n\n{_END}{tail}"
    PAGE.write_text(text, encoding="utf-8")
