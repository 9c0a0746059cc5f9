"""What would be if: the same packet at the same moment, by tables in which something is different.

The tables are a private copy that a compiler of its own adopts, as after a restart of the control process; indices
stay, so that every flow keeps its pod and the answer says what the change would really do, drains included.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import msgspec

from kuproxy.engine.packets import PacketIn
from kuproxy.engine.shadow import ShadowEngine
from kuproxy.errors import ConfigError, Problem
from kuproxy.explain.explain import explain
from kuproxy.explain.report import Counterfactual, Explanation
from kuproxy.explain.services import ServiceFinder, Source, vips_under, with_policy
from kuproxy.model.service import ServiceObjects
from kuproxy.model.vip import Pod, Vip, address_text, parse_address
from kuproxy.plane import Plane

__all__ = ["WhatIf", "explain_both", "parse_pod"]

_SOURCE = "what if"


@dataclass(frozen=True, slots=True)
class WhatIf:
    """Changes to the VIP that the packet meets; together they make one counterfactual."""

    without_pods: tuple[str, ...] = ()
    with_pods: tuple[str, ...] = ()
    new_len: int | None = None
    policy: str = ""

    def __bool__(self) -> bool:
        return bool(self.without_pods or self.with_pods or self.new_len is not None or self.policy)

    def described(self) -> list[str]:
        told = [f"without pod {text}" for text in self.without_pods]
        told += [f"with pod {text}" for text in self.with_pods]
        if self.new_len is not None:
            told.append(f"new_len {self.new_len}")
        if self.policy:
            told.append(f"traffic policy {self.policy}")
        return told


def parse_pod(text: str, field: str) -> Pod:
    """`10.0.0.1`, `10.0.0.1:8080`, `[2001::1]:80`, each with `*WEIGHT` if wanted.  Raises ConfigError."""
    named, _, weight = text.partition("*")
    match = re.fullmatch(r"\[(.+)\](?::(\d+))?|([^:\[\]]+)(?::(\d+))?|([^\[\]]+)", named)
    if match is None or (weight and not weight.isdecimal()):
        hint = "say ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT, and *WEIGHT behind it if it has one"
        raise ConfigError(Problem(f"{text!r} is no pod", field=field, hint=hint))
    host, port = match[1] or match[3] or match[5], match[2] or match[4]
    try:
        address = parse_address(host)
    except ValueError as error:
        raise ConfigError(Problem(str(error), field=field)) from None
    return Pod(address, int(port or 0), int(weight or 1))


def explain_both(
    plane: Plane,
    packet: PacketIn,
    now: int,
    what_if: WhatIf,
    *,
    worker: int | None = None,
    services: ServiceFinder,
) -> Explanation:
    """What is, and beside it what would be.  Raises ConfigError for a change that makes no sense here."""
    real = explain(plane, packet, now, worker=worker, services=services)
    if not what_if:
        return real
    if real.vip is None:
        raise ConfigError(
            Problem("the packet meets no VIP, so there is nothing to change", field=what_if.described()[0])
        )
    records = [each for each in plane.compiler.records() if not each.removed]
    vip = next(each.vip for each in records if str(each.vip.key) == real.vip)
    present = [vip]
    wanted = [_changed(vip, what_if)]
    finder = services
    if what_if.policy:
        source = services(vip.owner)
        if source is None:
            hint = "`ku vip` has pods, and --with-pod and --without-pod change them"
            message = f"VIP {vip.key} is no Service's, so it has no traffic policy"
            raise ConfigError(Problem(message, field="--policy", hint=hint))
        service, policy = source[0].service.full_name, what_if.policy
        present = [each.vip for each in records if each.vip.owner.partition(":")[0] == service]
        wanted = [
            _changed(each, what_if) if each.key == vip.key else each for each in vips_under(source, policy)
        ]
        finder = _under(services, service, policy)
    other = _hypothetical(plane)
    other.update(_SOURCE, present)  # claimed from what was adopted, and not changed yet
    keys = {each.key for each in wanted}
    other.update(_SOURCE, wanted, [each.key for each in present if each.key not in keys])
    # By the worker that has the flow now: steering does not ask for pods.
    would = explain(other, packet, now, worker=real.packet.worker, services=finder)
    return _with(real, would, what_if)


def _hypothetical(plane: Plane) -> Plane:
    engine = ShadowEngine(plane.engine)
    other = Plane(engine, decrement_ttl=engine.decrement_ttl, any_node_address=engine.any_node_address)
    engine.keep_settings()
    other.compiler.set_second_chance(plane.settings.second_chance_s)
    return other


def _under(services: ServiceFinder, service: str, policy: str) -> ServiceFinder:
    """The same finder, but this Service has another policy."""

    def find(owner: str) -> Source | None:
        source = services(owner)
        if source is None or source[0].service.full_name != service:
            return source
        objects, view = source
        return ServiceObjects(with_policy(objects.service, policy), objects.slices), view

    return find


def _changed(vip: Vip, what_if: WhatIf) -> Vip:
    """Pods come and go wherever the VIP has them.  Raises ConfigError."""
    groups = {"pods": vip.pods, "outside_pods": vip.outside_pods}
    for text in what_if.without_pods:
        gone = parse_pod(text, "--without-pod")
        if not any(_is_meant(vip, gone, pod) for pod in vip.all_pods):
            known = ", ".join(address_text(pod.address, vip.pod_port(pod)) for pod in vip.all_pods[:8])
            hint = f"it has {known}" if known else "it has none"
            raise ConfigError(Problem(f"VIP {vip.key} has no pod {text}", field="--without-pod", hint=hint))
        groups = {
            name: None if pods is None else tuple(pod for pod in pods if not _is_meant(vip, gone, pod))
            for name, pods in groups.items()
        }
    for text in what_if.with_pods:
        new = parse_pod(text, "--with-pod")
        groups = {
            name: None if pods is None else (*(pod for pod in pods if not _is_meant(vip, new, pod)), new)
            for name, pods in groups.items()
        }
    size = vip.new_len if what_if.new_len is None else what_if.new_len
    return replace(vip, pods=groups["pods"] or (), outside_pods=groups["outside_pods"], new_len=size)


def _is_meant(vip: Vip, named: Pod, pod: Pod) -> bool:
    """A port is compared where one is named."""
    return named.address == pod.address and (not named.port or named.port == vip.pod_port(pod))


def _with(real: Explanation, would: Explanation, what_if: WhatIf) -> Explanation:
    return msgspec.structs.replace(
        real,
        what_if=Counterfactual(
            changes=what_if.described(),
            differences=list(_differences(real, would)),
            outcome=would.outcome,
            reason=would.reason,
            pod=would.pod,
            ring=would.ring,
            endpoints=would.endpoints,
            sent=would.sent,
        ),
    )


def _differences(real: Explanation, would: Explanation) -> Iterator[str]:
    if real.vip != would.vip:
        yield f"VIP {would.vip or 'none'} instead of {real.vip}"
    if (real.outcome, real.reason) != (would.outcome, would.reason):
        yield f"{would.outcome} ({would.reason}) instead of {real.outcome} ({real.reason})"
    if real.pod != would.pod:
        yield f"pod {would.pod or 'none'} instead of {real.pod or 'none'}"
    before, after = real.ring, would.ring
    if before is not None and after is not None:
        if before.slots != after.slots:
            yield f"{after.slots} slots instead of {before.slots}: slot {after.slot} instead of {before.slot}"
        if before.owner != after.owner:
            yield f"the slot's owner is {after.owner} instead of {before.owner}"
    if real.sent != would.sent and (real.outcome, real.pod) == (would.outcome, would.pod):
        yield "other bytes leave"
    if real.flow is not None and real.flow.known and real.pod == would.pod:
        yield "the flow is known, and stays where it is: only new flows would see the change"
