"""`ku explain` as a user runs it: against files, against a daemon, and with mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

import packets
from daemon.rig import as_user, controller, served
from kuproxy.client import Client, Refusal
from kuproxy.daemon.api.auth import Access
from kuproxy.explain.dissect import dissect, rewrites
from kuproxy.explain.packet import five_tuple, frame_of, from_hex

SCRIPT = """\
ku vip 90.0.0.0/8 port 80 target_port 8080 nat4
ku vip 90.0.0.1/32 protocol tcp port 80 target_port 8080 nat4
ku pod 90.0.0.0/8 10.0.0.1
ku pod 90.0.0.1/32 protocol tcp port 80 10.0.0.3 10.0.0.4 10.0.0.5
"""


def ku(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kuproxy", "explain", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "services.ku"
    path.write_text(SCRIPT)
    return path


@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
@pytest.mark.parametrize("ends", [("40.0.0.1:1024", "90.0.0.1:80"), ("[4000::1]:1024", "[9000::1]:80")])
def test_a_5_tuple_is_a_packet_with_right_checksums(protocol: str, ends: tuple[str, str]) -> None:
    assert packets.verify_checksums(frame_of(five_tuple(protocol, *ends))) == []


@pytest.mark.parametrize("words", [("icmp", "40.0.0.1", "90.0.0.1"), ("icmp6", "4000::1", "9000::1")])
def test_an_echo_needs_no_ports(words: tuple[str, str, str]) -> None:
    assert packets.verify_checksums(frame_of(five_tuple(*words))) == []


def test_hex_is_a_frame_or_an_ip_packet() -> None:
    frame = frame_of(five_tuple("tcp", "40.0.0.1:1024", "90.0.0.1:80"))
    assert from_hex(frame.hex(":")) == frame
    assert from_hex(frame[14:].hex(" ")) == frame


def test_fields_are_all_of_a_frame_and_changes_are_what_differs() -> None:
    before = packets.frame(packets.udp("40.0.0.1", "90.0.0.1", 1024, 80, b"data"), vlan=(7,))
    assert b"".join(field.data for field in dissect(before)) == before
    after = packets.frame(packets.udp("40.0.0.1", "10.0.0.3", 1024, 8080, b"data"), vlan=(7,))
    found = {f"{each.layer} {each.field}": (each.old_text, each.new_text) for each in rewrites(before, after)}
    assert found.keys() == {"IPv4 checksum", "IPv4 destination", "UDP destination port", "UDP checksum"}
    assert found["IPv4 destination"] == ("90.0.0.1", "10.0.0.3")
    assert rewrites(before, before) == []


@pytest.mark.parametrize(
    ("line", "where"),
    [
        ("", "where this node sends to 10.0.0.3"),
        ("ku conf reply-path any", "by any interface"),
        ("ku set interface nat4 in pods0", "by marked interfaces: pods0"),
    ],
)
def test_of_a_reply_it_is_told_where_it_has_to_come_in(tmp_path: Path, line: str, where: str) -> None:
    path = tmp_path / "services.ku"
    path.write_text(f"{SCRIPT}{line}\n")
    answer = ku("--config", path, "tcp", "10.0.0.3:8080", "40.0.0.1:1024").stdout
    assert f"as a pod's reply it comes up {where}\n" in answer
    for others in (("10.0.0.9:8080", "40.0.0.1:1024"), ("10.0.0.3:1024", "90.0.0.1:80")):
        assert "reply" not in ku("--config", path, "tcp", *others).stdout


def test_a_tunnel_is_told_as_headers_that_are_new(tmp_path: Path) -> None:
    path = tmp_path / "gre.ku"
    path.write_text(
        "ku conf ip4-src-address 40.0.0.250\nku vip 90.0.0.0/8 encap gre4\nku pod 90.0.0.0/8 10.0.0.1\n"
    )
    told = json.loads(ku("--config", path, "--json", "udp", "40.0.0.1:1024", "90.0.0.1:80").stdout)
    new = {
        f"{each['layer']} {each['field']}": each["new_text"]
        for each in told["rewrites"]
        if each["old"] is None
    }
    assert new["outer IPv4 source"] == "40.0.0.250" and new["outer IPv4 destination"] == "10.0.0.1"
    assert not any(each["layer"] == "UDP" for each in told["rewrites"])


def test_files(script: Path, tmp_path: Path) -> None:
    svg = tmp_path / "way.svg"
    ran = ku("--config", script, "--diagram", "--svg", svg, "tcp", "40.0.0.1:1024", "90.0.0.1:80")
    assert ran.returncode == 0, ran.stderr
    assert "* 90.0.0.1/32 protocol tcp port 80: the most specific that fits" in ran.stdout
    assert "- 90.0.0.0/8 port 80: /8 is less specific than /32" in ran.stdout
    assert "TCP destination port: 80 -> 8080   0050 -> 1f90" in ran.stdout
    assert "|              kp-balance              |" in ran.stdout
    picture = ElementTree.parse(svg).getroot()
    chosen = [each for each in picture.iter() if each.get("class") == "pod chosen"]
    assert len(chosen) == 1


def test_a_packet_of_a_capture_comes_after_those_before_it(script: Path, tmp_path: Path) -> None:
    from scapy.layers.l2 import Ether
    from scapy.utils import wrpcap

    flow = packets.frame(packets.tcp("40.0.0.1", "90.0.0.1", 1024, 80))
    other = packets.frame(packets.tcp("40.0.0.2", "90.0.0.1", 1024, 80))
    wrpcap(str(tmp_path / "in.pcap"), [Ether(flow), Ether(other), Ether(flow)])
    common = ("--config", script, "--json", "--capture", tmp_path / "in.pcap", "--packet")
    first, third = (json.loads(ku(*common, number).stdout) for number in (1, 3))
    assert (first["event"], third["event"]) == ("FIRST_PACKET", "EXISTING_SESSION")
    assert first["pod"] == third["pod"] == third["flow"]["pod"]
    assert json.loads(ku(*common, 3, "--fresh").stdout)["event"] == "FIRST_PACKET"
    refused = ku(*common, 4)
    assert refused.returncode == 2 and "there is no packet 4; it has 3" in refused.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no packet is named"),
        (("tcp", "40.0.0.1:1024"), "2 words are no packet"),
        (("tcp", "40.0.0.1", "90.0.0.1:80"), "SOURCE: '40.0.0.1' has no port"),
        (("tcp", "40.0.0.1:1", "[9000::1]:80"), "two families"),
        (("gopher", "40.0.0.1:1", "90.0.0.1:80"), "'gopher' is no protocol"),
        (("--hex", "zz"), "'z' is no hexadecimal digit"),
        (("--tcp-flags", "sin", "tcp", "40.0.0.1:1", "90.0.0.1:80"), "'sin' is no flag"),
    ],
)
def test_mistakes_are_one_line(script: Path, words: tuple[str, ...], message: str) -> None:
    ran = ku("--config", script, *words)
    assert ran.returncode == 2 and ran.stdout == ""
    assert message in ran.stderr and len(ran.stderr.splitlines()) == 1


def asked_by_a_reader(client: Client, body: dict[str, object]) -> str:
    told = client.request("POST", "/v1/explain", body)
    with pytest.raises(Refusal, match="may read but not change"):
        client.request("POST", "/v1/flows/flush")
    return f"{told['outcome']}, and may not flush"


def test_readers_may_ask_the_daemon_and_nothing_changes(script: Path) -> None:
    made = controller(files=(script,))
    frame = frame_of(five_tuple("tcp", "40.0.0.1:1024", "90.0.0.1:80"))
    body = {"frame": frame.hex(), "without_pods": ["10.0.0.3"]}
    with served(made, Access(owner=12345), mode=0o666) as client:
        if os.geteuid() == 0:  # else no other user can be played
            assert as_user(54321, lambda: asked_by_a_reader(client, body)) == "transmit, and may not flush"
        told = client.request("POST", "/v1/explain", body)
        assert told["outcome"] == "transmit" and told["vip"] == "90.0.0.1/32 protocol tcp port 80"
        assert told["what_if"]["pod"] in ("10.0.0.4:8080", "10.0.0.5:8080")
        assert client.request("GET", "/v1/flows")["flows"] == []
        assert client.request("GET", "/v1/counters")["received"] == 0
        with pytest.raises(Refusal, match="frame: is not hexadecimal"):
            client.request("POST", "/v1/explain", {"frame": "zz"})
        ran = ku("--socket", client.path, "tcp", "40.0.0.1:1024", "90.0.0.1:80")
        assert ran.returncode == 0 and "goes to 10.0.0." in ran.stdout, ran.stderr
