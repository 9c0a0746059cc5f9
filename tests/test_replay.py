"""`ku replay`, `ku ring` and `ku` itself, as a user runs them; captures are written and read by scapy."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import packets
from kuproxy.cli import SUBCOMMANDS

# VPP's own test shapes: five flows, five pods.
SHAPES = {
    4: ("ku vip 90.0.0.0/8 port 3306 target_port 3307 nat4", "90.0.0.0/8", [f"10.0.0.{i}" for i in range(5)]),
    6: (
        "ku vip 2002::/16 port 3306 target_port 3307 nat6",
        "2002::/16",
        [f"2001:0:1::{i}" for i in range(1, 6)],
    ),
}


def ku(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kuproxy", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def client_packets(version: int) -> list[bytes]:
    if version == 4:
        flows = [(f"40.0.0.{i}", f"90.0.0.{i}") for i in range(1, 6)]
    else:
        flows = [(f"2001::{i}", f"2002::{i}") for i in range(1, 6)]
    return [
        packets.frame(packets.udp(source, vip, 10000 + i, 3306, b"query"))
        for i, (source, vip) in enumerate(flows, start=1)
    ]


def write_pcapng(path: Path, by_interface: dict[str, list[bytes]]) -> None:
    from scapy.layers.l2 import Ether
    from scapy.utils import PcapNgWriter

    with PcapNgWriter(str(path)) as writer:
        for name, frames in by_interface.items():
            for number, data in enumerate(frames):
                packet = Ether(data)
                packet.sniffed_on = name
                packet.time = 1_700_000_000 + number / 1000
                writer.write(packet)


def read(path: Path) -> list:
    import scapy.layers.inet
    import scapy.layers.inet6  # noqa: F401 - without them scapy takes IP for raw bytes
    from scapy.utils import rdpcap

    return [packet for packet in rdpcap(str(path))]


@pytest.mark.parametrize("version", [4, 6])
def test_vpp_test_shapes_there_and_back(tmp_path, version):
    line, prefix, pods = SHAPES[version]
    script = tmp_path / "vpp.ku"
    script.write_text(
        f"{line}\nku pod {prefix} {' '.join(pods)}\nku set interface nat4 in pods0\nku set interface nat6 in pods0\n"
        "show ku vip verbose\nshow node counters\n"
    )
    write_pcapng(tmp_path / "in.pcapng", {"client0": client_packets(version)})
    first = ku("replay", "--config", script, tmp_path / "in.pcapng", tmp_path / "out.pcapng")
    assert first.returncode == 0, first.stderr
    forwarded = read(tmp_path / "out.pcapng")
    originals = client_packets(version)
    assert len(forwarded) == 5
    for packet, original in zip(forwarded, originals, strict=True):
        ip = packet.payload
        assert ip.dst in pods
        assert ip.payload.dport == 3307
        assert (ip.ttl if version == 4 else ip.hlim) == 63
        assert packets.verify_checksums(bytes(packet)) == []
        assert ip.payload.sport == int.from_bytes(original[34:36] if version == 4 else original[54:56], "big")

    # The replies come from an interface marked in, in one capture with the packets that they answer.
    replies = [packets.reply_to(bytes(packet)) for packet in forwarded]
    write_pcapng(tmp_path / "both.pcapng", {"client0": originals, "pods0": replies})
    both = ku("replay", "--json", "--config", script, tmp_path / "both.pcapng", tmp_path / "back.pcapng")
    assert both.returncode == 0, both.stderr
    summary = json.loads(both.stdout)
    assert summary["received"] == summary["outcomes"]["transmit"] == 10
    [vip] = summary["vips"]
    assert vip["counters"]["first_packet"] == 5
    assert sum(pod["flows"] for pod in vip["pods"]) == 5
    back = read(tmp_path / "back.pcapng")[5:]
    for number, packet in enumerate(back, start=1):
        ip = packet.payload
        assert ip.src == (f"90.0.0.{number}" if version == 4 else f"2002::{number}")
        assert (ip.payload.sport, ip.payload.dport) == (3306, 10000 + number)
        assert packets.verify_checksums(bytes(packet)) == []


def test_without_a_mark_replies_pass_untouched(tmp_path):
    script = tmp_path / "s.ku"
    script.write_text("ku vip 90.0.0.0/8 port 3306 nat4\nku pod 90.0.0.0/8 10.0.0.1\n")
    reply = packets.frame(packets.udp("10.0.0.1", "40.0.0.1", 3306, 10001, b"x"))
    write_pcapng(tmp_path / "in.pcapng", {"client0": client_packets(4)[:1], "pods0": [reply]})
    done = ku("replay", "--config", script, "--json", tmp_path / "in.pcapng", tmp_path / "out.pcapng")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outcomes"] == {"transmit": 1, "pass": 1, "drop": 0, "held": 0}
    assert bytes(read(tmp_path / "out.pcapng")[1]) == reply


def test_packets_times_are_the_clock(tmp_path):
    """39 s later the flow is known, 41 s later it is a new one, with VPP's default timeout of 40 s."""
    from scapy.layers.l2 import Ether
    from scapy.utils import wrpcap

    script = tmp_path / "s.ku"
    script.write_text("ku conf timeout 40\nku vip 90.0.0.0/8 port 3306 nat4\nku pod 90.0.0.0/8 10.0.0.1\n")
    train = []
    for at in (0, 39, 39 + 41):
        packet = Ether(client_packets(4)[0])
        packet.time = 1_700_000_000 + at
        train.append(packet)
    wrpcap(str(tmp_path / "in.pcap"), train)
    done = ku("replay", "--config", script, "--json", tmp_path / "in.pcap", tmp_path / "out.pcap")
    [vip] = json.loads(done.stdout)["vips"]
    assert (vip["counters"]["first_packet"], vip["counters"]["next_packet"]) == (2, 1)
    assert [float(packet.time) for packet in read(tmp_path / "out.pcap")] == [
        float(packet.time) for packet in train
    ]


