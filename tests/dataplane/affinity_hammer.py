"""A process that reads and writes an affinity table as fast as it can: started by test_affinity.py, several at once.

    python -m dataplane.affinity_hammer NUMBER ROUNDS TABLES_FD SHARED_FD

Client n of the sixteen, which all belong into one set of four, always has pod n + 1. Prints how often a pod was found,
and how often it was not the client's.
"""

from __future__ import annotations

import sys

import numpy as np

from kuproxy.codes import PodFlag
from kuproxy.dataplane import affinity
from kuproxy.dataplane._jit import kernel
from kuproxy.dataplane.layout import Tables
from kuproxy.engine.memory import SharedMemory, TablesMemory, WorkerMemory

CLIENTS = 16
VIP = 1
NOW = 1000


@kernel
def clients_of_one_set(found):
    """Fill `found` (uint64) with second words of addresses whose entries share a set."""
    wanted = affinity._set_of(VIP, np.uint64(0), np.uint64(1))
    count = 0
    lo = 0
    while count < len(found):
        lo += 1
        if affinity._set_of(VIP, np.uint64(0), np.uint64(lo)) == wanted:
            found[count] = lo
            count += 1


@kernel
def hammer(tables, state, clients, seed, rounds, result):
    """result (int64[2]) = pods found, wrong ones among them."""
    for _ in range(rounds):
        seed = (seed * 1103515245 + 12345) & 0x7FFFFFFF
        client = (seed >> 8) % CLIENTS
        lo = clients[client]
        if (seed >> 20) & 3 == 0:
            affinity.remember(tables, state, VIP, np.uint64(0), lo, client + 1, NOW)
            continue
        pod = affinity.pod_of(tables, state, VIP, np.uint64(0), lo, NOW)
        result[0] += pod != 0
        result[1] += pod != 0 and pod != client + 1


def prepare(tables: Tables) -> None:
    """The VIP and the pods."""
    tables.vips[VIP]["generation"] = 7
    tables.vips[VIP]["affinity"] = 600
    tables.pods[1 : CLIENTS + 1]["flags"] = int(PodFlag.USED)
    tables.pods[1 : CLIENTS + 1]["generation"] = np.arange(CLIENTS) + 100


def main() -> None:
    number, rounds, tables_fd, shared_fd = map(int, sys.argv[1:])
    tables = TablesMemory(tables_fd).tables
    state = WorkerMemory(0, shared=SharedMemory(shared_fd), number=number).state
    clients = np.zeros(CLIENTS, np.uint64)
    clients_of_one_set(clients)
    result = np.zeros(2, np.int64)
    hammer(tables, state, clients, number + 1, 0, result)
    print("ready", flush=True)
    sys.stdin.readline()
    hammer(tables, state, clients, number + 1, rounds, result)
    print(*result)


if __name__ == "__main__":
    main()
