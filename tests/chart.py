"""Renders a Helm chart as far as ours goes, for machines without helm: text/template with what the chart uses of it.

Actions `{{ }}` with trimming, `if`, `not`, `with`, `end`, paths from the root, `.`, and pipes of `default`, `toYaml`,
`nindent`.  Anything else raises, so that a chart which needs more is not rendered wrongly.  Compared with the real
helm in `test_packaging.py` wherever there is one.
Source: the documentation of Go's text/template, and Helm's "Template functions and pipelines".
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

_ACTION = re.compile(r"(\s*)\{\{(-)? *(.*?) *(-)?\}\}(\s*)", re.DOTALL)


def render(chart: Path, values: dict[str, Any], *, release: str, namespace: str) -> str:
    about = yaml.safe_load((chart / "Chart.yaml").read_text())
    root = {
        "Values": _merged(yaml.safe_load((chart / "values.yaml").read_text()), values),
        "Release": {"Name": release, "Namespace": namespace},
        "Chart": {"Name": about["name"], "AppVersion": about["appVersion"]},
    }
    texts = [_render(path.read_text(), root) for path in sorted((chart / "templates").glob("*.yaml"))]
    return "\n---\n".join(texts)


def _merged(defaults: Any, values: Any) -> Any:
    """Maps are merged, everything else is replaced."""
    if not (isinstance(defaults, dict) and isinstance(values, dict)):
        return values
    return {
        name: _merged(defaults[name], values[name]) if name in defaults and name in values
        else values.get(name, defaults.get(name))
        for name in {**defaults, **values}
    }  # fmt: skip


def _render(template: str, root: dict[str, Any]) -> str:
    out: list[str] = []
    shown = [True]  # by nesting: whether what stands there is wanted
    dots: list[Any] = [root]
    position = 0
    for action in _ACTION.finditer(template):
        before, left, words, right, after = action.groups()
        text = template[position : action.start()] + ("" if left else before)
        position = action.end() - (0 if right else len(after))
        if shown[-1]:
            out.append(text)
        if words == "end":
            shown.pop()
            dots.pop()
        elif words.startswith(("if ", "with ")):
            kind, _, expression = words.partition(" ")
            value = _pipe(expression, dots[-1], root) if shown[-1] else None
            shown.append(shown[-1] and bool(value))
            dots.append(value if kind == "with" else dots[-1])
        elif shown[-1]:
            out.append(_text(_pipe(words, dots[-1], root)))
    assert shown == [True], "an `end` is missing"
    return "".join(out) + template[position:]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


def _pipe(expression: str, dot: Any, root: dict[str, Any]) -> Any:
    first, *rest = (part.split() for part in expression.split("|"))
    value = _call(first, dot, root)
    for words in rest:
        value = _call(words, dot, root, value)
    return value


def _call(words: list[str], dot: Any, root: dict[str, Any], *piped: Any) -> Any:
    name, *rest = words
    if name.startswith("."):
        assert not rest
        return _path(name, dot, root)
    arguments = [*(_argument(word, dot, root) for word in rest), *piped]
    if name == "not":
        return not arguments[0]
    if name == "default":
        return arguments[1] or arguments[0]
    if name == "toYaml":
        return yaml.safe_dump(arguments[0], default_flow_style=False).rstrip("\n")
    if name == "nindent":
        return "\n" + "\n".join(" " * arguments[0] + line for line in arguments[1].splitlines())
    raise NotImplementedError(name)


def _argument(word: str, dot: Any, root: dict[str, Any]) -> Any:
    return _path(word, dot, root) if word.startswith(".") else int(word)


def _path(path: str, dot: Any, root: dict[str, Any]) -> Any:
    if path == ".":
        return dot
    value: Any = root
    for name in path[1:].split("."):
        value = value[name]
    return value
