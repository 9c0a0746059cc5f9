"""Compile every kernel into the cache: `python -m kuproxy.warm`. Quick when they are there already.

The first start of a build takes Numba one to two minutes; `make` does it once here instead of in the first test or
the first live worker.
"""

import sys
import time

from kuproxy.codes import Protocol, VipType
from kuproxy.dataplane._jit import COMPILED, cache_directory
from kuproxy.drivers.memory import MemoryDriver
from kuproxy.engine.local import LocalEngine
from kuproxy.engine.way import load_loops
from kuproxy.model.config import Config
from kuproxy.model.vip import Pod, Vip, VipKey, parse_address, parse_prefix
from kuproxy.plane import Plane


def warm() -> None:
    """Call each entry point once, with as little work as possible."""
    engine = LocalEngine(0)
    plane = Plane(engine, decrement_ttl=True, any_node_address=True)
    key = VipKey(parse_prefix("192.0.2.1/32"), Protocol.ANY, 0)
    plane.apply(
        Config(vips=(Vip(key, VipType.IP4_NAT44, new_len=1, pods=(Pod(parse_address("192.0.2.2")),)),))
    )
    driver = MemoryDriver([bytes(60)])
    driver.receive(driver.frame)
    engine.process(driver.frame, 1)
    driver.transmit(driver.frame)
    engine.maintain(1)
    engine.resize(1, 1)
    engine.flush()
    plane.apply(Config())
    if COMPILED:
        load_loops(engine, driver.frame)


def main() -> int:
    """Entry point."""
    done = cache_directory() / "complete"
    cold = not done.exists()
    if cold:
        print(
            "compiling the kernels, once for this build (one to two minutes) ...",
            file=sys.stderr,
            flush=True,
        )
    started = time.monotonic()
    warm()
    if cold:
        done.parent.mkdir(parents=True, exist_ok=True)
        done.touch()
        print(f"compiled in {time.monotonic() - started:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
