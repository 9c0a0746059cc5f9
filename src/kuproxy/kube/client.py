"""The network below the reflectors: asyncio, with lightkube's configuration, authentication and HTTP client.

Each resource has a task and a client of its own, so that one that waits or renews its credentials holds up no other.
A 401 makes the task read the configuration anew before it asks again: tokens rotate, and so do client certificates.
All times are the event loop's; all waiting is bounded by the reflectors' deadlines.

This is the only module that imports lightkube, and only when it is used: it is an optional dependency.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from kuproxy.errors import ConfigError, Problem
from kuproxy.kube.cluster import Batch, Cluster
from kuproxy.kube.objects import decode_status
from kuproxy.kube.reflector import Reflector, Request

__all__ = ["Watcher", "create", "load_access"]

# Uncompressed: unpacking 45 MB costs both sides more than sending them over a cluster's network.
_HEADERS = {"Accept": "application/json", "Accept-Encoding": "identity"}
_CONNECT_S = 10.0
_HINT = "see `kubectl config view`"


def load_access(kubeconfig: str = "", context: str = "", server: str = "") -> Any:
    """How to reach the API server, as lightkube's SingleConfig; raises ConfigError with what is missing.

    From the file, if one is named; else from the service account that Kubernetes gives a pod; else from
    $KUBECONFIG or ~/.kube/config.  `server` goes before what any of them says, and needs none of them.
    """
    try:
        from lightkube.config.kubeconfig import KubeConfig
    except ImportError:
        hint = "install kuproxy with the extra `kubernetes`"
        raise ConfigError(Problem("lightkube is not installed", hint=hint)) from None
    try:
        if server and not kubeconfig:
            config = KubeConfig.from_server(server)
        else:
            config = KubeConfig.from_file(kubeconfig) if kubeconfig else KubeConfig.from_env()
        access: Any = config.get(context or None)
        if server:
            access = access._replace(cluster=msgspec.structs.replace(access.cluster, server=server))
    except Exception as error:  # lightkube lets through what YAML, msgspec, dictionaries and files raise
        what = f"no key {error}" if isinstance(error, KeyError) else str(error).replace("\n", " ")
        message = f"the access to the API server cannot be read: {what}"
        raise ConfigError(Problem(message, kubeconfig or "kubeconfig", hint=_HINT)) from None
    url = access.cluster.server
    if not url.startswith(("https://", "http://")):
        message = f"the API server {url!r} is not a URL"
        raise ConfigError(Problem(message, kubeconfig or "kubeconfig", hint="as https://10.0.0.1:6443"))
    return access


async def create(access: Any, path: str, body: object) -> None:
    """POST an object.  Raises whatever goes wrong, ValueError with the server's words if it refuses."""
    from lightkube.config import client_adapter

    httpx: Any = vars(client_adapter)["httpx"]
    params = client_adapter.ConnectionParams(timeout=httpx.Timeout(_CONNECT_S))
    async with client_adapter.AsyncClient(access, params) as client:
        answer = await client.post(path, json=body)
        if answer.status_code >= 400:
            raise ValueError(f"{answer.status_code} {decode_status(answer.content).message or answer.reason_phrase}")


class Watcher:
    """Keeps a Cluster equal to what the API server has.

    `load` reads the access anew whenever the credentials are refused; `report` gets a line when a resource has
    trouble and when it is well again; `arrived` is called when there is something to take.
    """

    def __init__(
        self,
        cluster: Cluster,
        load: Callable[[], Any],
        report: Callable[[str], None] = lambda _line: None,
        arrived: Callable[[], None] = lambda: None,
    ) -> None:
        self.cluster = cluster
        self.answers: dict[int, int] = {}  # by HTTP status; 0: there was none
        self._load = load
        self._report = report
        self._arrived = arrived
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Watch until cancelled.  Raises ConfigError at once if the access cannot be read."""
        self._load()
        async with asyncio.TaskGroup() as tasks:
            for reflector in self.cluster.reflectors:
                tasks.create_task(self._drive(reflector), name=f"watch {reflector.resource.plural}")

    async def batches(self, interval_s: float = 0.0) -> AsyncIterator[Batch]:
        """Changes as they come, together what came together; after one batch the next waits for `interval_s`."""
        while True:
            await self._news.wait()
            self._news.clear()
            batch = self.cluster.take()
            if batch is not None:
                yield batch
                await asyncio.sleep(interval_s)

    def _heard(self) -> None:
        if self.cluster.changed:
            self._arrived()
            self._news.set()

    async def _drive(self, reflector: Reflector[Any]) -> None:
        """One resource: what the reflector wants, one request after the other."""
        from lightkube.config import client_adapter
        from lightkube.core.exceptions import ConfigError as AccessError

        httpx: Any = vars(client_adapter)["httpx"]  # whichever of its names lightkube uses
        # KeyError and ValueError: a credential helper whose answer has no token.  OSError: it does not start, or a
        # certificate is not there.
        failures = (
            httpx.HTTPError,
            httpx.StreamError,
            httpx.InvalidURL,
            AccessError,
            ConfigError,
            OSError,
            KeyError,
            ValueError,
        )
        now = asyncio.get_running_loop().time
        client: Any = None
        shown = ""
        try:
            while True:
                request = reflector.wanted
                if request is None:
                    await asyncio.sleep(max(reflector.deadline - now(), 0.0))
                    reflector.tick(now())
                    continue
                try:
                    if client is None:
                        params = client_adapter.ConnectionParams(
                            timeout=httpx.Timeout(None, connect=_CONNECT_S)
                        )
                        client = client_adapter.AsyncClient(self._load(), params)
                    renew = await self._ask(client, reflector, request)
                except failures as error:
                    self.answers[0] = self.answers.get(0, 0) + 1
                    reflector.fail(request.serial, now(), f"{type(error).__name__}: {error}".rstrip(": "))
                    renew = True  # the certificates may be others by now
                self._heard()
                if renew and client is not None:
                    await client.aclose()
                    client = None
                if reflector.problem != shown:
                    shown = reflector.problem
                    self._report(f"{reflector.resource.plural}: {shown or 'in touch again'}")
        finally:
            if client is not None:
                await client.aclose()

    async def _ask(self, client: Any, reflector: Reflector[Any], request: Request) -> bool:
        """Send one request and hand over the answer; whether the credentials were refused."""
        now = asyncio.get_running_loop().time
        serial = request.serial
        try:
            # The deadline moves with every byte that arrives.
            async with (
                asyncio.timeout_at(reflector.deadline) as limit,
                client.stream("GET", request.path, params=list(request.params), headers=_HEADERS) as answer,
            ):
                status = answer.status_code
                self.answers[status] = self.answers.get(status, 0) + 1
                reflector.head(serial, now(), status, answer.headers.get("Retry-After", ""))
                async for chunk in answer.aiter_bytes():
                    reflector.body(serial, now(), chunk)
                    self._heard()
                    if reflector.wanted is not request:
                        return False  # given up; leaving closes the connection
                    limit.reschedule(reflector.deadline)
                reflector.end(serial, now())
                return bool(status == 401)
        except TimeoutError:
            if limit.expired():
                # The timer may come a clock's tick early: overdue is overdue.
                reflector.tick(max(now(), reflector.deadline))
            else:
                reflector.fail(serial, now(), "timed out")  # the kernel's own limit
            return False
