"""A forwarding loop compiled outside the driver, as an engine's is: receive, mark, transmit, sleep."""

from __future__ import annotations

import numpy as np
from numba import njit

from kuproxy.codes import Outcome, PacketFlag
from kuproxy.drivers.af_packet import now_ns, receive, transmit, wait

# Words of `seen`
SEEN, LARGEST, GSO, PARTIAL = 0, 1, 2, 3

_TRANSMIT = int(Outcome.TRANSMIT)
_GSO, _PARTIAL = int(PacketFlag.GSO), int(PacketFlag.PARTIAL_CHECKSUM)


@njit(nogil=True)
def forward_until(ring, frame, stop, seen):
    """Send back everything that comes. seen[SEEN] is the time of the last round, in ns."""
    while stop[0] == 0:
        seen[SEEN] = now_ns()
        n = receive(ring, frame)
        if n == 0:
            if wait(ring, 20) < 0:
                return -1
            continue
        for i in range(n):
            p = frame.packets[i]
            p["outcome"] = _TRANSMIT
            seen[LARGEST] = max(seen[LARGEST], np.int64(p["length"]))
            if np.int64(p["flags"]) & _GSO:
                seen[GSO] += 1
            if np.int64(p["flags"]) & _PARTIAL:
                seen[PARTIAL] += 1
        transmit(ring, frame)
    return 0
