"""A control process for the keeper's tests: counts its predecessors in memory that outlives them.

`python control.py DIRECTORY`: says in DIRECTORY/said, one word a line, what it finds, and obeys DIRECTORY/order.
"""

import os
import signal
import sys
import time
from pathlib import Path

from kuproxy.keeper.vault import Vault
from kuproxy.keeper.wire import REPLACE

directory = Path(sys.argv[1])


def say(text: str) -> None:
    with (directory / "said").open("a") as file:
        file.write(f"{os.getpid()} {text}\n")


def order() -> str:
    try:
        return (directory / "order").read_text()
    except FileNotFoundError:
        return ""




def stop(*_: object) -> None:
    say("stop")
    if order() == "linger":  # for ever, having asked for a second
        vault.notify("EXTEND_TIMEOUT_USEC=1000000")
        time.sleep(60)
    sys.exit(0)


signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGHUP, lambda *_: say("reload"))
signal.signal(signal.SIGUSR2, lambda *_: (say("leave"), os._exit(REPLACE)))
if order() == "fail":
    sys.exit(2)
vault = Vault.of_environment()
if "count" in vault.names():
    fd = vault.take("count")
else:
    fd = os.memfd_create("count")
    vault.keep({"count": fd})
    # More than fit into one message, and some that are dropped again.
    vault.keep({f"many/{n}": fd for n in range(450)})
    vault.drop(*(f"many/{n}" for n in range(0, 450, 2)))
number = len(os.pread(fd, 100, 0))
os.pwrite(fd, b"!", number)
say(f"start {number} {len(vault.names('many/'))}")
vault.notify("READY=1")
if order() == "orphan" and os.fork() == 0:
    orphan = os.fork()
    if orphan:
        say(f"orphan {orphan}")
        os._exit(0)
    time.sleep(60)
    os._exit(0)
while True:
    time.sleep(0.05)
    vault.notify("WATCHDOG=1")
