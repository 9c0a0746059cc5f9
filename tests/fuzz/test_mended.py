"""What the targets have found in the product and its reference, each in a few lines of its own."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict, replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import numpy as np
import pytest

import packets
from daemon.rig import controller, served
from differential.plane import CompiledPlane
from differential.strategies import INSIDE, OUTSIDE, Config
from kuproxy.codes import Node, Outcome, Protocol, Reason
from kuproxy.dataplane.layout import REVERSE_WAYS
from kuproxy.engine import handover
from kuproxy.engine.flows import flow_rows
from kuproxy.engine.repair import repair
from kuproxy.engine.trace import trace_rows
from kuproxy.errors import ConfigError, HandoverError, Problem
from kuproxy.keeper.vault import Vault
from kuproxy.kubeproxy.duration import Duration
from kuproxy.model.vip import Pod, Vip, VipKey, encap_of, vip_type
from kuproxy.reference import RefPacket, Result, Workers
from kuproxy.toml import read_toml


class Both:
    """A compiled plane and the reference, which answer alike."""

    def __init__(self, *vips: Vip, config: Config | None = None) -> None:
        config = config or Config()
        self.plane, self.reference = CompiledPlane(config), Workers(**asdict(config))
        for each in (self.plane, self.reference):
            each.mark_interface(INSIDE, True, True)
            for vip in vips:
                each.set_vip(vip)

    def receive(self, *vector: RefPacket) -> list[Result]:
        results = self.plane.receive(list(vector), 100)
        assert results == self.reference.receive(list(vector), 100)
        counted = {each: count for each, count in self.reference.counters.items() if count}
        assert dict(self.plane.counters()) == counted
        assert set(self.plane.live_flows(100)) == set(self.reference.live_flows(100))
        return results


def vip(prefix: str, *pods: str, kind: str | None = None, **more: object) -> Vip:
    network = ip_network(prefix)
    key = VipKey(network, Protocol.ANY, 0)
    return Vip(key, vip_type(network, kind), pods=tuple(Pod(ip_address(each)) for each in pods), **more)  # type: ignore[arg-type]


def test_icmp_that_is_no_echo_is_no_reply_of_an_echos_flow() -> None:
    """From a pod to a pool's address, with the echo's identifier where others have something else: not ours."""
    both = Both(vip("9100::1/128", "10.0.0.1", kind="nat64"))
    [sent] = both.receive(RefPacket(packets.frame(packets.echo("4000::1", "9100::1", identifier=7)), OUTSIDE))
    assert sent.outcome is Outcome.TRANSMIT
    l3, l4, _, _ = packets.headers(sent.data)
    source = ip_address(sent.data[l3 + 12 : l3 + 16])
    body = sent.data[l4 + 4 : l4 + 8]
    timestamp = packets.icmp("10.0.0.1", source, 14, 0, body + bytes(12))
    [result] = both.receive(RefPacket(packets.frame(timestamp), INSIDE))
    assert (result.outcome, result.reason) == (Outcome.PASS, Reason.NO_TRANSLATION)
    echo = packets.icmp("10.0.0.1", source, 0, 0, body + b"ping")
    [result] = both.receive(RefPacket(packets.frame(echo), INSIDE))
    assert result.reason is Reason.IN2OUT


@pytest.mark.parametrize("pretender_first", [False, True])
def test_whoever_takes_an_address_of_the_prefix_is_in_nobodys_way(pretender_first: bool) -> None:
    """An IPv6 client with the address that an IPv4 client has towards IPv6 pods. Replies are the IPv4 client's."""
    both = Both(vip("91.0.0.1/32", "2001::2", kind="nat46"), vip("9000::1/128", "2001::2"))
    client = RefPacket(packets.frame(packets.udp("40.0.0.1", "91.0.0.1", 1024, 80)), OUTSIDE)
    pretender = packets.udp("64:ff9b:1::2800:1", "9000::1", 1024, 80)
    vector = [client, RefPacket(packets.frame(pretender), OUTSIDE)]
    results = both.receive(*(vector[::-1] if pretender_first else vector))
    assert [result.reason for result in results] == [Reason.FORWARDED] * 2
    [reply] = both.receive(RefPacket(packets.reply_to(results[pretender_first].data), INSIDE))
    assert reply.reason is Reason.IN2OUT
    assert packets.untagged(reply.data)[12:14] == b"\x08\x00"


