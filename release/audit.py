"""What can be said about the dependencies without a network: `python -m release.audit`, in the environment of `make`.

- Every package of the lock files has one version and hashes, and nothing tells where it comes from.
- What is installed is what is locked, nothing else, and each file is the one that its package brought (RECORD).
- Licences of what the runtime consists of are among those that suit Apache-2.0.

Whether a version has a known vulnerability only a database can tell: `make audit` asks one after this.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import re
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import Distribution, distributions
from pathlib import Path

from release.lock import REQUIREMENTS, LockError, Pinned, normal, read_lock

__all__ = ["files_changed", "licence_of", "main", "problems"]

# Of the environment itself, or of the project.
_NOT_LOCKED = {"kuproxy", "pip", "setuptools", "wheel"}
# SPDX identifiers, and what packages without one write in their place.
_SUITABLE = re.compile(
    r"^(MIT|MIT License|The MIT License.*|BSD|BSD License|[023]-?BSD|0BSD|BSD[- ][23]-Clause( License)?|Apache[- ]2\.0"
    r"( WITH LLVM-exception)?|Apache Software License|PSF-2\.0|Zlib|CC0-1\.0|ISC"
    r"|Mozilla Public License 2\.0 \(MPL 2\.0\)|MPL-2\.0)$"
)


def licence_of(distribution: Distribution) -> str:
    """An SPDX expression if there is one, else what stands there instead."""
    metadata = distribution.metadata
    if expression := metadata.get("License-Expression"):
        return str(expression)
    classified = [
        each.rpartition(" :: ")[2]
        for each in metadata.get_all("Classifier") or ()
        if each.startswith("License :: OSI")
    ]
    if classified:
        return " OR ".join(classified)
    return (metadata.get("License") or "none").splitlines()[0]


def suits(licence: str) -> bool:
    """All parts of an AND must suit, and one of an OR."""
    return any(
        all(_SUITABLE.match(part.strip("() ")) for part in option.split(" AND ")) for option in licence.split(" OR ")
    )


def files_changed(distribution: Distribution) -> Iterator[str]:
    """Files of a package that are not those that it brought (PEP 376: RECORD has the SHA-256 of each)."""
    # Not `distribution.files`, which in some versions leaves out what is missing.
    for file, recorded, *_ in csv.reader((distribution.read_text("RECORD") or "").splitlines()):
        mode, _, wanted = recorded.partition("=")
        if not wanted or file.endswith(".pyc"):
            continue
        path = Path(str(distribution.locate_file(file)))
        if not path.exists():
            yield f"{distribution.name}: {file} is missing"
            continue
        digest = base64.urlsafe_b64encode(hashlib.new(mode, path.read_bytes()).digest()).rstrip(b"=")
        if digest.decode() != wanted:
            yield f"{distribution.name}: {file} has been changed"


def problems(
    locked: Mapping[str, Pinned], installed: Mapping[str, Distribution], runtime: Mapping[str, Pinned]
) -> Iterator[str]:
    """A line for each."""
    for name, distribution in sorted(installed.items()):
        if name in _NOT_LOCKED:
            continue
        pinned = locked.get(name)
        if pinned is None:
            yield f"{name} {distribution.version} is installed, and no lock file names it"
        elif pinned.version != distribution.version:
            yield f"{name} {distribution.version} is installed, locked is {pinned.version}"
        yield from files_changed(distribution)
    for name in sorted(runtime):
        if name in installed and not suits(licence_of(installed[name])):
            yield f"{name}: its licence, {licence_of(installed[name])!r}, is none that is known to suit"
    for name, pinned in sorted(runtime.items()):
        if name not in locked or locked[name].version != pinned.version:
            yield f"{name} {pinned.version} of runtime.txt is another one in dev.txt"


def main() -> int:
    """Print what is wrong.  Returns the exit status."""
    try:
        runtime, dev = (
            {each.name: each for each in read_lock(REQUIREMENTS / name)} for name in ("runtime.txt", "dev.txt")
        )
    except (OSError, LockError) as error:
        print(f"release.audit: {error}", file=sys.stderr)
        return 1
    installed = {normal(each.name): each for each in distributions()}
    found = list(problems(dev, installed, runtime))
    for line in found:
        print(line, file=sys.stderr)
    checked = len(installed.keys() - _NOT_LOCKED)
    print(f"{len(dev)} packages locked, {checked} installed and compared file by file, {len(found)} problems")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
