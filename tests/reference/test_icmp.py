"""ICMP errors through the NAT, and those of our own: rules of RFC 792, 1812, 4443 and 5508."""

import struct
from ipaddress import ip_address

import pytest

import packets
from kuproxy.codes import Node, Outcome, Reason
from packets import echo, frame, ip_packet, reply_to, tcp, udp, verify_checksums
from reference.test_translation import addresses, complain, l4_of
from reference.worlds import send, verdict, vip, world

INSIDE = 1
TRANSLATED = (Outcome.TRANSMIT, Reason.ICMP_ERROR_TRANSLATED)
SIDES = [("40.0.0.1", "90.0.0.1", "50.0.0.1"), ("4000::1", "9000::1", "5000::1")]
PODS = {4: ["10.0.0.1", "10.0.0.2", "10.0.0.3"], 6: ["2001::2", "2001::3", "2001::4"]}
TOO_BIG = {4: (3, 4, 1400), 6: (2, 0, 1400)}


def both(**options):
    return world(
        vip("90.0.0.1", PODS[4], port=80, target_port=8080),
        vip("9000::1", PODS[6], port=80, target_port=8080),
        inside=INSIDE,
        **options,
    )


@pytest.mark.parametrize(("client", "address", "router"), SIDES)
@pytest.mark.parametrize("build", [tcp, udp], ids=["tcp", "udp"])
def test_a_router_behind_us_is_heard_by_the_client(client, address, router, build):
    """RFC 5508 REQ-4, REQ-5: embedded address and port restored, type and code unchanged; the router stays itself."""
    reference = both()
    sent = build(client, address, 7000, 80)
    there = send(reference, frame(sent))
    kind, code, rest = TOO_BIG[ip_address(client).version]
    result = complain(reference, there.data, kind, code, rest, router=router)
    assert result[:2] == TRANSLATED
    assert addresses(result.data) == (ip_address(router), ip_address(client))
    message = l4_of(result.data)
    assert message[:2] == bytes([kind, code]) and message[4:8] == struct.pack(">I", rest)
    assert message[8:] == ip_packet(sent, ttl=63)
    assert verify_checksums(result.data) == []


@pytest.mark.parametrize(("client", "address", "_router"), SIDES)
def test_the_pods_error_comes_from_the_vip(client, address, _router):
    reference = both()
    there = send(reference, frame(udp(client, address, 7000, 80)))
    result = complain(reference, there.data, *{4: (3, 3, 0), 6: (1, 4, 0)}[ip_address(client).version])
    assert result[:2] == TRANSLATED
    assert addresses(result.data) == (ip_address(address), ip_address(client))


@pytest.mark.parametrize(("client", "address", "router"), SIDES)
@pytest.mark.parametrize("known", [True, False])
def test_an_error_about_a_reply_finds_the_pod(client, address, router, known):
    """By its flow or, on a node that never saw that, by the ring."""
    reference = both()
    there = send(reference, frame(udp(client, address, 7000, 80)))
    if not known:
        reference = both()
    reply = udp(address, client, 80, 7000, b"reply")
    result = complain(reference, frame(reply), *TOO_BIG[ip_address(client).version], router=router)
    assert result[:2] == TRANSLATED
    pod = addresses(there.data)[1]
    assert addresses(result.data) == (ip_address(router), pod)
    assert l4_of(result.data)[8:] == ip_packet(udp(pod, client, 8080, 7000, b"reply"))
    assert verify_checksums(result.data) == []


def test_no_checksum_is_made_where_there_was_none():
    """RFC 768: zero stays zero, in the embedded packet too."""
    reference = both()
    there = send(reference, frame(udp("40.0.0.1", "90.0.0.1", 7000, 80, no_checksum=True)))
    result = complain(reference, there.data, 3, 3, 0)
    assert l4_of(result.data)[8 + 20 + 6 :][:2] == bytes(2)


def test_damaged_errors_are_dropped():
    """RFC 5508 REQ-3: silently."""
    reference = both()
    there = send(reference, frame(udp("40.0.0.1", "90.0.0.1", 7000, 80)))
    source, destination = addresses(there.data)
    data = bytearray(frame(packets.icmp(destination, source, 3, 3, bytes(4) + there.data[14:])))
    data[-1] ^= 1
    assert verdict(reference, bytes(data), interface=INSIDE) == (Outcome.DROP, Reason.ICMP_BAD_CHECKSUM)


