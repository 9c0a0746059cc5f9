"""The log of the control process: one event a line, on stderr."""

import logging
import sys
from typing import Any, Literal

import structlog

__all__ = ["LogFormat", "make_log"]

LogFormat = Literal["auto", "logfmt", "json"]


def make_log(form: LogFormat = "auto") -> Any:
    """key=value lines or JSON; `auto` is key=value, coloured on a terminal."""
    renderer: Any = structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"])
    if form == "json":
        renderer = structlog.processors.JSONRenderer()
    elif form == "auto" and sys.stderr.isatty():
        renderer = structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    return structlog.get_logger()
