"""The text of manifests into documents, and paths back into lines.

Two readings, because they want different things.  The first is fast and gives plain values.  The second composes
the text into nodes that know their lines; it runs only when there is something to tell about a line.

YAML as Kubernetes' users mean it: `no`, `on` and `12:30` are strings (YAML 1.2), dates stay text, and a key that is
given twice is a fault, where PyYAML would silently take the last.
"""

from __future__ import annotations

import functools
import json
import re
from typing import Any

from kuproxy.errors import ConfigError, Problem
from kuproxy.kube.convert import Converted, convert_document
from kuproxy.kube.reader import Finding, Path

__all__ = ["Manifest", "line_of", "read_documents", "read_manifest"]


@functools.cache
def _loader() -> Any:
    """The loader class, made at first use: importing yaml takes 15 ms, and `ku` must start quickly."""
    import yaml

    base: Any = getattr(
        yaml, "CSafeLoader", yaml.SafeLoader
    )  # libyaml is ten times faster, and may be missing

    class Loader(base):
        """Safe loader with YAML 1.2's scalars that refuses duplicate keys."""

        yaml_implicit_resolvers: dict[str, Any] = {}  # none of YAML 1.1's  # noqa: RUF012

        def __init__(self, stream: str) -> None:
            super().__init__(stream)
            self.duplicates: list[tuple[str, int]] = []
            self._checked: set[Any] = set()  # nodes; they hash by identity

        def flatten_mapping(self, node: Any) -> None:
            # Called for every mapping before it is read, and for merged ones before they are changed: the keys
            # are still those of the text, and an override of a merged key is none given twice.
            if node not in self._checked:
                self._checked.add(node)
                seen: set[str] = set()
                for key, _value in node.value:
                    if not isinstance(key, yaml.ScalarNode):
                        continue
                    if key.value in seen:
                        self.duplicates.append((key.value, key.start_mark.line + 1))
                    seen.add(key.value)
            super().flatten_mapping(node)

    # YAML 1.2 core schema, section 10.3.2; `<<` of YAML 1.1 besides, because kubectl takes it.
    for tag, pattern, first in (
        ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
        ("null", r"~|null|Null|NULL|", "~nN\0"),
        ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
        (
            "float",
            r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
            "-+0123456789.",
        ),
        ("merge", r"<<", "<"),
    ):
        starts = ["" if letter == "\0" else letter for letter in first]
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), starts)
    Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
    return Loader


def _construct_int(loader: Any, node: Any) -> int:
    """YAML 1.2: `010` is ten (1.1 reads eight), `0o10` is eight."""
    text: str = loader.construct_scalar(node)
    if text.startswith("0o"):
        return int(text[2:], 8)
    return int(text, 16) if text.startswith("0x") else int(text, 10)


class Manifest:
    """One file's objects, and the lines of what was found about them."""

    def __init__(self, text: str, file: str, documents: list[object]) -> None:
        self._text = text
        self.file = file
        self.converted = Converted()
        for index, document in enumerate(documents):
            convert_document(document, self.converted, (index,))

    def place(self, findings: list[Finding]) -> list[Problem]:
        """Findings with file and line."""
        if not findings:
            return []
        roots = self._nodes
        return [
            Problem(finding.message, self.file, _line(roots, finding.path), finding.field, finding.hint)
            for finding in findings
        ]

    @functools.cached_property
    def _nodes(self) -> list[Any]:
        return _compose(self._text)


def _compose(text: str) -> list[Any]:
    import yaml

    try:
        return list(yaml.compose_all(text, Loader=_loader()))
    except yaml.YAMLError:
        return []  # JSON that is no YAML, by its tabs for instance: the path must do


def line_of(text: str, path: Path) -> int:
    """The line of a value of a text, by the document's number and the keys to it; 0 if that cannot be told."""
    return _line(_compose(text), path)


def _line(roots: list[Any], path: Path) -> int:
    """The line where the value at this path stands, or, if it is absent, the nearest thing around it."""
    index, *rest = path
    assert isinstance(index, int)
    if index >= len(roots) or roots[index] is None:
        return 0
    node = roots[index]
    line: int = node.start_mark.line
    for part in rest:
        found = None
        if node.id == "sequence" and isinstance(part, int) and part < len(node.value):
            found = node.value[part]
        elif node.id == "mapping":
            found = next((value for key, value in node.value if key.value == part), None)
        if found is None:
            break
        node = found
        line = node.start_mark.line
    return line + 1


def _yaml_documents(text: str, file: str) -> list[object]:
    import yaml

    loader = _loader()(text)
    documents: list[object] = []
    problems: list[Problem] = []
    try:
        while loader.check_data():
            documents.append(loader.get_data())
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else 0
        what = ", ".join(part for part in (error.context, error.problem) if part)
        problems.append(Problem(f"not YAML: {what}", file, line))
    except yaml.YAMLError as error:  # a control character, for instance
        problems.append(Problem(f"not YAML: {' '.join(str(error).split())}", file))
    except (ValueError, RecursionError) as error:  # an integer of 4301 digits, a thousand brackets
        problems.append(Problem(f"not YAML: {error}", file))
    finally:
        loader.dispose()
    problems.extend(
        Problem(f"{key!r} is given twice", file, line, hint="a key may stand once in an object")
        for key, line in loader.duplicates
    )
    if problems:
        raise ConfigError(sorted(problems, key=lambda problem: problem.line))
    return documents


def _json_document(text: str, file: str) -> object:
    duplicates: list[str] = []

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        values = dict(pairs)
        if len(values) < len(pairs):
            keys = [key for key, _value in pairs]
            duplicates.extend(sorted({key for key in keys if keys.count(key) > 1}))
        return values

    try:
        document: object = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise ConfigError(Problem(f"not JSON: {error.msg}", file, error.lineno)) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(Problem(f"not JSON: {error}", file)) from None
    if duplicates:
        # Rare enough to read the text again for the lines.
        _yaml_documents(text, file)
        raise ConfigError([Problem(f"{key!r} is given twice", file) for key in duplicates])
    return document


def read_manifest(text: str, file: str) -> Manifest:
    """Read YAML (several documents) or, by the file's name, JSON.  Raises ConfigError if the text is neither."""
    return Manifest(text, file, read_documents(text, file))


def read_documents(text: str, file: str) -> list[object]:
    """Plain values of YAML (several documents) or, by the file's name, JSON.  Raises ConfigError."""
    return [_json_document(text, file)] if file.endswith(".json") else _yaml_documents(text, file)
