"""A cluster to measure: a fake API server in one process, the control side of a node in another.

The API server is the tests' own (tests/kube_api), except that it keeps its lists encoded: what is measured begins with
the first byte of a list.  All times are of the one monotonic clock that processes share.
"""

import asyncio
import ctypes
import functools
import json
import os
import resource
import sys
import time
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

NODE = "node-1"
_TESTS = Path(__file__).resolve().parent.parent / "tests"


def serve(pipe: Connection, services: int) -> None:
    """The API server.  Sends its kubeconfig; then for each number that comes changes an endpoint, and says when."""
    sys.path.insert(0, str(_TESTS))
    import msgspec
    from starlette.responses import Response

    from bench.suites.policy import service_document, slice_document
    from kube_api.selectors import selector
    from kube_api.server import FakeApi

    class Server(FakeApi):
        async def _collection(self, request: Any, kind: Any, namespace: str) -> Any:
            if request.query_params.get("watch") == "true":
                return await super()._collection(request, kind, namespace)
            return Response(lists[kind.plural], media_type="application/json")

    api = Server()
    status = {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}
    node = api.store.create("nodes", {"metadata": {"name": NODE}, "spec": {}})
    api.store.update("nodes", {**node, "status": status}, "status")
    api.store.create(
        "servicecidrs", {"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.64.0.0/10"]}}
    )
    for number in range(services):
        api.store.create("services", service_document(number))
        api.store.create("endpointslices", slice_document(number))
    every = selector("", "")
    plurals = ("services", "endpointslices", "nodes", "servicecidrs")
    lists = {plural: msgspec.json.encode(api.store.list(plural, every)) for plural in plurals}
    turn = [0] * services

    def change(number: int) -> float:
        """Let another pod stand for the last one of this slice."""
        document = slice_document(number)
        turn[number] += 1
        endpoints: Any = document["endpoints"]
        endpoints[-1]["addresses"] = [f"10.{120 + turn[number] % 8}.{number // 250}.{number % 250 + 1}"]
        now = time.monotonic()
        api.store.update("endpointslices", document)
        return now

    with api:
        pipe.send(api.kubeconfig())
        with suppress(EOFError):
            while True:
                number = pipe.recv()
                pipe.send(api.do(functools.partial(change, number)))


def control(pipe: Connection, kubeconfig: str) -> None:
    """The control process of a node.  Sends what each update of its tables was like, when it was done."""
    import structlog
    from lightkube.config.kubeconfig import KubeConfig

    from kuproxy.daemon.control import Controller
    from kuproxy.daemon.kubernetes import KubernetesSource, NodeOptions
    from kuproxy.daemon.thread import ControlThread
    from kuproxy.kube.reflector import Reflector

    node = _Node()
    log = structlog.wrap_logger(structlog.PrintLogger(open(os.devnull, "w")))  # noqa: SIM115
    made = Controller(node, (), log)
    first_byte: list[tuple[float, float]] = []
    head = Reflector.head

    def noting(self: Any, serial: int, now: float, status: int, retry_after: str = "") -> None:
        first_byte.append((time.monotonic(), time.process_time()))
        head(self, serial, now, status, retry_after)

    Reflector.head = noting  # type: ignore[method-assign]
    access = KubeConfig.from_dict(json.loads(kubeconfig)).get()
    thread = ControlThread()
    source = KubernetesSource(made, thread, lambda: access, NodeOptions(NODE), log, random=Random(1))

    def tell(sync: Any) -> None:
        adopted = made.plane.engine.acknowledged() >= sync.generation
        pipe.send(
            {
                "done": time.monotonic(),
                "adopted": adopted,
                "slices": sync.slice_changes,
                "took": sync.duration_s,
                "first_byte": first_byte[0][0],
                "processor": time.process_time() - first_byte[0][1],
                "arrived": time.monotonic() - (time.time() - source.counts.last_queued),
                "vips": len(made.plane.store),
                "error": sync.error,
                **_memory(),
            }
        )

    source.listeners.sync.append(tell)

    async def main() -> None:
        await thread(made.start, made.read_files())
        await source.run()

    asyncio.run(main())


def _memory() -> dict[str, int]:
    """Of this process, in bytes: resident now and at most, and how much of that is shared with workers."""
    status = Path("/proc/self/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return {
        "resident": int(fields["VmRSS"].split()[0]) << 10,
        "shared": int(fields["RssShmem"].split()[0]) << 10,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
    }


class _Node:
    """A forwarder whose engine is in this process; with privilege its steering is real, in a network namespace."""

    def __init__(self) -> None:
        from kuproxy.daemon.targets import TargetBook
        from kuproxy.engine.local import LocalEngine
        from kuproxy.steering.targets import Targets

        self.engine = LocalEngine()
        self._book, self._general, self._steering = TargetBook(), Targets(), None

    def start(self, plane: Any) -> None:
        if os.geteuid() == 0:
            from kuproxy.steering.steering import Steering

            _enter_namespace()
            self._steering = Steering()
            self._steering.start()

    def steer(self, plane: Any, marks: Any) -> None:
        before, now, tunnels, done = self._book.change(plane.compiler, plane.settings)
        if self._steering is not None:
            self._steering.change(before, now, replace(self._general, tunnels=tunnels))
        done()

    def serve_node_ports(self, plane: Any, networks: Any) -> None:
        self._general = replace(self._general, node_networks=networks)

    def resize(self, log2_buckets: int) -> None: ...

    def flush(self) -> int:
        return 0

    def trace(self, packets: int) -> None: ...

    def check(self) -> None: ...

    def take_over(self) -> list[str]:
        return []

    def processes(self) -> list[tuple[str, int]]:
        return []

    def leave(self) -> None: ...

    def stop(self) -> None: ...


def _enter_namespace() -> None:
    """A network namespace of its own, for the calling thread.  (Python 3.11 has no os.unshare.)"""
    if ctypes.CDLL(None, use_errno=True).unshare(0x40000000):  # CLONE_NEWNET
        raise OSError(ctypes.get_errno(), "unshare")
