"""Of two claims the first holds, and the store accepts whatever is left."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from control.policy.cluster import NODE_PORT, VIEW, WEB
from kuproxy.control.policy import service_vips, settle
from kuproxy.control.store import Store
from kuproxy.model.service import Service

STOLEN = (ip_address("198.51.100.1"),)


def named(service: Service, number: int, **changes: object) -> Service:
    address = ip_address("10.96.0.0") + number
    return replace(service, name=f"web-{number}", cluster_ips=(address,), **changes)


def test_the_first_keeps_an_external_ip() -> None:
    first, second = (named(WEB, number, external_ips=STOLEN) for number in (1, 2))
    kept, problems = settle([*service_vips(first, []), *service_vips(second, [])])
    assert [vip.owner for vip in kept if vip.key.prefix.network_address in STOLEN] == ["shop/web-1:http"]
    assert [str(vip.key.prefix) for vip in kept] == ["10.96.0.1/32", "198.51.100.1/32", "10.96.0.2/32"]
    assert [problem.message for problem in problems] == [
        "VIP 198.51.100.1/32 protocol tcp port 80 belongs to shop/web-1:http; shop/web-2:http does not get it"
    ]


def test_an_external_ip_that_is_a_cluster_ip() -> None:
    victim, thief = named(WEB, 1), named(WEB, 2, external_ips=(ip_address("10.96.0.1"),))
    kept, problems = settle([*service_vips(victim, []), *service_vips(thief, [])])
    assert len(problems) == 1
    assert {str(vip.key.prefix): vip.owner for vip in kept}["10.96.0.1/32"] == "shop/web-1:http"


def test_a_node_port_alone_is_lost_and_the_address_stays() -> None:
    services = [named(NODE_PORT, number) for number in (1, 2)]
    for view in (None, VIEW):
        kept, problems = settle(vip for service in services for vip in service_vips(service, [], view))
        assert [vip.owner for vip in kept if vip.node_port] == ["shop/web-1:http"]
        assert len(problems) == 1
        assert {str(vip.key.prefix) for vip in kept} >= {"10.96.0.1/32", "10.96.0.2/32"}
        Store().replace("kubernetes", kept)


@given(
    st.lists(
        st.builds(
            named,
            st.sampled_from([WEB, NODE_PORT]),
            st.integers(1, 3),
            external_ips=st.sampled_from([(), STOLEN, (ip_address("10.96.0.1"),)]),
        ),
        max_size=5,
    ),
    st.sampled_from([None, VIEW]),
)
def test_the_store_accepts_what_is_settled(services, view) -> None:
    wanted = [vip for service in services for vip in service_vips(service, [], view)]
    kept, problems = settle(wanted)
    Store().replace("kubernetes", kept)
    assert settle(kept) == (kept, [])
    assert bool(problems) == bool([vip for vip in wanted if vip not in kept])
