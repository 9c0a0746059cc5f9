"""The reference pages, from the code itself: what commands, API, metrics and settings say of themselves.

Nothing here is kept in the repository: the site's build asks anew each time, so no page falls behind.
"""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from kuproxy.cli import LANGUAGE, SUBCOMMANDS, Subcommand

Schema = dict[str, Any]
ROOT = Path(__file__).parents[2]


def row(*cells: object) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


# ------------------------------------------------------------------------------------------------- commands


def commands() -> str:
    """Every subcommand of `ku`: from click where it is made with click, else what `--help` says."""
    lines = ["# Commands", "", "`ku COMMAND --help` says the same.", ""]
    lines += [row("command", "what it does"), row("---", "---")]
    lines += [row(f"[ku {name}](#ku-{name})", each.summary) for name, each in SUBCOMMANDS.items()]
    told = ", ".join(f"`ku {word} …`" for word in LANGUAGE)
    lines += ["", f"Lines for the running daemon ({told}): [the ku language](language.md).", ""]
    for name, each in SUBCOMMANDS.items():
        found = _click_command(name, each)
        lines += [f"## ku {name}", ""]
        lines += _told_by_help(each) if found is None else _described(f"ku {name}", found)
    return "\n".join(lines) + "\n"


def _click_command(name: str, each: Subcommand) -> click.Command | None:
    try:
        module = importlib.import_module(f"{each.module}.__main__")
    except ModuleNotFoundError:
        module = importlib.import_module(each.module)
    made = [thing for thing in vars(module).values() if isinstance(thing, click.Command) and thing.name == name]
    return made[0] if made else None


