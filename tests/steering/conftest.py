"""What the tests of programs share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest


@pytest.fixture(scope="module")
def stack() -> Iterator[ExitStack]:
    """Closes a module's maps, programs and namespaces when its tests are done."""
    with ExitStack() as stack:
        yield stack
