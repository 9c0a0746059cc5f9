"""One exception to catch, and one line for each problem."""

from __future__ import annotations

import kuproxy.errors
from kuproxy.errors import ConfigError, KuError, Problem


def test_every_exception_is_a_ku_error() -> None:
    exceptions = [
        value for name in kuproxy.errors.__all__
        if isinstance(value := getattr(kuproxy.errors, name), type) and issubclass(value, Exception)
    ]  # fmt: skip
    assert len(exceptions) == 7
    assert all(issubclass(exception, KuError) for exception in exceptions)


def test_a_problem_is_one_line() -> None:
    whole = Problem("70000 is not a port", "svc.yaml", 12, "spec.ports[0].port", "a port is 1 to 65535")
    assert str(whole) == "svc.yaml:12: spec.ports[0].port: 70000 is not a port; a port is 1 to 65535"
    assert str(Problem("cannot be read", "x.ku")) == "x.ku: cannot be read"
    assert str(Problem("is wrong")) == "is wrong"
    assert str(Problem("is wrong", line=3)) == "line 3: is wrong"


def test_a_known_place_stays() -> None:
    assert str(Problem("is wrong").at("a.ku", 4)) == "a.ku:4: is wrong"
    assert str(Problem("is wrong", "b.ku", 9).at("a.ku", 4)) == "b.ku:9: is wrong"


def test_all_problems_are_told() -> None:
    error = ConfigError([Problem("one"), Problem("two")])
    assert str(error) == "one\ntwo"
    assert str(ConfigError("alone")) == "alone"