def _told_by_help(each: Subcommand) -> list[str]:
    words = [sys.executable, "-m", each.module, "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    return ["```text", done.stdout.strip(), "```", ""]


def _described(path: str, command: click.Command) -> list[str]:
    context = click.Context(command, info_name=path)
    lines = ["```text", " ".join([path, *command.collect_usage_pieces(context)]), "```", ""]
    for part in inspect.cleandoc(command.help or "").split("\n\n"):
        if part.startswith("\b"):  # click's word for: as it stands
            lines += ["```text", part.lstrip("\b\n"), "```", ""]
        else:
            lines += [part, ""]
    options = [each.get_help_record(context) for each in command.params if isinstance(each, click.Option)]
    if options:
        lines += [row("option", "meaning"), row("---", "---")]
        lines += [row(f"`{record[0]}`", record[1]) for record in options if record]
        lines.append("")
    for name, inner in getattr(command, "commands", {}).items():
        lines += [f"### {path} {name}", "", *_described(f"{path} {name}", inner)]
    return lines


def language() -> str:
    """The grammar of the lines for the daemon and of scripts."""
    from kuproxy.vppcli.help import help_text

    head = "# The ku language\n\nOf scripts (`.ku`), and of lines for the running daemon.\n\n"
    return f"{head}```text\n{help_text()}\n```\n"


# ------------------------------------------------------------------------------------------------- API


def api() -> str:
    """From the description that the daemon serves at `/openapi.json`."""
    from kuproxy.daemon.api.app import TEXTS
    from kuproxy.daemon.api.openapi import REFUSALS, describe
    from kuproxy.daemon.api.routes import ROUTES

    # As a client reads it: through JSON.
    description = msgspec.json.decode(msgspec.json.encode(describe(ROUTES, TEXTS)))
    lines = [
        "# The API",
        "",
        "HTTP on the Unix socket, and over TCP where the settings say so. `/openapi.json` describes it to programs",
        "(OpenAPI 3.1).",
        "",
        row("request", "what it does", "query", "body", "answer"),
        row("---", "---", "---", "---", "---"),
    ]
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            names = [each["name"] for each in operation.get("parameters", ())]
            query = ", ".join(f"`{name}`" for name in names)
            body = operation.get("requestBody", {}).get("content", {})
            answer = operation["responses"]["200"]["content"]
            lines.append(
                row(f"`{method.upper()} {path}`", operation["summary"], query, _linked(body), _linked(answer))
            )
    lines += ["", "## Refusals", "", row("status", "because"), row("---", "---")]
    lines += [row(status, text) for status, text in REFUSALS.items()]
    lines += ["", "Each comes with an [Error](#error)."]
    for name, schema in sorted(description["components"]["schemas"].items()):
        lines += ["", f"## {name}", "", *_schema(schema)]
    return "\n".join(lines) + "\n"


def _linked(content: Schema) -> str:
    for kind, inner in content.items():
        return _type(inner["schema"]) if "json" in kind else f"`{kind}`"
    return ""


def _type(schema: Schema) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(map(_type, schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}" if isinstance(schema.get("items"), dict) else "list"
    if isinstance(schema.get("additionalProperties"), dict):
        return f"map to {_type(schema['additionalProperties'])}"
    return str(schema.get("type", "any"))


def _schema(schema: Schema) -> Iterator[str]:
    if "description" in schema:
        yield from (schema["description"].replace("\n", " "), "")
    if "properties" not in schema:
        yield _type(schema)
        return
    yield row("field", "type", "default")
    yield row("---", "---", "---")
    required = schema.get("required", ())
    for name, value in schema["properties"].items():
        default = "required" if name in required else f"`{value['default']}`" if "default" in value else ""
        limits = [f"{word} {value[key]}" for key, word in _LIMITS.items() if key in value]
        yield row(f"`{name}`", ", ".join([_type(value), *limits]), default)


_LIMITS = {"minimum": "at least", "maximum": "at most", "pattern": "matches"}


# ------------------------------------------------------------------------------------------------- metrics


def metrics() -> str:
    """From the exposition of a daemon with one service, and of a kube-proxy."""
    from prometheus_client.parser import text_string_to_metric_families

    from kuproxy.kubeproxy.health import ProxyHealth
    from kuproxy.kubeproxy.metrics import ProxyMetrics

    health = ProxyHealth(60)
    health.answered = {(path, 200): 1 for path in ("/healthz", "/livez")}
    proxy = ProxyMetrics(health, "192.0.2.1:6443", lambda: {200: 1})
    for full in (True, False):  # a histogram that nothing was put into is not told
        proxy.synced(0.01, 1, 1, full=full)
    proxy.programmed(0.1)
    lines = [
        "# Metrics",
        "",
        "`/metrics` of the daemon, in Prometheus' format; `ku kube-proxy` serves the second table's with them, by",
        "upstream's names.",
    ]
    for title, text in (("The daemon", _exposition()), ("ku kube-proxy", proxy.exposition().decode())):
        lines += ["", f"## {title}", "", row("metric", "type", "labels", "meaning"), row(*["---"] * 4)]
        for family in text_string_to_metric_families(text):
            names = {sample.name for sample in family.samples if not sample.name.endswith("_created")}
            labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
            name = family.name if family.type == "histogram" else ", ".join(sorted(names)) or family.name
            lines.append(row(f"`{name}`", family.type, ", ".join(labels), family.documentation))
    return "\n".join(lines) + "\n"


def _exposition() -> str:
    from docs.site.example import controller
    from kuproxy.daemon.metrics import exposition

    return exposition(controller())[0].decode()


# ------------------------------------------------------------------------------------------------- settings


def settings() -> str:
    """Of `ku daemon --settings`, with the file that is installed."""
    from kuproxy.daemon.settings import DaemonSettings

    _, schemas = msgspec.json.schema_components([DaemonSettings], ref_template="#/components/schemas/{name}")
    lines = [
        "# Settings of the daemon",
        "",
        "`/etc/kuproxy/kuproxy.toml`, or what `ku daemon --settings` names; `--check` finds faults in it. What is",
        "forwarded never stands here: that comes from the files that `files` names, and from commands.",
        "",
        "What `ku kube-proxy --config` reads: [the configuration of kube-proxy](../kubernetes.md#the-configuration).",
    ]
    for name in ("DaemonSettings", *sorted(set(schemas) - {"DaemonSettings"})):
        lines += ["", f"## {name}", "", *_schema(schemas[name])]
    installed = ROOT / "packaging/kuproxy.toml"
    lines += ["", "## The file that is installed", "", "```toml", installed.read_text().rstrip(), "```"]
    return "\n".join(lines) + "\n"


def not_supported() -> str:
    """The list in the README."""
    readme = (ROOT / "README.md").read_text()
    listed = readme.split("## Not supported yet\n")[1].rpartition("\nApache")[0]
    return "# Not supported yet\n" + listed.replace("](docs/", "](../")


PAGES: dict[str, Callable[[], str]] = {
    "commands.md": commands,
    "language.md": language,
    "api.md": api,
    "metrics.md": metrics,
    "settings.md": settings,
    "not-supported.md": not_supported,
}
