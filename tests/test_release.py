"""Releases: two builds are equal byte by byte, the bill is the lock file, the audit finds what is wrong."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

from release.audit import files_changed, licence_of, problems, suits
from release.lock import REQUIREMENTS, LockError, read_lock
from release.sbom import bill

ROOT = Path(__file__).parents[1]
EPOCH = 1_700_000_000
PARTS = ("src", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "SECURITY.md")


def build(directory: Path, umask: int, mtime: int) -> dict[str, str]:
    """A copy of the sources with other times and modes, built; file → SHA-256."""
    for name in PARTS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, directory / name)
    for path in directory.rglob("*"):
        os.utime(path, (mtime, mtime))
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(EPOCH)}
    command = [sys.executable, "-m", "hatchling", "build"]
    subprocess.run(
        command, cwd=directory, env=environment, umask=umask, check=True, capture_output=True, timeout=120
    )
    return {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in (directory / "dist").iterdir()}


@pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="no hatchling")
def test_two_builds_are_equal(tmp_path: Path) -> None:
    """Wherever and whenever, by whomever."""
    one, other = tmp_path / "one", tmp_path / "another place"
    for directory in (one, other):
        directory.mkdir()
    first = build(one, 0o022, 1_600_000_000)
    assert sorted(Path(name).suffix for name in first) == [".gz", ".whl"]
    assert first == build(other, 0o077, 1_650_000_000)
    (wheel,) = (one / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "kuproxy/announce/wanted.py" in names
    assert not [name for name in names if name.endswith((".pyc", ".so"))], "nothing that a machine made"


def test_the_bill_is_the_lock_file() -> None:
    packages = read_lock(REQUIREMENTS / "runtime.txt")
    document = bill(packages, "1.2.3", EPOCH)
    assert document == bill(list(packages), "1.2.3", EPOCH)
    assert document["metadata"]["timestamp"] == "2023-11-14T22:13:20Z"
    names = {each["name"]: each for each in document["components"]}
    assert {"numba", "llvmlite", "numpy", "pyroute2"} <= names.keys()
    assert len(names) == len(packages)
    text = (REQUIREMENTS / "runtime.txt").read_text()
    for pinned in packages:
        component = names[pinned.name]
        assert component["purl"] == f"pkg:pypi/{pinned.name}@{pinned.version}"
        hashes = [each["value"] for each in component["properties"] if each["name"] == "kuproxy:sha256"]
        assert hashes and all(f"sha256:{each}" in text for each in hashes)
    references = {each["ref"]: each["dependsOn"] for each in document["dependencies"]}
    assert all(other in references for others in references.values() for other in others)
    own = references["pkg:pypi/kuproxy@1.2.3"]
    assert names["numba"]["purl"] in own and names["h11"]["purl"] not in own
    assert names["llvmlite"]["purl"] in references[names["numba"]["purl"]]
    assert document["serialNumber"] != bill(packages[1:], "1.2.3", EPOCH)["serialNumber"]


def test_the_command_prints_it(tmp_path: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "release.sbom", *words]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=30)

    assert json.loads(run().stdout)["bomFormat"] == "CycloneDX"
    wrong = tmp_path / "lock.txt"
    wrong.write_text("numpy>=2\n")
    done = run(str(wrong))
    assert done.returncode == 2
    assert done.stderr == "release.sbom: lock.txt:1: neither a pinned version nor a hash: 'numpy>=2'\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("numpy==2.0", "numpy has no hash"),
        ("numpy @ file:///tmp/numpy.whl", "neither a pinned version"),
        ("--index-url x", "neither a pinned version"),
        ("-e .", "neither a pinned version"),
    ],
)
def test_a_lock_file_holds_nothing_else(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "lock.txt"
    path.write_text(f"{line}\n")
    with pytest.raises(LockError, match=said):
        read_lock(path)


def test_the_audit_sees_changed_files_and_other_versions(tmp_path: Path) -> None:
    good = distribution("iniconfig")
    assert list(files_changed(good)) == []
    copied = tmp_path / "site"
    for file in good.files or ():
        target = copied / str(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(str(file.locate()), target)
    (changed,) = [each for each in type(good).discover(path=[str(copied)])]
    assert list(files_changed(changed)) == []
    with (copied / "iniconfig/__init__.py").open("a") as file:
        file.write("# one more line\n")
    (copied / "iniconfig/py.typed").unlink()
    assert sorted(files_changed(changed)) == [
        "iniconfig: iniconfig/__init__.py has been changed", "iniconfig: iniconfig/py.typed is missing",
    ]  # fmt: skip
    locked = {each.name: each for each in read_lock(REQUIREMENTS / "dev.txt")}
    assert list(problems(locked, {"iniconfig": good}, {})) == []
    assert len(list(problems({}, {"iniconfig": good}, {}))) == 1
    other = type(locked["iniconfig"])("iniconfig", "9", "", ("0" * 64,), ())
    [line] = problems(locked | {"iniconfig": other}, {"iniconfig": good}, {})
    assert "locked is 9" in line


def test_licences() -> None:
    for good in ("MIT", "BSD-3-Clause AND 0BSD AND MIT AND Zlib AND CC0-1.0", "GPL-2.0-or-later OR Apache-2.0"):
        assert suits(good)
    for bad in ("GPL-3.0-only", "MIT AND GPL-2.0-only", "none", "Proprietary"):
        assert not suits(bad)
    assert licence_of(distribution("numpy")).startswith("BSD-3-Clause")


def test_every_package_of_the_runtime_has_a_suitable_licence() -> None:
    for each in read_lock(REQUIREMENTS / "runtime.txt"):
        if not each.marker:
            assert suits(licence_of(distribution(each.name))), each.name
