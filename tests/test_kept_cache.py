"""Numba takes a cache that is there, although it cannot be written."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from numba.core import config
from numba.core.caching import UserProvidedCacheLocator

from kuproxy.kept_cache import KeptCacheLocator


def test_a_cache_that_is_there_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))

    def read_only(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    def locate(kind: type[UserProvidedCacheLocator]) -> Any:
        return kind.from_function(read_only, __file__)

    first = locate(UserProvidedCacheLocator)
    assert Path(first.get_cache_path()).is_dir(), "whoever can write makes it"
    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    assert locate(UserProvidedCacheLocator) is None, "Numba's own insists on writing"
    assert locate(KeptCacheLocator).get_cache_path() == first.get_cache_path()
    Path(first.get_cache_path()).rmdir()
    assert locate(KeptCacheLocator) is None, "what is not there, and cannot be made, is not taken"
