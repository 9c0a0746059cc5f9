"""kube-proxy's rules: what its nftables mode (1.36) writes for cluster IPs, as text for `nft -f`.

Chains, sets and maps, their hooks and priorities are those of pkg/proxy/nftables/proxier.go, taken from a dump of the
real one; what only node ports, firewalls and affinity need is there and empty, as it is there.  Names of chains are
hashes there, and numbers here.
"""

from collections.abc import Sequence

from bench.live.services import Rule

__all__ = ["ruleset"]

CLUSTER_CIDR = "10.244.0.0/16"
SERVICE_CIDR = "10.96.0.0/12"
MARK = "0x00004000"  # bit 14, the default of iptables.masqueradeBit and nftables.masqueradeBit

_BASE = f"""
set nodeport-ips {{ type ipv4_addr; }}
map no-endpoint-services {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
map no-endpoint-nodeports {{ type inet_proto . inet_service : verdict; }}
map firewall-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
map service-nodeports {{ type inet_proto . inet_service : verdict; }}
chain nodeport-endpoints-check {{ ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports; }}
chain service-endpoints-check {{ ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }}
chain firewall-check {{ ip daddr . meta l4proto . th dport vmap @firewall-ips; }}
chain services {{
    ip daddr @cluster-ips ip saddr != {CLUSTER_CIDR} meta mark set meta mark | {MARK}
    ip daddr . meta l4proto . th dport vmap @service-ips
    ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
}}
chain masquerading {{
    meta mark & {MARK} != 0x00000000 meta mark set meta mark ^ {MARK} masquerade fully-random
    ct status dnat ip saddr . ip daddr . meta l4proto . th dport @hairpin-connections masquerade fully-random
}}
chain cluster-ips-check {{
    ip daddr @cluster-ips reject
    ip daddr {{ {SERVICE_CIDR} }} drop
}}
chain filter-prerouting-pre-dnat {{
    type filter hook prerouting priority dstnat - 10; policy accept;
    ct state new jump firewall-check
}}
chain filter-output-pre-dnat {{
    type filter hook output priority -110; policy accept;
    ct state new jump firewall-check
}}
chain filter-input {{
    type filter hook input priority filter; policy accept;
    ct state new jump nodeport-endpoints-check
    ct state new jump service-endpoints-check
}}
chain filter-forward {{
    type filter hook forward priority filter; policy accept;
    ct state new jump service-endpoints-check
    ct state new jump cluster-ips-check
}}
chain filter-output {{
    type filter hook output priority filter; policy accept;
    ct state new jump service-endpoints-check
    ct state new jump cluster-ips-check
}}
chain nat-prerouting {{ type nat hook prerouting priority dstnat; policy accept; jump services; }}
chain nat-output {{ type nat hook output priority -100; policy accept; jump services; }}
chain nat-postrouting {{ type nat hook postrouting priority srcnat; policy accept; jump masquerading; }}
"""


def ruleset(rules: Sequence[Rule]) -> str:
    """Table `kube-proxy` of family ip."""
    chains, places = [], []
    for number, rule in enumerate(rules):
        to = ", ".join(f"{n} : {pod} . {rule.target_port}" for n, pod in enumerate(rule.pods))
        chains.append(
            f"chain service-{number} {{ meta l4proto {rule.protocol} "
            f"dnat ip to numgen random mod {len(rule.pods)} map {{ {to} }}; }}"
        )
        places.append(f"{rule.address} . {rule.protocol} . {rule.port} : goto service-{number}")
    hairpins = dict.fromkeys(
        f"{pod} . {pod} . {rule.protocol} . {rule.target_port}" for rule in rules for pod in rule.pods
    )
    addresses = dict.fromkeys(rule.address for rule in rules)
    sets = [
        f"set cluster-ips {{ type ipv4_addr; elements = {{ {', '.join(addresses)} }}; }}",
        "set hairpin-connections { type ipv4_addr . ipv4_addr . inet_proto . inet_service; "
        f"elements = {{ {', '.join(hairpins)} }}; }}",
        "map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; "
        f"elements = {{ {', '.join(places)} }}; }}",
    ]
    return "\n".join(["table ip kube-proxy {", *chains, *sets, _BASE, "}"]) + "\n"
