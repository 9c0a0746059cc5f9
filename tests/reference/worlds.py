"""Short ways to say VIPs, pods and packets in tests of the reference."""

from __future__ import annotations

from collections.abc import Sequence

from kuproxy.codes import Encap, Outcome, Protocol, Reason, VipCounter
from kuproxy.model.vip import (
    DEFAULT_NEW_LEN,
    Pod,
    Vip,
    VipKey,
    encap_of,
    parse_address,
    parse_prefix,
    vip_type,
)
from kuproxy.reference import Reference, RefPacket, Result


def pod(text: str) -> Pod:
    """`10.0.0.1`, `10.0.0.1:8080`, `[2001::2]:8080`."""
    if text.startswith("["):
        address, _, port = text[1:].partition("]:")
    elif text.count(":") == 1:
        address, _, port = text.partition(":")
    else:
        address, port = text, ""
    return Pod(parse_address(address), int(port or 0))


def key(prefix: str, protocol: str = "any", port: int = 0) -> VipKey:
    return VipKey(parse_prefix(prefix), Protocol[protocol.upper()], port)


def vip(
    prefix: str,
    pods: Sequence[str] = (),
    *,
    protocol: str = "any",
    port: int = 0,
    target_port: int = 0,
    node_port: int = 0,
    kind: str | None = None,
    new_len: int = DEFAULT_NEW_LEN,
    reject: bool = False,
    encap: str | None = None,
    **more: object,
) -> Vip:
    """`kind` and `encap` are words of the command language (`nat46`, `gre4`); without them there is no translation."""
    way, vip_kind = Encap.NAT, vip_type(parse_prefix(prefix), kind)
    if encap is not None:
        way, vip_kind = encap_of(parse_prefix(prefix), encap)
    return Vip(
        key(prefix, protocol, port),
        vip_kind,
        target_port,
        node_port,
        new_len,
        tuple(pod(text) for text in pods),
        reject,
        encap=way,
        **more,  # type: ignore[arg-type]
    )


def world(*vips: Vip, inside: int | None = None, **options: object) -> Reference:
    """A reference with these VIPs; packets of the interface `inside` come from pods."""
    reference = Reference(**options)  # type: ignore[arg-type]
    for one in vips:
        reference.set_vip(one)
    if inside is not None:
        reference.mark_interface(inside, True, True)
    return reference


def send(reference: Reference, data: bytes, now: int = 0, **how: object) -> Result:
    """One packet, alone in its vector, that releases nothing."""
    [result] = reference.receive([RefPacket(data, **how)], now)  # type: ignore[arg-type]
    return result


def verdict(reference: Reference, data: bytes, now: int = 0, **how: object) -> tuple[Outcome, Reason]:
    return send(reference, data, now, **how)[:2]


def packet_counts(reference: Reference) -> dict[VipKey, dict[VipCounter, int]]:
    """The VIPs' counters but for bytes and replies."""
    return {
        of: {each: count for each, count in counts.items() if each <= VipCounter.NO_SERVER}
        for of, counts in reference.vip_counters.items()
    }
