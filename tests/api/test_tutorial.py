"""docs/tutorial.md, run from its beginning to its end: what it says is printed must be printed."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"
BLOCK = re.compile(r"```(python|text)\n(.*?)```", re.DOTALL)


def test_the_tutorial_tells_what_happens() -> None:
    blocks = BLOCK.findall(TUTORIAL.read_text())
    assert len(blocks) > 15
    names: dict[str, Any] = {}
    printed = ""
    for kind, content in blocks:
        if kind == "text":
            assert printed == content
            printed = ""
            continue
        assert printed == "", "what a block prints stands below it"
        heard = io.StringIO()
        with contextlib.redirect_stdout(heard):
            exec(compile(content, str(TUTORIAL), "exec"), names)
        printed = heard.getvalue()
    assert printed == ""
