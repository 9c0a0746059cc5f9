"""The nursery of workers: what it hands on to them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kuproxy.dataplane._jit import COMPILED, cache_directory
from kuproxy.engine.nest import Nest


def last_word(process_id: int) -> str:
    return Path(f"/proc/{process_id}/cmdline").read_text().split("\0")[-2]


@pytest.mark.skipif(not COMPILED, reason="nothing is compiled")
def test_one_that_had_to_compile_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise every worker would inherit the compiler's memory."""
    kept = cache_directory()
    for path in kept.rglob("*.nb?"):
        link = tmp_path / "kernels" / kept.name / path.relative_to(kept)
        link.parent.mkdir(parents=True, exist_ok=True)
        if not path.name.startswith("flow_table.flush"):
            link.symlink_to(path)
    monkeypatch.setenv("KUPROXY_CACHE", str(tmp_path))
    for word in ("anew", str(os.getpid())):  # the second time everything is there
        nest = Nest(os.getpid())
        nest.start()
        try:
            nest.wait()
            assert last_word(nest.process_id) == word
        finally:
            nest.stop()