def test_errors_do_not_keep_a_flow_alive_nor_end_it():
    """RFC 5508 REQ-6, RFC 4787 section 9: neither refresh nor delete."""
    reference = both(timeout_ticks=100)
    data = frame(udp("40.0.0.1", "90.0.0.1", 7000, 80))
    there = send(reference, data)
    [before] = reference.live_flows(50)
    complain(reference, there.data, 3, 3, 0)
    assert reference.live_flows(50) == [before]


def test_errors_about_others_pass():
    reference = both()
    stranger = frame(udp("40.0.0.1", "10.0.0.1", 7000, 8080))
    assert complain(reference, stranger, 3, 3, 0)[:2] == (Outcome.PASS, Reason.NO_TRANSLATION)
    error = frame(packets.icmp_error("50.0.0.1", "40.0.0.1", udp("40.0.0.1", "60.0.0.1", 7, 8)))
    assert verdict(reference, error) == (Outcome.PASS, Reason.NO_VIP)


def test_an_expired_error_dies_in_silence():
    """RFC 1122 section 3.2.2: no error about an error."""
    reference = both()
    there = send(reference, frame(udp("40.0.0.1", "90.0.0.1", 7000, 80)))
    source, _ = addresses(there.data)
    error = frame(packets.icmp("50.0.0.1", source, 3, 3, bytes(4) + there.data[14:]), ttl=1)
    assert verdict(reference, error, interface=INSIDE) == (Outcome.DROP, Reason.TTL_EXPIRED)


@pytest.mark.parametrize(("client", "address", "_router"), SIDES)
def test_time_exceeded(client, address, _router):
    """RFC 792, RFC 4443 section 3.3: the packet as it came; traceroute sees a hop here."""
    own = {4: ip_address("40.0.0.254"), 6: ip_address("4000::fe")}
    reference = both(own_addresses=own)
    sent = udp(client, address, 7000, 80)
    result = send(reference, frame(sent, ttl=1))
    assert result[:2] == (Outcome.TRANSMIT, Reason.TIME_EXCEEDED_SENT)
    version = ip_address(client).version
    assert addresses(result.data) == (own[version], ip_address(client))
    assert l4_of(result.data)[:8] == bytes([11, 0][:2] if version == 4 else [3, 0]) + result.data[-len(
        l4_of(result.data)
    ) :][2:4] + bytes(4)
    assert l4_of(result.data)[8:] == ip_packet(sent, ttl=1)
    assert verify_checksums(result.data) == []
    assert reference.counters[Node.BALANCE, Reason.TTL_EXPIRED] == 1


def test_errors_are_limited():
    """RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 (f)."""
    reference = both(reject_rate=1)
    data = frame(udp("40.0.0.1", "90.0.0.1", 7000, 80), ttl=1)
    assert verdict(reference, data)[0] == Outcome.TRANSMIT
    assert verdict(reference, data) == (Outcome.DROP, Reason.ERROR_RATE_LIMITED)
    assert verdict(reference, data, now=10)[0] == Outcome.TRANSMIT


def test_no_error_about_later_fragments_or_to_nobody():
    """RFC 1122 section 3.2.2, RFC 4443 section 2.4 (e)."""
    reference = both()
    first, later = packets.fragments(udp("40.0.0.1", "90.0.0.1", 7000, 80, bytes(60)), 48, ttl=1)
    assert verdict(reference, first) == (Outcome.TRANSMIT, Reason.TIME_EXCEEDED_SENT)
    assert verdict(reference, later) == (Outcome.DROP, Reason.ERROR_SUPPRESSED)
    from_all = frame(udp("224.0.0.9", "90.0.0.1", 7000, 80), ttl=1)
    assert verdict(reference, from_all) == (Outcome.DROP, Reason.ERROR_SUPPRESSED)


@pytest.mark.parametrize(("client", "address", "_router"), SIDES)
def test_a_vip_answers_an_echo(client, address, _router):
    """RFC 1122 section 3.2.2.6: with a port, the VIP means no pod; it answers itself, data and all."""
    reference = both()
    asked = frame(echo(client, address, identifier=9, data=b"odd"), ttl=7)
    result = send(reference, asked)
    assert result[:2] == (Outcome.TRANSMIT, Reason.ECHO_ANSWERED)
    assert result.data == reply_to(asked)
    assert verify_checksums(result.data) == []


def test_an_echo_to_a_vip_of_every_protocol_goes_to_its_pod():
    reference = world(vip("90.0.0.1", ["10.0.0.1"]))
    result = send(reference, frame(echo("40.0.0.1", "90.0.0.1")))
    assert result[:2] == (Outcome.TRANSMIT, Reason.FORWARDED)
    assert addresses(result.data)[1] == ip_address("10.0.0.1")
