"""Settings files as they lie there: TOML, by the standard library."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from kuproxy.errors import ConfigError, Problem

__all__ = ["read_toml"]


def read_toml(path: Path) -> dict[str, Any]:
    """The file's tables.  Raises ConfigError with the file, and what is wrong."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(Problem(f"cannot be read: {error.strerror}", str(path))) from None
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8; 4301 digits; a thousand brackets
        raise ConfigError(Problem(f"is not TOML: {error}", str(path))) from None
