"""The recipe of the container image: what can be checked without an engine, and its steps carried out without one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from kuproxy.confine.privilege import AT_START
from netns.test_daemon import Daemon
from netns.test_privileges import assert_little_is_held, use
from netns.world import world

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "packaging/Containerfile"
WORDS = {
    "FROM",
    "RUN",
    "WORKDIR",
    "COPY",
    "ARG",
    "ENV",
    "VOLUME",
    "USER",
    "STOPSIGNAL",
    "HEALTHCHECK",
    "ENTRYPOINT",
    "CMD",
}
PYTHON = "/usr/bin/python3"  # of Debian, as in the image


class Instruction(NamedTuple):
    word: str
    rest: str


def stages() -> list[list[Instruction]]:
    """The instructions of each stage; continued lines are joined."""
    found: list[list[Instruction]] = []
    text = re.sub(r"^#.*\n", "", RECIPE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    for line in filter(str.strip, text.splitlines()):
        word, _, rest = line.partition(" ")
        assert word in WORDS, line
        if word == "FROM":
            found.append([])
        found[-1].append(Instruction(word, rest.strip()))
    return found


def environment(stage: list[Instruction]) -> dict[str, str]:
    """ENV, with the defaults of ARG filled in."""
    arguments = dict(each.rest.split("=", 1) for each in stage if each.word == "ARG")
    found = {}
    for each in stage:
        if each.word == "ENV":
            for assignment in each.rest.split():
                name, _, value = assignment.partition("=")
                found[name] = re.sub(r"\$(\w+)", lambda match: arguments[match[1]], value)
    return found


def test_the_recipe_is_well_formed() -> None:
    build, image = stages()
    assert build[0].rest.split()[1:] == ["AS", "build"]
    assert build[0].rest.split()[0] == image[0].rest, "two Pythons would not share a cache"
    assert "/" not in image[0].rest, "no host of a registry"
    for each in build:
        if each.word == "COPY":
            *sources, _ = each.rest.split()
            assert all((ROOT / source).exists() for source in sources), each
        if each.word == "RUN" and "pip install" in each.rest:
            assert "--require-hashes" in each.rest or "--no-index" in each.rest, each
    assert Instruction("COPY", "--from=build /opt/kuproxy /opt/kuproxy") in image
    for each in image:
        if each.word in ("ENTRYPOINT", "CMD", "VOLUME"):
            assert isinstance(json.loads(each.rest), list), (
                "as a list: no shell between the engine's signals and us"
            )


def test_the_image_looks_for_what_the_build_has_made() -> None:
    """Machine code is kept by the processor's name and features: both stages must say the same."""
    built, used = map(environment, stages())
    for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "KUPROXY_CACHE"):
        assert built[name] == used[name]
    assert built["NUMBA_CPU_FEATURES"] == "", "else the building machine's would be added"
    module, _, name = used["NUMBA_CACHE_LOCATOR_CLASSES"].rpartition(".")
    assert f"class {name}(" in (ROOT / "src" / module.replace(".", "/")).with_suffix(".py").read_text()
    granted = set(re.findall(r"--cap-add (\w+)", RECIPE.read_text()))
    assert granted == {each.name for each in AT_START}


def build(directory: Path) -> dict[str, str]:
    """Carry out the first stage, with its paths below a directory; returns the second one's environment."""
    stage = stages()[0]

    def moved(text: str) -> str:
        return text.replace("/opt/kuproxy", f"{directory}/opt/kuproxy").replace(
            "/build", f"{directory}/build"
        )

    (directory / "build").mkdir(parents=True)
    (directory / "opt").mkdir()
    kept = {name: moved(value) for name, value in environment(stage).items()}
    outer = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "NUMBA", "VIRTUAL"))
    }
    for word, rest in stage:
        if word == "COPY":
            *sources, target = rest.split()
            for source in sources:
                goal = directory / "build" / target
                goal = goal / source if target.endswith("/") else goal
                (shutil.copytree if (ROOT / source).is_dir() else shutil.copy2)(ROOT / source, goal)
        elif word == "RUN" and "apt-get" not in rest:
            command = moved(rest).replace("python3 -m venv", f"{PYTHON} -m venv")
            done = subprocess.run(
                command, shell=True, cwd=directory / "build", env=outer | kept, timeout=900, capture_output=True,
                text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"{command}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return {name: moved(value) for name, value in environment(stages()[1]).items()}


def wide_registers(cache: Path) -> int:
    """How many kept objects name a vector register that SSE does not have; objdump tells."""
    found = 0
    for file in cache.rglob("*.nbc"):
        data = file.read_bytes()
        begin = data.find(b"\x7fELF")
        if begin < 0:
            continue
        objects = file.with_suffix(".o")
        objects.write_bytes(data[begin:])
        text = subprocess.run(["objdump", "-d", objects], capture_output=True, text=True, check=True).stdout
        objects.unlink()
        found += bool(re.search(r"%[yz]mm", text))
    return found


@pytest.mark.netns
@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.skipif(
    not Path(PYTHON).exists()
    or subprocess.run([PYTHON, "-c", "import ensurepip"], check=False).returncode != 0,
    reason="no Debian Python with venv",
)
@pytest.mark.skipif(shutil.which("objdump") is None, reason="no objdump (Debian: binutils)")
def test_the_image_without_an_engine(tmp_path: Path) -> None:
    """Built by the recipe's own steps, it forwards on a read-only file system with five capabilities."""
    found = build(tmp_path)
    assert not wide_registers(Path(found["KUPROXY_CACHE"])), "code for this machine, not for every one"
    with world() as made:
        daemon = Daemon(made)
        kept = " ".join(each.name.lower() for each in AT_START)
        bounding = ",".join(["-all", *(f"+{name}" for name in kept.split())])
        # Made by others for others: neither owner nor override helps to write there.
        script = f"""
            mount --bind {tmp_path} {tmp_path} && mount -o remount,ro,bind {tmp_path} && ! touch {tmp_path}/x 2>&- &&
            exec setpriv --bounding-set {bounding} {tmp_path}/opt/kuproxy/bin/python -m kuproxy.daemon.service "$@"
        """
        variables = [f"{name}={value}" for name, value in found.items()]
        clean = ["-u", "PYTHONPATH", *variables]
        daemon.command = ("env", *clean, "unshare", "--mount", "sh", "-c", script, "sh")
        try:
            daemon.start()
            assert_little_is_held(daemon.process.pid)
            use(daemon)
            daemon.stop()
        finally:
            daemon.notified.close()
