"""A bill of materials in CycloneDX 1.6 (ECMA-424), made from the lock file: `python -m release.sbom`.

The same lock file and the same SOURCE_DATE_EPOCH give the same bytes.  It lists what a complete installation on any
supported platform may consist of; hashes are those of the files that pip accepts.
"""

from __future__ import annotations

import json
import os
import re
import sys
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from release.lock import REQUIREMENTS, LockError, Pinned, read_lock

__all__ = ["bill", "main"]

_NAMESPACE = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")  # RFC 9562 appendix: names that are URLs
_INIT = Path(__file__).parents[1] / "src/kuproxy/__init__.py"


def _version() -> str:
    match = re.search(r'^__version__ = "([^"]+)"', _INIT.read_text(encoding="utf-8"), re.MULTILINE)
    assert match is not None
    return match[1]


def _reference(name: str, version: str) -> str:
    """A package URL (ECMA-427), which serves as the reference inside the document too."""
    return f"pkg:pypi/{name}@{version.replace('+', '%2B')}"


def _component(pinned: Pinned) -> dict[str, Any]:
    reference = _reference(pinned.name, pinned.version)
    properties = [{"name": "kuproxy:sha256", "value": each} for each in sorted(pinned.hashes)]
    if pinned.marker:
        properties.insert(0, {"name": "kuproxy:marker", "value": pinned.marker})
    return {
        "type": "library",
        "bom-ref": reference,
        "name": pinned.name,
        "version": pinned.version,
        "purl": reference,
        "scope": "optional" if pinned.marker else "required",
        "properties": properties,
    }


def bill(packages: Sequence[Pinned], version: str, epoch: int) -> dict[str, Any]:
    """The document.  `epoch`: seconds since 1970, the time that it bears."""
    own = _reference("kuproxy", version)
    references = {each.name: _reference(each.name, each.version) for each in packages} | {"kuproxy": own}
    needs: dict[str, set[str]] = {reference: set() for reference in references.values()}
    for each in packages:
        for name in each.needed_by:
            if name in references:
                needs[references[name]].add(references[each.name])
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {
                "type": "application",
                "bom-ref": own,
                "name": "kuproxy",
                "version": version,
                "purl": own,
                "licenses": [{"license": {"id": "Apache-2.0"}}],
            },
        },
        "components": [_component(each) for each in sorted(packages, key=lambda each: each.name)],
        "dependencies": [
            {"ref": reference, "dependsOn": sorted(others)} for reference, others in sorted(needs.items())
        ],
    }
    serial = uuid.uuid5(_NAMESPACE, json.dumps(document, sort_keys=True))
    return {**document, "serialNumber": f"urn:uuid:{serial}"}


def main(words: Sequence[str]) -> int:
    """Print it for a lock file, by default that of the runtime.  Returns the exit status."""
    path = Path(words[0]) if words else REQUIREMENTS / "runtime.txt"
    try:
        epoch = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
        document = bill(read_lock(path), _version(), epoch)
    except (OSError, LockError, ValueError) as error:
        print(f"release.sbom: {error}", file=sys.stderr)
        return 2
    json.dump(document, sys.stdout, indent=1, sort_keys=True)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
