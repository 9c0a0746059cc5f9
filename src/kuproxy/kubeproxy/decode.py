"""Plain values from YAML into the structs of the schema, with every fault at its path and nothing guessed."""

from __future__ import annotations

import difflib
from typing import Any, TypeVar, get_args

import msgspec

from kuproxy.kubeproxy.duration import Duration

__all__ = ["Fault", "decode"]

S = TypeVar("S", bound=msgspec.Struct)
Path = tuple[str | int, ...]

# What once was a field: who brings an old file is told where it went.
_GONE = {
    "udpIdleTimeout": "it went with the userspace mode; take it out",
    "resourceContainer": "it is gone; take it out",
    "syncPeriod": "v1alpha1 has it below iptables, ipvs and nftables",
    "minSyncPeriod": "v1alpha1 has it below iptables, ipvs and nftables",
    "linux": "this is a field of v1alpha2; v1alpha1 has conntrack, oomScoreAdj and masqueradeAll of their own",
    "windows": "this is a field of v1alpha2; v1alpha1 has winkernel",
}
_MEANT: dict[Any, str] = {
    bool: "it is true or false",
    int: "it is a whole number",
    float: "it is a number",
    str: "it is a string; put it in quotes",
    list: "it is a list",
    dict: "it is a map",
}


class Fault(tuple[Path, str, str]):
    """Path, what is wrong, what would be right."""

    __slots__ = ()


def decode(kind: type[S], content: dict[str, Any], faults: list[Fault], path: Path = ()) -> S:
    """The struct; fields with a fault, which is noted, have their default.  null and absent mean the same."""
    fields = {each.encode_name: each for each in msgspec.structs.fields(kind)}
    values: dict[str, Any] = {}
    for name, value in content.items():
        here = (*path, str(name))
        known = fields.get(name)
        if known is None:
            faults.append(Fault((here, "unknown field", _hint(str(name), list(fields)))))
        elif value is None:
            continue
        elif isinstance(known.type, type) and issubclass(known.type, msgspec.Struct):
            if isinstance(value, dict):
                values[known.name] = decode(known.type, value, faults, here)
            else:
                faults.append(Fault((here, f"{value!r} is not possible", _MEANT[dict])))
        else:
            try:
                values[known.name] = msgspec.convert(value, known.type, dec_hook=_hook)
            except msgspec.ValidationError as error:
                faults.append(_fault(error, here, value, known.type))
    return kind(**values)


def _hook(kind: type, value: Any) -> Any:
    if issubclass(kind, Duration):
        return kind.parse(value)
    raise NotImplementedError


def _fault(error: msgspec.ValidationError, path: Path, value: Any, kind: Any) -> Fault:
    message, _, place = str(error).partition(" - at `")
    below = place.rstrip("`").removeprefix("$")
    if below:
        path = (*path[:-1], f"{path[-1]}{below}")
    if ";" in message:  # a duration's own words
        text, _, hint = message.partition("; ")
        return Fault((path, text, hint))
    if "unknown field" in message:
        return Fault((path, message[0].lower() + message[1:], "take it out"))
    wanted = next((each for each in (kind, *get_args(kind)) if each in _MEANT), None)
    if wanted is None:
        wanted = getattr(kind, "__origin__", None)
    if wanted is None:
        wanted = next((getattr(each, "__origin__", None) for each in get_args(kind)), None)
    text = f"{value!r} is not possible" if not below else message[0].lower() + message[1:]
    return Fault((path, text, _MEANT.get(wanted, "") if not below else ""))


def _hint(name: str, known: list[str]) -> str:
    if name in _GONE and name not in known:
        return _GONE[name]
    close = next((each for each in known if each.lower() == name.lower()), None)
    if close is None:
        close = next(iter(difflib.get_close_matches(name, known, 1)), None)
    if close is not None:
        return f"did you mean {close}?"
    return f"possible: {', '.join(known)}"
