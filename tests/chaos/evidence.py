"""What a world of the real tier looks like at the moment of a failure, as text: a rig is gone a moment later."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING

from kuproxy.client import Refusal

if TYPE_CHECKING:
    from chaos.rig import Rig
    from kuproxy.demo.topology import Host

_KERNEL = (
    "ss -tnaoi ( not sport = :9000 and not dport = :9000 )",
    "ip neigh",
    "ip -s -o link",
    "nstat -as",
)
_NODE = ("show ku", "show ku vips verbose", "show node counters", "show flows")
_WITHIN_S = 5


def evidence(rig: Rig) -> str:
    """Sockets, neighbours, links and counters of the client, the node and the pods; tables and counters of kuproxy."""
    parts = []
    for host in (rig.cluster.client, rig.node.host, *(pod.host for pod in rig.cluster.pods)):
        parts += [f"--- {host.name}: {command}\n{_said(host, command)}" for command in _KERNEL]
    for line in _NODE:
        with suppress(Refusal):
            parts.append(f"--- ku {line}\n{rig.client.run(line)['output']}")
    for role in ("worker", "control"):
        for process_id in rig.processes(role):
            parts.append(f"--- {role} {process_id}: {_state(process_id)}")
    return "\n".join(parts)


def _said(host: Host, command: str) -> str:
    words = host.command(*command.split())
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=_WITHIN_S)
    return done.stdout + done.stderr


def _state(process_id: int) -> str:
    with suppress(OSError), open(f"/proc/{process_id}/status") as file:
        return next(line for line in file if line.startswith("State:")).strip()
    return "gone"
