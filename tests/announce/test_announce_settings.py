"""`[announce]`: read strictly, by the daemon and by the speakers with the same words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kuproxy.announce.settings import load_announce
from kuproxy.daemon.settings import load_settings
from kuproxy.errors import ConfigError

GOOD = """
[api]
socket = "/tmp/other.sock"
[announce]
ranges = ["90.0.0.0/24"]
[announce.bgp]
asn = 64512
router_id = "192.0.2.1"
next_hop4 = "192.0.2.1"
[[announce.bgp.neighbors]]
address = "192.0.2.254"
asn = 64513
"""


def test_both_read_the_same(tmp_path: Path) -> None:
    path = tmp_path / "kuproxy.toml"
    path.write_text(GOOD)
    announce, socket = load_announce(path)
    assert load_settings(path).announce == announce
    assert socket == "/tmp/other.sock"
    assert load_settings(None).announce is None


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("asn = 64512", "asn = 0", "announce.bgp.asn: Expected `int` >= 1"),
        ('"90.0.0.0/24"', '"90.0.0.1/24"', "announce.ranges[0]: '90.0.0.1/24' has bits set"),
        ('router_id = "192.0.2.1"', 'router_id = "::1"', "announce.bgp.router_id: ::1 is not IPv4"),
        ('address = "192.0.2.254"', 'address = "2001:db8::1"', "neighbors[0]: our end of the session has no address"),
        ('address = "192.0.2.254"', 'address = "router"', "neighbors[0].address: 'router' is not an IP address"),
        ('next_hop4 = "192.0.2.1"', "", "announce.bgp: no route has a next hop"),
        ("asn = 64513", "asn = 64513\nport = 0", "announce.bgp.neighbors[0].port: Expected `int` >= 1"),
        ("asn = 64513", "as = 64513", "announce.bgp.neighbors[0]: Object"),
        ("[announce.bgp]", "[announce.bpg]", "announce"),
    ],
)
def test_refused_with_the_key(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "kuproxy.toml"
    assert GOOD.count(old) == 1
    path.write_text(GOOD.replace(old, new))
    for read in (load_announce, load_settings):
        with pytest.raises(ConfigError) as caught:
            read(path)
        assert said in str(caught.value)


def test_the_command_says_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "kuproxy.toml"

    def ask(*words: str) -> str:
        command = [sys.executable, "-m", "kuproxy", "announce", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        assert done.returncode == 2 and done.stderr.count("\n") <= 2, done
        return done.stderr

    assert "cannot be read" in ask("bgp", "--settings", str(path))
    path.write_text("[api]\n")
    assert "announce: is not there" in ask("bgp", "--settings", str(path))
    path.write_text(GOOD)
    assert "announce.layer2: is not there" in ask("layer2", "--settings", str(path))
    assert "no daemon listens" in ask("show", "--socket", str(tmp_path / "none"))