def test_segments_to_be_split_are_not_cut() -> None:
    both = Both(vip("91.0.0.1/32", "2001::2", kind="nat46"), config=Config(translation_mtu=1280))
    for dont_fragment in (False, True):
        data = packets.frame(
            packets.tcp("40.0.0.1", "91.0.0.1", 1024, 80, bytes(3000)), dont_fragment=dont_fragment
        )
        [result] = both.receive(RefPacket(data, OUTSIDE, partial_checksum=True, gso=True))
        assert result.reason is Reason.FORWARDED


def test_too_short_to_be_told_about() -> None:
    both = Both(replace(vip("90.0.0.1/32"), reject=True))
    datagram = packets.other("40.0.0.1", "90.0.0.1", 255, b"abc")
    [result] = both.receive(RefPacket(packets.frame(datagram), OUTSIDE, room=256))
    assert (result.outcome, result.reason) == (Outcome.DROP, Reason.REJECT_SUPPRESSED)


def test_masqueraded_as_oneself() -> None:
    own = ip_address("40.0.0.9")
    both = Both(vip("90.0.0.1/32", "10.0.0.1", masquerade=True), config=Config(masquerade=(own,)))
    both.receive(RefPacket(packets.frame(packets.udp("40.0.0.9", "90.0.0.1", 2000, 80)), OUTSIDE))
    assert both.plane.counters()[Node.MASQUERADE, Reason.MASQUERADED] == 1


# ------------------------------------------------------------------------------------------------------- text


def test_a_problem_is_one_line_whatever_it_quotes() -> None:
    text = str(Problem("'a\r\nb\x1b[2J\u2028' is not known", "file\n.ku", 3, "\t"))
    assert text.isprintable()
    assert "\\r\\n" in text and "\\x1b" in text
    assert str(Problem("µ × “plain”", "f", 1)) == "f:1: µ × “plain”"


@pytest.mark.parametrize("text", ["a = " + "[" * 3000, "a = " + "9" * 5000, "a = \udcff"])
def test_toml_that_is_none(text: str, tmp_path: Path) -> None:
    path = tmp_path / "kuproxy.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match="is not TOML"):
        read_toml(path)


@pytest.mark.parametrize("text", ["1" * 5000, "1" * 5000 + "x", "1h" + "2" * 300 + "m", "٣s", "1.2.3s"])
def test_a_long_duration_is_refused_at_once(text: str) -> None:
    began = time.process_time()
    with pytest.raises(ValueError, match="is not a duration"):
        Duration.parse(text)
    assert time.process_time() - began < 1


def test_durations_are_read_as_before() -> None:
    for text, seconds in (
        ("1h15m", 4500),
        (".5s", 0.5),
        ("1.s", 1),
        ("-250ms", -0.25),
        ("1h0m0.000000001s", 3600.000000001),
    ):
        assert Duration.parse(text).seconds == seconds


# ------------------------------------------------------------------------------------------------------- HTTP