def test_faults_are_one_line_each_all_at_once_and_status_2(tmp_path):
    script = tmp_path / "bad.ku"
    script.write_text(
        "ku vip 90.0.0.1/8 port 80\nku pod 1.2.3.4 10.0.0.1\nku vip 90.0.0.0/8 port 70000 nat4\n"
    )
    done = ku("replay", "--config", script, tmp_path / "none.pcap", tmp_path / "out.pcap")
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert [line.split(":")[1] for line in lines] == ["1", "2", "3"]
    assert "90.0.0.0/8" in lines[0]
    assert not (tmp_path / "out.pcap").exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("replay", "--config", "x.toml", "a", "b"), "x.toml"),
        (("replay", "a", "b"), "--config"),
        (("ring", "--new-len", "17", "10.0.0.1"), "17"),
        (("ring", "10.0.0.1", "2001::1"), "IPv4"),
        (("ring", "ten"), "ten"),
        (("frobnicate",), "frobnicate"),
        (("run", "--config", "nothing.ku"), "nothing.ku"),
    ],
)
def test_wrong_usage_is_told_in_a_line(arguments, part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = ku(*arguments)
    assert done.returncode == 2
    assert part in done.stderr
    assert "Traceback" not in done.stderr


def test_input_and_output_must_differ(tmp_path):
    script = tmp_path / "s.ku"
    script.write_text("ku vip 90.0.0.0/8 nat4\n")
    write_pcapng(tmp_path / "in.pcapng", {"a": client_packets(4)})
    before = (tmp_path / "in.pcapng").read_bytes()
    done = ku("replay", "--config", script, tmp_path / "in.pcapng", tmp_path / "in.pcapng")
    assert done.returncode == 2
    assert (tmp_path / "in.pcapng").read_bytes() == before


def test_ring(tmp_path):
    done = ku("ring", "--new-len", 16, "--json", "10.0.0.1", "10.0.0.2", "10.0.0.3")
    answer = json.loads(done.stdout)
    names = [f"10.0.0.{1 + i}" for i in [1, 0, 0, 0, 0, 2, 0, 0, 2, 2, 1, 2, 2, 1, 1, 1]]
    assert answer["slots"] == names
    assert answer["shares"] == {name: names.count(name) for name in sorted(set(names))}
    text = ku("ring", "--new-len", 16, "10.0.0.1", "10.0.0.2", "10.0.0.3").stdout
    assert "37.50 %" in text


def test_help_names_every_command_and_loads_nothing_slow():
    done = ku("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in SUBCOMMANDS)
    slow = {"numba", "numpy", "llvmlite", "pyroute2"}
    probe = f"import sys, kuproxy.cli; print(sorted({slow} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_command_explains_itself(name):
    done = ku(name, "--help")
    assert done.returncode == 0, done.stderr
    assert f"Usage: ku {name}" in done.stdout
    assert len(done.stdout.splitlines()) > 5
