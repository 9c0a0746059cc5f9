"""The cache of compiled kernels is named by all that they are made from, and by nothing else."""

import json
import subprocess
import sys
from pathlib import Path

import kuproxy
from kuproxy.dataplane._jit import kernel_sources

PACKAGE = Path(kuproxy.__file__).parent
LOADED = """
import json, sys
import kuproxy.engine.loop
print(json.dumps([m.__file__ for n, m in sys.modules.items() if n.startswith("kuproxy.")]))
"""


def test_whatever_the_loop_loads_is_a_source_of_its_kernels() -> None:
    out = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True).stdout
    loaded = {Path(name) for name in json.loads(out)}
    missing = {each for each in loaded - set(kernel_sources()) if each.name != "__init__.py"}
    assert PACKAGE / "dataplane/graph.py" in loaded
    assert not missing


def test_processes_around_the_kernels_are_none() -> None:
    """Or every change of theirs would compile everything anew."""
    names = {str(each.relative_to(PACKAGE)) for each in kernel_sources()}
    assert not names & {"engine/live_worker.py", "engine/worker.py", "engine/memory.py", "dataplane/writer.py"}
    assert {"codes.py", "engine/loop.py", "dataplane/hash.py", "wire/l4.py", "drivers/af_packet.py"} <= names
