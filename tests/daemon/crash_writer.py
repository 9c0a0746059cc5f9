"""Writes states 1, 2, 3 ... until it is killed; tells each on stdout after its commit.  `crash_writer.py DIRECTORY`."""

import sys
from pathlib import Path

from kuproxy.daemon.persist import StateFile
from kuproxy.daemon.schema import Conf, PodSpec, State, VipSpec

if __name__ == "__main__":
    file = StateFile(Path(sys.argv[1]))
    loaded = file.load()
    assert not loaded.warnings, loaded.warnings
    number = 0 if not loaded.state.vips else loaded.state.vips[0].sessions
    while True:
        number += 1
        vips = [
            VipSpec(prefix=f"10.{each}.0.0/16", sessions=number, pods=[PodSpec(address="10.0.0.1")])
            for each in range(1 + number % 200)
        ]
        file.prepare(State(conf=Conf(timeout=float(number)), vips=vips))
        print(f"+{number}", flush=True)
        file.commit()
        print(number, flush=True)
