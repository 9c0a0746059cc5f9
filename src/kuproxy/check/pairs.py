"""What VIPs do to each other."""

from __future__ import annotations

from collections.abc import Iterator

from kuproxy.check.finding import Finding, Severity, Subject
from kuproxy.check.vips import is_guard
from kuproxy.codes import Encap, Protocol
from kuproxy.model.vip import Pod, Prefix, Vip, VipKey, address_text

__all__ = ["overlaps", "shared_pods"]


def _service(vip: Vip) -> str:
    return vip.owner.partition(":")[0]


def _meet(one: Vip, other: Vip) -> bool:
    """Is there a packet, at an address of both, that either would take?"""
    protocols = {one.key.protocol, other.key.protocol}
    ports = {one.key.port, other.key.port}
    return (len(protocols) == 1 or Protocol.ANY in protocols) and (len(ports) == 1 or 0 in ports)


def overlaps(subject: Subject) -> Iterator[Finding]:
    """VIPs of which one takes a part of what the other seems to have.

    Every VIP is compared with those of the prefixes that contain its own, as many as there are lengths.
    """
    vips = [vip for vip in subject.config.vips if not vip.on_node_only and not is_guard(vip)]
    by_prefix: dict[Prefix, list[Vip]] = {}
    for vip in vips:
        by_prefix.setdefault(vip.key.prefix, []).append(vip)
    lengths = {(prefix.version, prefix.prefixlen) for prefix in by_prefix}
    for vip in vips:
        prefix = vip.key.prefix
        for version, length in sorted(lengths):
            if version != prefix.version or length > prefix.prefixlen:
                continue
            for other in by_prefix.get(prefix.supernet(new_prefix=length), ()):
                if other is not vip and _meet(vip, other) and _is_found(vip, other):
                    yield _overlap(subject, vip, other)


def _is_found(vip: Vip, other: Vip) -> bool:
    """Each pair once, the more specific one first; one Service's own VIPs are meant so."""
    if vip.owner != "ku" and _service(vip) == _service(other):
        return False
    if vip.key.prefix != other.key.prefix:
        return True
    return (bool(vip.key.port), bool(vip.key.protocol)) > (bool(other.key.port), bool(other.key.protocol))


def _overlap(subject: Subject, vip: Vip, other: Vip) -> Finding:
    if vip.key.prefix != other.key.prefix:
        why = f"/{vip.key.prefix.prefixlen} comes before /{other.key.prefix.prefixlen}"
    elif vip.key.port and not other.key.port:
        why = "one port comes before all"
    else:
        why = "one protocol comes before all"
    message = f"it takes what VIP {other.key} would have had: {why}"
    hint = "if that is not meant, let the prefixes, protocols or ports differ"
    same = vip.all_pods == other.all_pods and vip.target_port == other.target_port
    severity = Severity.NOTE if same or vip.key.prefix == other.key.prefix else Severity.WARNING
    return subject.find("overlap", severity, vip, message, hint)


def shared_pods(subject: Subject) -> Iterator[Finding]:
    """A pod and port behind two VIPs: a client that uses one source port for both gets replies that look alike.

    The data plane avoids the clash, by another pod or another source port, which costs an even choice.
    """
    users: dict[tuple[int, ...], list[tuple[Vip, Pod]]] = {}
    for vip in subject.config.vips:
        if vip.encap is Encap.NAT:
            for pod in vip.all_pods:
                # Without a target port the pod sees the VIP's own, any of them.
                users.setdefault((*pod.id[:1], vip.pod_port(pod), pod.id[2]), []).append((vip, pod))
    told: set[tuple[VipKey, VipKey]] = set()
    for sharing in users.values():
        for number, (other, pod) in enumerate(sharing):
            one = next((each for each, _ in sharing[:number] if _compete(each, other)), None)
            if one is None or (one.key, other.key) in told:
                continue
            told.add((one.key, other.key))
            name = address_text(pod.address, one.pod_port(pod))
            message = f"pod {name} is also behind VIP {other.key}: a client's replies from both look alike"
            hint = "give each VIP a pod port of its own, or clients one VIP"
            kind = Severity.NOTE if one.owner != "ku" and other.owner != "ku" else Severity.WARNING
            yield subject.find("shared-pod-port", kind, one, message, hint)


def _compete(one: Vip, other: Vip) -> bool:
    """Not where one Service has several addresses: that is how it is meant."""
    if one.owner != "ku" and _service(one) == _service(other):
        return False
    protocols = {one.key.protocol, other.key.protocol}
    return len(protocols) == 1 or Protocol.ANY in protocols
