"""Pod indices by pod, small: a hundred thousand of them are kept for as long as a daemon runs.

A dict of `Pod` costs a second object and its tuple for each pod that the VIP has already; a whole number says the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from ipaddress import IPv4Address, IPv6Address
from operator import attrgetter

from kuproxy.model.vip import Pod, Vip

__all__ = ["Places", "place_of", "places_of", "pod_of"]

_ID = attrgetter("id")


def place_of(pod: Pod) -> int:
    """Address, port and version in one number, in the order of pods of one family; the weight is not in it."""
    number, port, version, _ = pod.id
    return number << 24 | port << 8 | version


def places_of(vip: Vip) -> list[int]:
    """Of all pods of a VIP, their ports resolved; in the order of `Vip.all_pods`."""
    usual = vip.target_port
    return [number << 24 | (port or usual) << 8 | version for number, port, version, _ in map(_ID, vip.all_pods)]


def pod_of(place: int) -> Pod:
    """The pod at that place, of weight 1."""
    kind = IPv4Address if place & 0xFF == 4 else IPv6Address
    return Pod(kind(place >> 24), place >> 8 & 0xFFFF)


class Places(MutableMapping[Pod, int]):
    """Pods, their ports resolved, with their indices; in the order in which they came.

    Pods are made when somebody asks for them.  Who has many to look up takes `at`, by `place_of`.
    """

    __slots__ = ("at",)

    def __init__(self, pods: Mapping[Pod, int] | None = None) -> None:
        self.at: dict[int, int] = {place_of(pod): index for pod, index in (pods or {}).items()}

    @classmethod
    def of(cls, places: Iterable[int], indices: Iterable[int]) -> Places:
        """Of `place_of`'s numbers and as many indices."""
        made = cls()
        made.at = dict(zip(places, indices, strict=True))
        return made

    def copy(self) -> Places:
        made = Places()
        made.at = self.at.copy()
        return made

    def __len__(self) -> int:
        return len(self.at)

    def __iter__(self) -> Iterator[Pod]:
        return map(pod_of, self.at)

    def __contains__(self, pod: object) -> bool:
        return isinstance(pod, Pod) and place_of(pod) in self.at

    def __getitem__(self, pod: Pod) -> int:
        return self.at[place_of(pod)]

    def __setitem__(self, pod: Pod, index: int) -> None:
        self.at[place_of(pod)] = index

    def __delitem__(self, pod: Pod) -> None:
        del self.at[place_of(pod)]

    def __repr__(self) -> str:
        return f"Places({', '.join(f'{pod}: {index}' for pod, index in self.items())})"
