"""Calling something in a process of its own, because what it gives up cannot be had back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any


def forked(function: Callable[[], object]) -> Any:
    """What the function returns, by way of JSON; -N if signal N ended the process.

    Raises RuntimeError if it returned nothing that JSON could carry, or raised.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, json.dumps(function()).encode())
        except BaseException as error:
            os.write(writer, f"!{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return -os.WTERMSIG(status)
    if text.startswith("!"):
        raise RuntimeError(text[1:])
    return json.loads(text)
