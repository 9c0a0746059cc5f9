"""The state file: whatever ends the process, and whatever happens to the file, a whole state is found again."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from daemon.rig import controller
from kuproxy.codes import FlowState, Origin
from kuproxy.daemon.persist import StateFile, StateFileError
from kuproxy.daemon.schema import Conf, State, VipSpec, spec_of, vip_of
from kuproxy.errors import TableFullError
from kuproxy.model.vip import Vip

WRITER = Path(__file__).with_name("crash_writer.py")


def number_of(directory: Path) -> int:
    """Of the state that is found; every part of it must be of one write."""
    file = StateFile(directory)
    loaded = file.load()
    file.close()
    assert loaded.warnings == ()
    if not loaded.state.vips:
        return 0
    number = loaded.state.vips[0].sessions
    assert {vip.sessions for vip in loaded.state.vips} == {number}
    assert len(loaded.state.vips) == 1 + number % 200
    assert loaded.state.conf.timeout == number
    return number


def crash(directory: Path, wait_s: float) -> None:
    """Kill a writer in the midst of its writes; the state is the last that it told of, or the next."""
    with subprocess.Popen([sys.executable, str(WRITER), str(directory)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        told = [process.stdout.readline(), process.stdout.readline()]
        time.sleep(wait_s)
        process.kill()
        told += process.stdout.readlines()
    words = [line.decode().strip() for line in told if line.endswith(b"\n")]
    assert len(words) >= 2
    committed = [int(word) for word in words if not word.startswith("+")]
    prepared = [int(word[1:]) for word in words if word.startswith("+")]
    assert committed, "it was killed before its first write"
    found = number_of(directory)
    assert found in (committed[-1], prepared[-1]), (found, words[-3:])


def test_kill_9_at_random_moments(tmp_path: Path) -> None:
    chosen = random.Random(1)
    for _ in range(50):
        crash(tmp_path, chosen.uniform(0, 0.02))


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_kill_9_at_a_thousand_random_moments(tmp_path: Path) -> None:
    chosen = random.Random(2)
    for _ in range(1000):
        crash(tmp_path, chosen.uniform(0, 0.02))


def written(directory: Path, *states: State) -> None:
    file = StateFile(directory)
    for state in states:
        file.prepare(state)
        file.commit()
    file.close()


def test_a_file_cut_or_changed_at_any_byte_is_set_aside_and_the_one_before_is_used(tmp_path: Path) -> None:
    first = State(conf=Conf(timeout=1.0))
    second = State(conf=Conf(timeout=2.0), vips=[VipSpec(prefix="90.0.0.0/8")])
    written(tmp_path, first, second)
    good = (tmp_path / "state.json").read_bytes()
    before = (tmp_path / "state.json.old").read_bytes()
    damages = [good[:cut] for cut in range(0, len(good) - 1, 7)]
    damages += [good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :] for at in range(0, len(good) - 1, 7)]
    for damaged in damages:
        (tmp_path / "state.json").write_bytes(damaged)
        (tmp_path / "state.json.old").write_bytes(before)
        file = StateFile(tmp_path)
        loaded = file.load()
        file.close()
        assert loaded.state == first
        [line] = loaded.warnings
        assert "is damaged" in line and "set aside as state.json.damaged-" in line
    assert len(list(tmp_path.glob("state.json.damaged-*"))) == len(damages)


def test_a_state_of_a_newer_version_is_not_misread(tmp_path: Path) -> None:
    written(tmp_path, State())
    path = tmp_path / "state.json"
    path.write_bytes(path.read_bytes().replace(b'"format":1', b'"format":2'))
    loaded = StateFile(tmp_path).load()
    assert "has format 2, this version reads format 1" in loaded.warnings[0]


def test_two_daemons_do_not_share_a_directory(tmp_path: Path) -> None:
    first = StateFile(tmp_path)
    with pytest.raises(StateFileError, match="in use by another daemon"):
        StateFile(tmp_path)
    first.close()
    StateFile(tmp_path).close()


def test_commands_survive_a_restart(tmp_path: Path) -> None:
    made = controller(tmp_path)
    made.run("ku vip 90.0.0.0/8 port 80 protocol tcp node_port 30080\nku pod 90.0.0.0/8 10.0.0.1 weight 3")
    made.run("ku conf timeout udp 7\nku set interface nat4 in pods0")
    before, state = made.plane.store.snapshot(), made.commands.state()
    assert made._state_file is not None
    made._state_file.close()
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    again = controller(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept
    assert again.plane.store.snapshot() == before
    assert again.commands.state() == state
    assert again.settings.timeouts[FlowState.UDP] == 7


def test_what_contradicts_changed_files_is_kept_in_a_copy_and_the_rest_serves(tmp_path: Path) -> None:
    script = tmp_path / "a.ku"
    script.write_text("")
    made = controller(tmp_path / "state", (script,))
    made.run("ku vip 90.0.0.0/8 node_port 30080 port 80\nku vip 91.0.0.0/8\nku conf timeout 8")
    assert made._state_file is not None
    made._state_file.close()
    script.write_text("ku vip 92.0.0.0/8 node_port 30080 port 80\n")
    again = controller(tmp_path / "state", (script,))
    assert {str(vip.key.prefix) for vip in again.plane.store} == {"91.0.0.0/8", "92.0.0.0/8"}
    assert again.settings.timeout_s == 8
    [copy] = (tmp_path / "state").glob("state.json.refused-*")
    assert b"90.0.0.0/8" in copy.read_bytes()


def test_a_change_that_cannot_be_kept_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = controller(tmp_path)

    def full(_state: State) -> None:
        raise StateFileError("no space left on device; nothing was changed")

    monkeypatch.setattr(made._state_file, "prepare", full)
    with pytest.raises(StateFileError):
        made.run("ku vip 90.0.0.0/8")
    assert len(made.plane.store) == 0
    assert made.commands.state() == State()


def test_a_change_that_the_tables_refuse_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = controller(tmp_path)
    made.run("ku vip 90.0.0.0/8")
    kept = (tmp_path / "state.json").read_bytes()

    def full(*_: object) -> None:
        raise TableFullError("no room")

    monkeypatch.setattr(made.plane, "apply", full)
    with pytest.raises(TableFullError):
        made.run("ku vip 91.0.0.0/8\nku conf buckets 4096")
    assert (tmp_path / "state.json").read_bytes() == kept
    assert made.plane.totals().capacity == (4096,), "the flow table has its former size again"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.json"]


def test_every_field_of_a_vip_survives() -> None:
    """A new field must be written down too: all of them, with values that are not the default."""
    spec = VipSpec(
        prefix="90.0.0.0/8", protocol="tcp", port=80, target_port=81, node_port=30080, new_len=2048,
        reject=True, masquerade=True, reset=True, affinity=9.0, source_ranges=["10.0.0.0/8"], hash="source",
        sessions=5, pods=[{"address": "10.0.0.1", "port": 8080, "weight": 3}],  # type: ignore[list-item]
        outside_pods=[{"address": "10.0.0.2"}],  # type: ignore[list-item]
    )  # fmt: skip
    vip = vip_of(msgspec.convert(msgspec.to_builtins(spec), VipSpec))
    default = Vip(key=vip.key, type=vip.type)
    apart = {"key", "type", "owner", "encap", "dscp", "gue_port", "masquerade_from"}
    same = {name for name in Vip.__dataclass_fields__ if getattr(vip, name) == getattr(default, name)}
    assert same == apart, "a field that VipSpec does not know"
    assert vip_of(spec_of(vip)) == vip
    some = vip_of(VipSpec(prefix="90.0.0.0/8", masquerade_from=["node", "outside"]))
    assert some.masquerade_from == Origin.NODE | Origin.OUTSIDE
    assert vip_of(spec_of(some)) == some
    tunnel = vip_of(VipSpec(prefix="90.0.0.0/8", encap="gue", gue_port=7, pod_family=6))
    assert vip_of(spec_of(tunnel)) == tunnel
    marked = vip_of(VipSpec(prefix="90.0.0.0/8", encap="l3dsr", dscp=7))
    assert vip_of(spec_of(marked)) == marked
