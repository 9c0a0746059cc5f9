"""What `ku top` shows, fetched from the daemon and made into rows of text: no terminal here, and no state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from kuproxy.client import Client
from kuproxy.pictures.svg import short

__all__ = [
    "MOST_ROWS", "NUMBERS", "POD_COLUMNS", "SORTS", "TABLES", "Row", "Source", "VipKey",
    "drop_rows", "headline", "worker_rows",
]  # fmt: skip

MOST_ROWS = 200  # a terminal shows some dozens; who wants another service finds it by name
SORTS = ("packets", "bits", "new_flows", "flows", "pods", "name")

SERVICE_COLUMNS = ("Service", "Packets/s", "Bit/s", "New flows/s", "Flows", "Pods", "Owner")
POD_COLUMNS = ("Pod", "Packets/s", "Bit/s", "New flows/s", "Flows", "Slots", "Weight", "")
FLOW_COLUMNS = ("Proto", "Client", "Destination", "Pod", "State", "Age", "Expires")
DROP_COLUMNS = ("Per second", "Packets", "Node", "Reason")
WORKER_COLUMNS = ("Worker", "Packets/s", "Packets/vector", "Idle", "Flows", "Capacity", "Lost before it")
_WORDS = (
    "Service",
    "Owner",
    "Pod",
    "Proto",
    "Client",
    "Destination",
    "State",
    "Node",
    "Reason",
    "Worker",
    "",
)
TABLES = {
    "services": SERVICE_COLUMNS,
    "flows": FLOW_COLUMNS,
    "drops": DROP_COLUMNS,
    "workers": WORKER_COLUMNS,
}

NUMBERS = frozenset(
    name for columns in (*TABLES.values(), POD_COLUMNS) for name in columns if name not in _WORDS
)


@dataclass(frozen=True, slots=True)
class VipKey:
    """What names a VIP in a request."""

    prefix: str
    protocol: str
    port: int

    def query(self) -> str:
        return urlencode({"prefix": self.prefix, "protocol": self.protocol, "port": self.port})


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table; `key` stays the same while its numbers change."""

    key: str
    cells: tuple[str, ...]
    vip: VipKey | None = None


def _short(number: float | None) -> str:
    return "–" if number is None else short(number)


def _rates(rates: dict[str, float] | None) -> tuple[str, str, str]:
    if rates is None:
        return "–", "–", "–"
    return (
        short(rates["to_pod_packets"] + rates["from_pod_packets"]),
        short(rates["to_pod_bits"] + rates["from_pod_bits"]),
        short(rates["new_flows"]),
    )


def _endpoint(address: str, port: int) -> str:
    if not port:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _time(seconds: float) -> str:
    return f"{seconds:.1f}s" if seconds < 60 else f"{seconds // 60:.0f}m{seconds % 60:02.0f}s"


class Source:
    """The daemon.  Every method raises client.Refusal."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def overview(self) -> dict[str, Any]:
        answer: dict[str, Any] = self._client.request("GET", "/v1/overview")
        return answer

    def services(self, find: str, by: str) -> tuple[list[Row], int]:
        """The first rows, and how many there are."""
        query = urlencode({"find": find[:64], "by": by, "limit": MOST_ROWS})
        page = self._client.request("GET", f"/v1/rates?{query}")
        rows = []
        for vip in page["vips"]:
            pods = f"{vip['pods']}+{vip['draining']}" if vip["draining"] else str(vip["pods"])
            owner = "" if vip["owner"] == "ku" else vip["owner"]
            cells = (vip["vip"], *_rates(vip["rates"]), short(vip["flows"]), pods, owner)
            rows.append(Row(str(vip["index"]), cells, VipKey(vip["prefix"], vip["protocol"], vip["port"])))
        return rows, page["total"]

    def pods(self, vip: VipKey) -> tuple[str, list[Row]]:
        """The VIP as the daemon writes it, and a row for each pod."""
        answer = self._client.request("GET", f"/v1/rates/pods?{vip.query()}")
        rows = []
        for pod in answer["pods"]:
            name = _endpoint(pod["address"], pod["port"])
            state = "draining" if pod["draining"] else ""
            counts = (short(pod["flows"]), str(pod["slots"]), str(pod["weight"]), state)
            rows.append(Row(f"{name} {state}", (name, *_rates(pod["rates"]), *counts)))
        return answer["vip"], rows

    def flows(self, wanted: str) -> tuple[list[Row], bool]:
        """The first flows that fit the words of `show flows`, and whether there are more."""
        [shown] = self._client.run(f"show kube-proxy flows limit {MOST_ROWS} {wanted}")["shows"]
        rows = [
            Row(
                f"{flow['worker']}:{flow['slot']}",
                (
                    flow["protocol"],
                    _endpoint(flow["client"], flow["client_port"]),
                    _endpoint(flow["destination"], flow["destination_port"]),
                    _endpoint(flow["pod"], flow["pod_port"]),
                    flow["state"],
                    _time(flow["age_s"]),
                    _time(flow["expires_in_s"]),
                ),
            )
            for flow in shown["flows"]
        ]
        return rows, shown["next"] is not None


def headline(overview: dict[str, Any]) -> str:
    """One line about everything."""
    outcomes = overview["outcomes_per_s"] or {}
    parts = [
        f"received {_short(overview['received_per_s'])}/s",
        f"forwarded {_short(outcomes.get('transmit'))}/s",
        f"passed {_short(outcomes.get('pass'))}/s",
        f"dropped {_short(outcomes.get('drop'))}/s",
        f"new flows {_short(overview['new_flows_per_s'])}/s",
        f"flows {short(overview['flows'])}",
        f"VIPs {overview['vips']}",
    ]
    if overview["adopted"] < overview["generation"]:
        parts.append("a change is not adopted yet")
    return "   ".join(parts)


def drop_rows(overview: dict[str, Any]) -> list[Row]:
    return [
        Row(
            f"{drop['node']} {drop['reason']}",
            (_short(drop["per_s"]), str(drop["count"]), drop["node"], drop["text"]),
        )
        for drop in overview["drops"]
    ]


def worker_rows(overview: dict[str, Any]) -> list[Row]:
    rows = []
    for worker in overview["workers"]:
        idle = worker["idle_share"]
        size = worker["vector_size"]
        cells = (
            str(worker["index"]),
            _short(worker["received_per_s"]),
            "–" if size is None else f"{size:.1f}",
            "–" if idle is None else f"{100 * idle:.0f} %",
            short(worker["flows"]),
            short(worker["capacity"]),
            short(worker["ring_drops"]),
        )
        rows.append(Row(cells[0], cells))
    return rows
