"""The Python interface: what it takes, gives and refuses, and that all of it is there, documented and typed."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

import kuproxy
import packets
from differential.strategies import make_frame

WEB = {"port": 80, "protocol": "tcp", "target_port": 8080, "pods": ["10.0.0.1", "10.0.0.2", "10.0.0.3"]}


def syn(port: int = 1024, client: str = "40.0.0.1", address: str = "90.0.0.1") -> bytes:
    return packets.frame(packets.tcp(client, address, port, 80))


@pytest.fixture
def balancer() -> kuproxy.Balancer:
    return kuproxy.Balancer([kuproxy.service("90.0.0.1", **WEB)])


def test_every_public_name_is_there_documented_and_typed() -> None:
    for name in kuproxy.__all__:
        thing = getattr(kuproxy, name)
        if name == "__version__":
            continue
        assert inspect.getdoc(thing), name
    for owner in (kuproxy.Balancer, kuproxy.Result):
        for name, member in vars(owner).items():
            if name.startswith("_") or not callable(member):
                continue
            assert inspect.getdoc(member), name
            hints = inspect.signature(member)
            assert hints.return_annotation is not inspect.Signature.empty, name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        kuproxy.nonsense  # noqa: B018


def test_importing_it_loads_nothing_slow() -> None:
    code = "import sys, kuproxy; print(sorted({'numpy', 'numba', 'msgspec', 'yaml'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_type_checker_sees_the_surface(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import kuproxy\n"
        "balancer = kuproxy.Balancer([kuproxy.service('90.0.0.1', port=80)])\n"
        "one: kuproxy.Result = balancer.process(b'frame')\n"
        "many: list[kuproxy.Result] = balancer.process([b'frame'])\n"
        "wrong: int = balancer.process(b'frame')\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    lines = [line for line in done.stdout.splitlines() if "program.py" in line]
    assert len(lines) == 1 and ":5: error" in lines[0], done.stdout


def test_one_frame_in_each_of_its_kinds(balancer: kuproxy.Balancer) -> None:
    from scapy.layers.l2 import Ether

    as_bytes = balancer.process(syn())
    as_array = balancer.process(np.frombuffer(syn(), np.uint8))
    as_layers = balancer.process(Ether(syn()))
    assert isinstance(as_array.packet, np.ndarray) and isinstance(as_layers.packet, Ether)
    assert as_bytes.packet == as_array.packet.tobytes() == bytes(as_layers.packet)
    assert packets.verify_checksums(as_bytes.packet) == []
    assert as_bytes.pod == as_array.pod == as_layers.pod
    assert as_bytes.vip == balancer.services[0]


@pytest.mark.parametrize("many", [list, tuple, iter])
def test_many_frames_keep_their_order(balancer: kuproxy.Balancer, many: Any) -> None:
    frames = [syn(port, address=rng) for port in range(1024, 1424) for rng in ("90.0.0.1", "90.0.0.2")]
    results = balancer.process(many(frames))
    assert len(results) == 800  # more than a vector holds
    assert [result.reason.name for result in results] == ["FORWARDED", "NO_VIP"] * 400
    assert all(packets.headers(done.packet)[0] == 14 for done in results)
    assert [done.packet for done in results[1::2]] == frames[1::2]
    rows = np.array([list(frame) for frame in frames[::2]], np.uint8)
    assert [done.pod for done in balancer.process(rows)] == [done.pod for done in results[::2]]


def test_it_is_the_maglev_table_that_chooses(balancer: kuproxy.Balancer) -> None:
    table = kuproxy.maglev(WEB["pods"], 1024)
    vip = balancer.services[0]
    assert [str(pod) for pod in balancer.owners(vip)] == [f"{pod}:8080" for pod in table]
    for port in range(2000, 2050):
        told = balancer.explain(syn(port))
        assert told.ring is not None
        assert str(balancer.process(syn(port)).pod) == told.pod == f"{table[told.ring.slot]}:8080"


def test_fragments_wait_from_call_to_call(balancer: kuproxy.Balancer) -> None:
    datagram = packets.tcp("40.0.0.1", "90.0.0.1", 1024, 80, bytes(100))
    first, *later = packets.fragments(datagram, 64, identification=7)
    waiting = balancer.process(later)
    assert {each.outcome.name for each in waiting} == {"HELD"}
    own, *released = balancer.process([first])
    assert own.pod is not None and len(released) == len(later)
    assert all(each.outcome.name == "TRANSMIT" for each in released)


def test_a_frame_longer_than_any_before(balancer: kuproxy.Balancer) -> None:
    long = packets.frame(packets.tcp("40.0.0.1", "90.0.0.1", 1024, 80, bytes(9000)))
    assert len(balancer.process(long).packet) == len(long)
    assert balancer.process(syn()).reason.name == "FORWARDED"


def test_known_flows_stay_and_removed_services_end(balancer: kuproxy.Balancer) -> None:
    (vip,) = balancer.services
    balancer.process(syn())
    ack = packets.frame(packets.tcp("40.0.0.1", "90.0.0.1", 1024, 80, flags=packets.ACK, acknowledgement=9))
    before = balancer.process(ack).pod
    assert before is not None
    others = [pod for pod in WEB["pods"] if pod != str(before.address)]  # type: ignore[attr-defined]
    balancer.set(kuproxy.service("90.0.0.1", **(WEB | {"pods": others})))
    assert balancer.process(ack).pod == before
    assert balancer.process(syn(1025)).pod != before
    assert [flow.pod for flow in balancer.flows(pod=str(before.address))] == [before.address]
    balancer.remove(vip)
    assert balancer.services == () and balancer.flows() == []
    assert balancer.process(ack).reason.name == "NO_VIP"


def test_other_families_tunnels_and_masquerading() -> None:
    balancer = kuproxy.Balancer(
        [
            kuproxy.service("91.0.0.1", port=80, pods=["2001::1"]),
            kuproxy.service("92.0.0.1", encap="gre4", pods=["10.0.0.1"]),
            kuproxy.service("93.0.0.1", port=80, pods=["10.0.0.1"], masquerade=True),
        ],
        masquerade=["192.0.2.1"],
        tunnel_sources=["192.0.2.2"],
        buckets=64,
    )
    translated, wrapped, hidden = balancer.process([syn(address=f"9{each}.0.0.1") for each in (1, 2, 3)])
    assert translated.packet[12:14] == b"\x86\xdd"
    assert (wrapped.packet[23], wrapped.packet[26:30]) == (packets.GRE, bytes([192, 0, 2, 2]))
    assert hidden.packet[26:30] == bytes([192, 0, 2, 1])


def test_a_capture_brings_its_own_time(balancer: kuproxy.Balancer, tmp_path: Path) -> None:
    from scapy.layers.l2 import Ether
    from scapy.utils import wrpcap

    frames = []
    for at, frame in ((1000.0, syn()), (1001.0, syn(1025)), (1100.0, syn(1026))):
        packet = Ether(frame)
        packet.time = at
        frames.append(packet)
    wrpcap(str(tmp_path / "in.pcap"), frames)
    assert [done.reason.name for done in balancer.capture(tmp_path / "in.pcap")] == ["FORWARDED"] * 3
    assert balancer.now_s == pytest.approx(100.0)
    assert [flow.client_port for flow in balancer.flows()] == [1026], "the others are half-open for 30 s"
    with pytest.raises(kuproxy.KuError, match="No such file"):
        list(balancer.capture(tmp_path / "absent.pcap"))


def test_damaged_frames_are_results_not_exceptions() -> None:
    rng = Random(7)
    balancer = kuproxy.Balancer([kuproxy.service("90.0.0.0/8", pods=["10.0.0.1"])])
    frames = [make_frame(rng)[: rng.randrange(1, 60)] for _ in range(300)]
    results = balancer.process(frames)
    assert {each.outcome.name for each in results[:300]} <= {"TRANSMIT", "PASS", "DROP", "HELD"}


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda: kuproxy.service("90.0.0.300"), "address: "),
        (lambda: kuproxy.service("90.0.0.1", protocol="gopher"), "protocol: 'gopher'"),
        (lambda: kuproxy.service("90.0.0.1", encap="vxlan"), "encap: 'vxlan'"),
        (lambda: kuproxy.service("90.0.0.1", pods=["nobody"]), "pods: "),
        (lambda: kuproxy.service("90.0.0.1", pods=["10.0.0.1", "2001::1"]), "its pods are IPv4"),
        (lambda: kuproxy.maglev(["10.0.0.1"], 100), "new_len: 100"),
        (lambda: kuproxy.maglev([]), "pods: there are none"),
        (lambda: kuproxy.Balancer(buckets=3), "buckets"),
        (lambda: kuproxy.Balancer().process([b"", b"x"]), "packets: 0 bytes"),
        (lambda: kuproxy.Balancer().process([7]), "packets: int is no frame"),
        (lambda: kuproxy.Balancer().process(np.zeros(60)), "packets: an array float64"),
        (
            lambda: kuproxy.Balancer().process(syn(), interface="eth0"),
            "interface: there is no interface 'eth0'",
        ),
        (lambda: kuproxy.Balancer().advance(-1), "seconds: -1 s"),
        (lambda: kuproxy.Balancer().owners(kuproxy.service("90.0.0.1")), "there is no service"),
    ],
)
def test_mistakes_name_what_is_wrong(mistake: Any, message: str) -> None:
    with pytest.raises(kuproxy.ConfigError, match=message):
        mistake()


def test_two_services_with_one_key_are_a_conflict() -> None:
    with pytest.raises(kuproxy.KuError):
        kuproxy.Balancer(
            [kuproxy.service("90.0.0.1", port=80), kuproxy.service("90.0.0.1", port=80, reject=True)]
        )