@pytest.mark.parametrize("rest", [b"zz\r\n", b"2\r\n{}\r\n-1\r\n"])
def test_a_body_that_is_none_gets_one_answer_and_no_traceback(
    rest: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """It is about to be answered, without its body, when that turns out to be no HTTP."""
    head = b"PUT /v1/nothing HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with served(controller()) as client, socket.socket(socket.AF_UNIX) as opened:
        opened.settimeout(10)
        opened.connect(client.path)
        opened.sendall(head + rest)
        answer = b""
        while chunk := opened.recv(1 << 16):
            answer += chunk
        assert answer.startswith(b"HTTP/1.1 400")
        assert answer.count(b"HTTP/1.1") == 1
        assert client.request("GET", "/v1/vips")["vips"] == []
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


# ------------------------------------------------------------------------------------------------ shared memory


def with_flows() -> Both:
    direct_encap, direct_kind = encap_of(ip_network("90.1.0.0/24"), "gre4")
    direct = Vip(
        VipKey(ip_network("90.1.0.0/24"), Protocol.ANY, 0),
        direct_kind,
        pods=(Pod(ip_address("10.0.0.5")),),
        encap=direct_encap,
    )
    both = Both(
        vip("90.0.0.1/32", "10.0.0.1", "10.0.0.2"),
        direct,
        config=Config(ip4_src_address=ip_address("40.0.0.250")),
    )
    both.plane.engine.trace(50)
    for port in range(1024, 1044):
        for destination in ("90.0.0.1", "90.1.0.1"):
            both.receive(RefPacket(packets.frame(packets.udp("40.0.0.1", destination, port, 80)), OUTSIDE))
    return both


def test_control_reads_what_no_worker_would_write() -> None:
    engine = with_flows().plane.engine
    state = engine.state
    rows = list(flow_rows(engine.tables, engine.states))
    traced = list(trace_rows(engine.states))
    slots = [row["slot"] for row in rows]
    state.entries["pod"][slots[0]] = 1 << 30
    state.entries["vip"][slots[1]] = 1 << 30
    state.flows["state"][slots[2]] = 99
    assert len(list(flow_rows(engine.tables, engine.states))) == len(rows) - 3
    state.trace["node"][0], state.trace["outcome"][1], state.trace["reason"][2] = 250, 77, 255
    assert len(list(trace_rows(engine.states))) == len(traced) - 3


def test_a_direct_flow_whose_way_back_lies_nowhere_is_forgotten() -> None:
    """Nobody answers by it, but to forget the flow is to look there."""
    both = with_flows()
    state, tables = both.plane.engine.state, both.plane.engine.tables
    used = np.flatnonzero(state.entries["pod"])
    direct = [int(slot) for slot in used if tables.vips[state.entries["vip"][slot]]["encap"]]
    state.flows["reverse"][direct[0]] = len(state.entries) * REVERSE_WAYS + 1
    repair(tables, state)
    assert len(np.flatnonzero(state.entries["pod"])) == len(used) - 1


def vault_with(description: object, size: int | None = None) -> Vault:
    vault = Vault()
    for name, data in (
        ("description", json.dumps(description).encode()),
        ("tables", b""),
        ("baselines", b""),
        ("shared", b""),
    ):
        fd = os.memfd_create(name)
        os.write(fd, data)
        vault.put(name, fd)
    if size is not None:
        os.ftruncate(vault.peek("tables"), size)
    return vault


@pytest.mark.parametrize(
    "change",
    [
        {"meaning": 1},
        {"workers": -1},
        {"workers": 1 << 40},
        {"pid_word": 1 << 40},
        {"regions": {}},
        {"regions": {"tables": [["header", "|O", [1]]]}},
        [],
        "text",
    ],
)
def test_a_description_without_sense_means_to_begin_anew(change: object) -> None:
    whole = handover.describe(1)
    description = {**whole, **change} if isinstance(change, dict) and "meaning" not in change else change
    with pytest.raises(HandoverError, match="not understood"):
        handover.predecessor(vault_with(description))


def test_memory_that_is_shorter_than_described_means_to_begin_anew() -> None:
    """To touch what a description promises and the file lacks is SIGBUS."""
    with pytest.raises(HandoverError, match=r"has \d+ bytes"):
        handover.predecessor(vault_with(handover.describe(1), 4096))


def test_only_workers_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their numbers lie in memory that is theirs to write."""
    ended = []
    monkeypatch.setattr(handover.signal, "pidfd_send_signal", lambda pidfd, number: ended.append(pidfd))
    monkeypatch.setattr(handover, "_END_PATIENCE_S", 0)
    description = handover.describe(1)
    description["regions"]["state"][0][2][0] = 512
    vault = Vault()
    fd = os.memfd_create("state")
    os.ftruncate(fd, 4096)
    os.pwrite(fd, (1).to_bytes(8, "little"), 8 * description["pid_word"])  # init
    vault.put("worker/0/state", fd)
    handover.end_workers(description, vault)
    assert ended == []
    monkeypatch.setattr(handover.os, "getppid", lambda: 0)  # whose child init is
    handover.end_workers(description, vault)
    assert len(ended) == 1
