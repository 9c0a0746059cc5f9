"""Differences into the controller, so that what is refused holds up nothing else.

Other sources (files, commands) were there first: what they hold is left to them.  Where tables or maps are full, halves
are tried, and halves of these, until what does not fit is alone.  Everything that was refused is remembered, and tried
again when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from kuproxy.control.book import Difference
from kuproxy.daemon.control import Controller
from kuproxy.errors import ConfigError, ConflictError, SteeringError, TableFullError
from kuproxy.model.vip import Pod, Vip, VipKey

__all__ = ["Programmed", "Programmer"]

_REFUSALS = (ConflictError, SteeringError, TableFullError)


@dataclass(slots=True)
class Programmed:
    """What became of a difference."""

    added: int = 0
    changed: int = 0
    removed: int = 0
    refused: dict[VipKey, str] = field(default_factory=dict)  # with the reason, one line
    is_lacking: bool = False  # some for want of room, which may come: not because others have what they ask for


class Programmer:
    """Writes for one source."""

    def __init__(self, controller: Controller, source: str) -> None:
        self.refused: dict[VipKey, str] = {}  # wholly, or its node port
        self._wanted: dict[VipKey, Vip] = {}  # as it was asked for, of what was refused
        self._controller, self._source = controller, source

    def owner(self, key: VipKey) -> str:
        """`namespace/service:port` of a VIP that was refused."""
        return self._wanted[key].owner

    def program(self, difference: Difference) -> Programmed:
        """Make the change, and try again what was refused before."""
        result = Programmed()
        remove = dict.fromkeys(difference.remove)
        asked = {key: vip for key, vip in self._wanted.items() if key not in remove}
        asked.update((vip.key, vip) for vip in difference.add)
        if not (asked or remove or difference.flushed):
            return result
        accepted, problems = self._controller.plane.store.yielding(self._source, asked.values())
        result.refused = {key: str(problem) for key, problem in problems.items()}
        accepted_keys = {vip.key for vip in accepted}
        # A VIP that changes into something that it must not be is none any more.
        remove.update(dict.fromkeys(key for key in problems if key not in accepted_keys))
        self._write(accepted, list(remove), difference.flushed, result)
        self.refused = result.refused
        self._wanted = {key: asked[key] for key in result.refused}
        return result

    def _write(
        self,
        add: list[Vip],
        remove: list[VipKey],
        flushed: Iterable[tuple[VipKey, Pod]],
        result: Programmed,
    ) -> None:
        try:
            answer = self._controller.update(self._source, add, remove, flushed)
        except _REFUSALS as error:
            if not add:
                raise  # less than before is never too much
            if len(add) == 1 and not remove:
                result.refused[add[0].key] = str(error).replace("\n", "; ")
                is_lacking = not isinstance(error, ConflictError)
                result.is_lacking |= is_lacking
                if not (is_lacking and self._make_do(add[0], flushed, result)):
                    # What it was before may be wrong by now.
                    self._write([], [add[0].key], flushed, result)
                return
            if remove:
                self._write([], remove, flushed, result)
            half = len(add) // 2
            parts = [part for part in (add[:half], add[half:]) if part]
            for part in parts:
                self._write(part, [], flushed, result)
            return
        result.added += answer.added
        result.changed += answer.changed
        result.removed += answer.removed

    def _make_do(self, vip: Vip, flushed: Iterable[tuple[VipKey, Pod]], result: Programmed) -> bool:
        """For want of room, let a VIP go on with those of its pods that it had already; whether that was possible.

        Connections to these go on, and no new one begins at a pod that is gone.
        """
        held, _ = self._controller.plane.store.excerpt(self._source, [vip.key])
        if not held:
            return False
        former = set(held[0].all_pods)
        if held[0].target_port != vip.target_port:  # then pods without a port of their own are others
            return False
        less = replace(
            vip,
            pods=tuple(pod for pod in vip.pods if pod in former),
            outside_pods=None
            if vip.outside_pods is None
            else tuple(pod for pod in vip.outside_pods if pod in former),
            node_port=vip.node_port if vip.node_port == held[0].node_port else 0,
        )
        try:
            result.changed += self._controller.update(self._source, [less], (), flushed).changed
        except (*_REFUSALS, ConfigError):  # a VIP of a node port alone cannot do without it
            return False
        return True
