"""What is wrong with one VIP by itself."""

from __future__ import annotations

from collections.abc import Iterator

from kuproxy.check.finding import Finding, Severity, Subject
from kuproxy.codes import Encap, HashMode, Origin
from kuproxy.control.policy import recommended_new_len
from kuproxy.model.vip import Vip

__all__ = ["is_guard", "lengths", "pods", "settings", "sizes"]

SLOTS_PER_POD = 10  # VPP's recommendation: one to two orders of magnitude more slots than pods
_OUTER = {4: 20, 6: 40}  # bytes of an IP header
_BEHIND_OUTER = {Encap.GRE: 4, Encap.IPIP: 0, Encap.GUE: 12}  # RFC 2784; UDP and GUE's own four
_GROWTH = 20  # from an IPv4 header to an IPv6 one
_WAYS = 4  # flows of a bucket


def is_guard(vip: Vip) -> bool:
    """Made to refuse what no Service has, and never meant to have pods."""
    return vip.owner != "ku" and not vip.key.port and not vip.all_pods


def sizes(subject: Subject) -> Iterator[Finding]:
    """The new-flow table against its pods."""
    for vip in subject.config.vips:
        for group in {vip.pods, vip.outside_pods or ()}:
            weight = sum(pod.weight for pod in group)
            serving = sum(bool(pod.weight) for pod in group)
            if not serving:
                continue
            least = min(pod.weight for pod in group if pod.weight)
            hint = f"say new_len {recommended_new_len(-(-weight // least))}"
            if vip.new_len < serving:
                message = f"{serving} pods share {vip.new_len} slots, so some get no new flows at all"
                yield subject.find("new-len-too-small", Severity.ERROR, vip, message, hint)
            elif vip.new_len * least < SLOTS_PER_POD * weight:
                share = vip.new_len * least / weight
                message = f"{vip.new_len} slots are {share:.1f} for the lightest of {serving} pods: shares are uneven"
                yield subject.find("new-len-too-small", Severity.WARNING, vip, message, hint)


def pods(subject: Subject) -> Iterator[Finding]:
    """Pods that are missing, weightless, or the VIP itself."""
    for vip in subject.config.vips:
        if is_guard(vip):
            continue
        every = vip.all_pods
        if not every:
            then = "refused" if vip.reject else "dropped"
            hint = "add one with `ku pod`" if vip.owner == "ku" else "see that an endpoint is ready"
            yield subject.find(
                "no-pods", Severity.WARNING, vip, f"it has no pods: its packets are {then}", hint
            )
        elif not any(pod.weight for pod in every):
            message = "all of its pods weigh 0, so there are no new flows"
            yield subject.find("no-weight", Severity.WARNING, vip, message, "give one of them a weight")
        elif vip.outside_pods == ():
            message = "clients from outside find no pod on this node (policy Local)"
            hint = "have the load balancer ask healthCheckNodePort, or say externalTrafficPolicy: Cluster"
            yield subject.find("no-local-pods", Severity.NOTE, vip, message, hint)
        if vip.key.prefix.prefixlen == vip.key.prefix.max_prefixlen and vip.on_node_only:
            continue
        inside = [pod for pod in every if pod.address in vip.key.prefix]
        if inside and vip.encap is Encap.NAT:
            message = f"pod {inside[0]} has an address of the VIP: packets to it would come back here"
            hint = "let the prefix end before the pods, or give them other addresses"
            yield subject.find("pod-in-vip", Severity.ERROR, vip, message, hint)


def settings(subject: Subject) -> Iterator[Finding]:
    """What a VIP needs of the settings."""
    config = subject.config
    said = {address.version for address in (*config.settings.masquerade, *config.node_addresses)}
    for vip in config.vips:
        if is_guard(vip):
            continue
        family = int(vip.type.pod_family)
        wishes = vip.masquerade or any(
            vip.masquerades(each) for each in (Origin.POD, Origin.NODE, Origin.OUTSIDE)
        )
        if wishes and int(vip.key.family) == family and family not in said:
            message = "clients are to be masqueraded, and there is no address to do it with: they are dropped"
            hint = f"say `ku conf masquerade ADDRESS` with an IPv{family} address of this node"
            yield subject.find("no-masquerade-address", Severity.ERROR, vip, message, hint)
        if vip.affinity_s and vip.hash_mode is HashMode.SOURCE:
            message = "hash source gives a client one pod anyway; affinity only takes places in its table"
            yield subject.find("affinity-twice", Severity.NOTE, vip, message, "leave out one of the two")
        capacity = config.settings.buckets * _WAYS
        if vip.session_cap > capacity:
            message = f"{vip.session_cap} sessions can never be reached: the flow table holds {capacity}"
            hint = f"say buckets {1 << (-(-vip.session_cap // _WAYS) - 1).bit_length()}, or fewer sessions"
            yield subject.find("cap-above-table", Severity.WARNING, vip, message, hint)


def lengths(subject: Subject) -> Iterator[Finding]:
    """Packets that grow on their way to the pods."""
    paths, limit = subject.paths, subject.config.settings.translation_mtu
    for vip in subject.config.vips:
        if is_guard(vip):
            continue
        family = int(vip.type.pod_family)
        grows = int(vip.key.family) == 4 and family == 6 and vip.encap is Encap.NAT
        extra = _GROWTH if grows else 0
        if vip.encap.is_tunnel:
            extra = _OUTER[family] + _BEHIND_OUTER[vip.encap]
        if not extra or paths.mtu + extra <= paths.pod_mtu:
            continue
        if grows and 0 < limit <= paths.pod_mtu:
            continue  # clients are told
        what = f"{vip.encap.name}" if vip.encap.is_tunnel else "translation to IPv6"
        message = (
            f"{what} adds {extra} bytes: packets of {paths.mtu} become {paths.mtu + extra}, "
            f"and the way to the pods takes {paths.pod_mtu}"
        )
        hint = f"give that way an MTU of {paths.mtu + extra}, or clients one of {paths.pod_mtu - extra}"
        if grows:
            hint += f", or say `ku conf nat-mtu {paths.pod_mtu}`"
        yield subject.find("mtu", Severity.WARNING, vip, message, hint)
