"""What several targets promise: how bad input is told."""

from __future__ import annotations

from kuproxy.errors import ConfigError

__all__ = ["told_well"]

CONFLICT = (" asks for it too", " is asked for twice by ")  # these name both owners instead


def told_well(error: ConfigError, file: str = "", lines: int | None = None) -> None:
    """At least one problem; each is one line that names the file and a line of it, or two that contradict each other.

    Raises AssertionError.
    """
    assert error.problems, "refused without a reason"
    for problem in error.problems:
        text = str(problem)
        assert text.strip(), "an empty message"
        assert len(text.splitlines()) == 1, f"a message of several lines: {text!r}"
        if file and not any(words in text for words in CONFLICT):
            assert file in text, f"{text!r} does not name the file"
        if lines is not None:
            assert 0 <= problem.line <= lines, f"{text!r} names line {problem.line} of {lines}"
