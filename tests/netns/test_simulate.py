"""What `ku simulate` says the data plane sends, the data plane sends: one trace, over wires and in a file."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from kuproxy.drivers.capture.reader import Capture
from kuproxy.load import load_config
from kuproxy.sim.churn import Plan
from kuproxy.sim.generators import Kind, Traffic, write_trace
from kuproxy.sim.run import watch
from netns.lab import Host, drain, network, sniff
from netns.world import cache_options

pytestmark = pytest.mark.netns

IP = 14  # where the packet begins behind the Ethernet header
PACKETS = 3000
SCRIPT = """\
ku conf buckets 4096 timeout 600
ku vip 90.0.0.1/32 protocol {protocol} port 80 target_port 8080 nat4 new_len 256
ku pod 90.0.0.1/32 protocol {protocol} port 80 {pods}
"""


def to_the_vip(frame: bytes) -> bool:
    """Made by the generator: clients are 40.0.0.0/8."""
    return frame[12:14] == b"\x08\x00" and frame[26] == 40


def sent_over_wires(client: Host, pod: Host, frames: list[bytes]) -> list[bytes]:
    """What reaches the pods, from the IP header on."""
    client.sh("ping -c 1 10.1.0.1")
    neighbour = client.sh("ip neigh show 10.1.0.1").split("lladdr ")[1].split()[0]
    mac = bytes.fromhex(neighbour.replace(":", ""))
    listening = pod.run(sniff, "p1")
    sending = client.run(sniff, "c1")
    listening.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE
    got: list[bytes] = []
    try:
        for number, frame in enumerate(frames, start=1):
            sending.send(mac + frame[6:])
            if number % 50 == 0:  # slower than any queue fills
                time.sleep(0.01)
                got += drain(listening)
        until = time.monotonic() + 10
        while sum(map(to_the_vip, got)) < len(frames) and time.monotonic() < until:
            time.sleep(0.02)
            got += drain(listening)
    finally:
        listening.close()
        sending.close()
    return [
        frame[IP : IP + int.from_bytes(frame[IP + 2 : IP + 4], "big")] for frame in got if to_the_vip(frame)
    ]


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_live_sends_what_simulate_writes_packet_for_packet(tmp_path: Path, protocol: str) -> None:
    pods = [f"10.2.0.{number}" for number in range(2, 10)]
    script = tmp_path / "services.ku"
    script.write_text(SCRIPT.format(protocol=protocol, pods=" ".join(pods)))
    config = load_config([script])
    write_trace(tmp_path / "trace.pcap", config.vips[0], Traffic(Kind.ZIPF, packets=PACKETS, clients=300))
    trace = Capture(tmp_path / "trace.pcap")
    frames = [trace.packet(number) for number in range(len(trace))]

    seen, _, _ = watch(config, trace, Plan(), output=tmp_path / "sent.pcap")
    expected = Capture(tmp_path / "sent.pcap")
    wanted = [expected.packet(number)[IP:] for number in range(len(expected))]
    wanted = [packet[: int.from_bytes(packet[2:4], "big")] for packet in wanted]
    assert len(wanted) == len(seen.flow) == PACKETS

    with network() as (client, node, pod):
        for address in pods[1:]:
            pod.sh(f"ip addr add {address}/24 dev p1")
        pod.sysctl("ipv4/conf/p1/rp_filter", "0")
        command = (sys.executable, "-m", "kuproxy.daemon.foreground", "--config", str(script), *cache_options())
        log = (tmp_path / "log").open("wb")
        process = node.run(
            lambda: subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        )
        try:
            until = time.monotonic() + 60
            while b"event=forwarding" not in (tmp_path / "log").read_bytes():
                assert process.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()
                time.sleep(0.05)
            node.sh(
                *(f"ping -c 1 {address}" for address in pods)
            )  # the kernel drops what waits for an answer too long
            got = sent_over_wires(client, pod, frames)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)
            log.close()
    assert Counter(got) == Counter(wanted)
    # Within a flow also in the same order; one worker keeps that of all.
    assert got == wanted
