"""`ku daemon`: the control process as a service, with its API, its state file and its workers.

An asyncio loop waits for requests, the node's events, signals and the timer; the control thread carries out what they
ask for.  Packets pass through the workers alone, so however busy this process is, forwarding does not notice.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NoReturn

import click

from kuproxy.confine import privilege
from kuproxy.confine.lifetime import end_with_parent, raise_file_limit
from kuproxy.daemon.announcing import Announcing
from kuproxy.daemon.api.app import make_app, make_metrics_app, make_web_app
from kuproxy.daemon.api.auth import Access
from kuproxy.daemon.api.server import Listener, bind_tcp, bind_unix, tls_context
from kuproxy.daemon.control import Controller
from kuproxy.daemon.flow_cache import TURN_S
from kuproxy.daemon.log import make_log
from kuproxy.daemon.node import LiveNode
from kuproxy.daemon.notify import Notifier
from kuproxy.daemon.persist import StateFile
from kuproxy.daemon.settings import DaemonSettings, group_id, load_settings
from kuproxy.daemon.thread import ControlThread
from kuproxy.errors import ConfigError, HandoverError, KuError, Problem
from kuproxy.keeper.vault import Vault
from kuproxy.keeper.wire import BEGIN_ANEW, REPLACE
from kuproxy.load import load_config
from kuproxy.main import run
from kuproxy.model.config import Config

COLLECT_INTERVAL_S = 1.0
ADOPTION_INTERVAL_S = 0.02  # an idle worker looks up every 50 ms
_ANSWER_S = 0.05
STOP_S = 20.0  # for everything else of a stop, as the unit has it
WITHDRAWN_WITHIN_S = 10.0  # speakers that have not withdrawn by then are not waited for
_DEFAULT_CONFIG = Path("/etc/kuproxy/kuproxy.toml")
# What a running daemon cannot change: a reload that asks for it says so, and the rest is applied.
_FIXED = (
    *("state_directory", "interfaces", "workers", "log_format", "worker_filter"),
    *("api", "tcp", "metrics", "web", "driver", "cache"),
)


def _token(path: str) -> bytes:
    try:
        token = Path(path).read_bytes().strip()
    except OSError as error:
        raise ConfigError(Problem(f"{path}: {error.strerror}", field="tcp.token_file")) from None
    if len(token) < 16:
        raise ConfigError(
            Problem(f"{path}: the token is too short", field="tcp.token_file", hint="16 characters at least")
        )
    return token


class Daemon:
    """One daemon, from start to stop."""

    def __init__(
        self, settings: DaemonSettings, path: Path | None, log: Any, base: Config | None = None
    ) -> None:
        """With `base`, which holds where no files are named, another source is to come: it ends with `complete_start`.

        Raises KuError for whatever would fail later.
        """
        self._settings, self._path, self._log = settings, path, log
        # What `settings` are beside what the file says.
        self.adjust: Callable[[DaemonSettings], DaemonSettings] = lambda read: read
        group = group_id(settings.api.group)
        tokens = set()
        if settings.tcp is not None and settings.tcp.token_file:
            tokens.add(_token(settings.tcp.token_file))
        self._access = Access(group, frozenset(tokens))
        self._config = load_config(settings.paths()) if settings.files else base
        self._state_file = StateFile(Path(settings.state_directory))
        buckets = self._config.settings.buckets if self._config is not None else 1024
        self._vault = Vault.of_environment()
        if self._vault.connected:
            end_with_parent()  # with the keeper all ends
        self._node = LiveNode(
            buckets.bit_length() - 1,
            settings.interfaces,
            settings.worker_count(),
            self._vault,
            filtered=settings.worker_filter,
            driver=settings.driver,
            cache=settings.cache,
        )
        self._node.engine.on_replaced = lambda line: log.warning("worker", text=line)
        self._controller = Controller(self._node, settings.paths(), log, self._state_file)
        self._controller.base = base or Config()
        self._controller.announcing = Announcing(settings.announce, Path(settings.state_directory))
        self._awaits_source = base is not None
        self._controller.before_reload = self._reload_settings
        if self._vault.connected:
            self._controller.replace = self._replace_soon
        self._socket_path = Path(settings.api.socket)
        self._sockets = [self._api_socket(int(settings.api.mode, 8), group)]
        self._listeners: list[Listener] = []
        self._notifier = Notifier(self._vault)
        self._thread = ControlThread()
        self._stopped, self._hangup, self._replaced = (asyncio.Event() for _ in range(3))
        self._told_to_stop = False
        self._withdrawal: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # Run beside everything else from when packets are forwarded; one that ends with an error ends the daemon.
        self.companions: list[Callable[[], Coroutine[Any, Any, None]]] = []

    def _api_socket(self, mode: int, group: int | None) -> socket.socket:
        """The predecessor's, so that clients wait for us instead of being refused; or a new one."""
        name = f"api/{self._socket_path}"
        if name in self._vault.names():
            return socket.socket(fileno=self._vault.take(name))
        opened = bind_unix(self._socket_path, mode, group)
        self._vault.keep({name: opened.fileno()})
        return opened

    @property
    def controller(self) -> Controller:
        return self._controller

    @property
    def node(self) -> LiveNode:
        return self._node

    @property
    def thread(self) -> ControlThread:
        return self._thread

    def _listen(self) -> None:
        app = make_app(self._controller, self._access, self._thread)
        self._listeners = [Listener(app, self._sockets[0])]
        tcp = self._settings.tcp
        if tcp is not None:
            context = tls_context(tcp.certificate, tcp.key, tcp.client_ca) if tcp.certificate else None
            self._listeners.append(Listener(app, bind_tcp(tcp.address, tcp.port, "tcp"), context))
        metrics = self._settings.metrics
        if metrics is not None:
            opened = bind_tcp(metrics.address, metrics.port, "metrics")
            self._listeners.append(Listener(make_metrics_app(self._controller, self._thread), opened))
        web = self._settings.web
        if web is not None:
            page = make_web_app(self._controller, self._thread, web.names)
            self._listeners.append(Listener(page, bind_tcp(web.address, web.port, "web")))

    async def serve(self) -> int:
        """Start, serve until SIGINT or SIGTERM, stop; returns the exit status.  Raises KuError.

        Without a keeper nothing is left behind, whatever happens.  With one, only who is told to stop ends forwarding;
        after SIGUSR2, and after a failure, a successor finds all that forwards.
        """
        loop = self._loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._hangup.set)
        loop.add_signal_handler(signal.SIGUSR2, self.replace)
        raise_file_limit()  # a thousand idle clients are a thousand descriptors
        try:
            self._listen()
            await self._thread(self._start)
            self._drop_privileges()  # of this thread; `_start` has done it for the control thread
            for thread in privilege.holders_of_more(self._node.capabilities):
                self._log.warning("privileges", text=f"thread {thread} has kept more than it should")
            tasks = [asyncio.create_task(each.serve()) for each in self._listeners]
            rest = [
                asyncio.create_task(each())
                for each in (self._tend, self._turn, self._follow, self._reloads, self._renew, *self.companions)
            ]
            for task in (*tasks, *rest):
                task.add_done_callback(self._ended)
            self._notifier.ready()
            await self._stopped.wait()
            if not self._replaced.is_set():
                self._notifier.stopping()
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)
            for listener in self._listeners:
                listener.stop()
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            leaving = self._vault.connected and not self._told_to_stop
            await self._thread(self._controller.leave if leaving else self._controller.stop)
            self._thread.close()
            if not leaving:
                self._socket_path.unlink(missing_ok=True)
            self._state_file.close()
        if self._failure is not None:
            raise self._failure
        self._log.info("left to a successor" if leaving else "stopped")
        return REPLACE if leaving else 0

    def _stop(self) -> None:
        """The first time in good order; who is told again does not wait."""
        assert self._loop is not None
        if self._told_to_stop or not self._controller.ready:
            self._stopped.set()
        else:
            self._withdrawal = self._loop.create_task(self._withdraw())
        self._told_to_stop = True

    async def _withdraw(self) -> None:
        """Let the network look elsewhere before forwarding ends: speakers withdraw, and routers have time to hear."""
        announcing, loop = self._controller.announcing, asyncio.get_running_loop()
        announcing.stopping = True
        try:
            if announcing.settings is not None and announcing.may_attract(loop.time()):
                drain_s = announcing.settings.drain_s
                self._log.info("withdrawing", drain_s=drain_s)
                self._notifier.extend(WITHDRAWN_WITHIN_S + drain_s + STOP_S)
                deadline = loop.time() + WITHDRAWN_WITHIN_S
                while announcing.may_attract(loop.time()) and loop.time() < deadline:
                    await asyncio.sleep(0.05)
                await asyncio.sleep(drain_s)
        finally:
            self._stopped.set()

    def _replace_soon(self) -> None:
        """In the loop's thread, and when the client that asks for it has its answer."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._loop.call_later, _ANSWER_S, self.replace)

    def replace(self) -> None:
        """Have the keeper start another control process, from what is on disk now, in our place."""
        if not self._vault.connected:
            self._log.error("nobody would start a successor: no keeper")
            return
        self._replaced.set()
        self._stopped.set()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A task that fails ends the daemon: half of one would be worse than a restart."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._failure = self._failure or error
            self._stopped.set()

    def _start(self) -> None:
        config = self._config
        for note in config.notes if config is not None else ():
            self._log.info("config", text=str(note))
        self._controller.start(config if config is not None else Config(), complete=not self._awaits_source)
        for line in self._node.notes:
            self._log.info("handover", text=line)
        for line in self._node.steering.warnings:
            self._log.warning("node", text=line)
        self._log.info(
            "forwarding",
            interfaces=",".join(self._node.steering.attached),
            driver=self._node.driver,
            vips=len(self._controller.plane.store),
            workers=len(self._node.engine.workers),
            socket=str(self._socket_path),
        )
        self._drop_privileges()
        self._node.engine.watch()
        gc.freeze()  # what is here now stays: later collections need not look at it

    def _drop_privileges(self) -> None:
        """What was needed to begin is not needed to go on: docs/privileges.md."""
        privilege.keep_only(*self._node.capabilities)

    async def _follow(self) -> None:
        """Take in the node's events, as they come."""
        loop, readable = asyncio.get_running_loop(), asyncio.Event()
        while True:
            fds = self._node.filenos()
            for fd in fds:
                loop.add_reader(fd, readable.set)
            try:
                await readable.wait()
            finally:
                for fd in fds:
                    loop.remove_reader(fd)
            readable.clear()
            for line in await self._thread(self._node.follow, self._controller.plane):
                self._log.info("steering", text=line)

    async def _tend(self) -> None:
        """The timer: what drains, what ended, and the watchdog."""
        pause = COLLECT_INTERVAL_S
        if self._notifier.watchdog_s is not None:
            pause = min(pause, self._notifier.watchdog_s)
        while True:
            await self._thread(self._controller.tend)
            self._notifier.alive()
            await asyncio.sleep(ADOPTION_INTERVAL_S if self._controller.adopting else pause)

    async def _turn(self) -> None:
        """The flow cache's timer."""
        while self._node.cache is not None:
            for line in await self._thread(self._node.turn):
                self._log.warning("flow cache", text=line)
            await asyncio.sleep(TURN_S)

    async def _renew(self) -> None:
        """After an upgrade: workers of this build in the place of the former ones.  Its kernels may take minutes to
        compile, so that nobody waits for it."""
        if self._node.engine.outdated:
            await asyncio.to_thread(self._node.engine.renew)
            self._log.info("every worker runs this build's kernels now")

    async def _reloads(self) -> None:
        """SIGHUP: read the settings and the files again; with a fault in them, everything stays as it is."""
        while True:
            await self._hangup.wait()
            self._hangup.clear()
            self._notifier.reloading()
            try:
                await self._thread(self._controller.reload)
            except KuError as error:
                for line in str(error).splitlines():
                    self._log.error("config refused, the former one stays", text=line)
            self._notifier.ready()

    def _reload_settings(self) -> None:
        """Take over the list of files; say what needs a restart.  Raises ConfigError."""
        settings = self.adjust(load_settings(self._path))
        for name in _FIXED:
            if getattr(settings, name) != getattr(self._settings, name):
                self._log.warning("needs a restart", setting=name)
        self._controller.files = settings.paths()
        self._controller.announcing.settings = settings.announce


@click.command(name="daemon")
@click.option(
    "--settings",
    "path",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help=f"The daemon's settings, a TOML file. Default: {_DEFAULT_CONFIG}, if it exists.",
)
@click.option("--check", is_flag=True, help="Read settings and files, say what is wrong, and end.")
def daemon(path: Path | None, check: bool) -> None:
    """Forward live traffic in this network namespace, and serve `ku` commands and the API.

    What to forward comes from the files that the settings name, and from commands, which survive restarts. SIGHUP, or
    `ku reload`, reads settings and files again and applies the difference. Needs root and Linux 6.6.

    \b
    ku daemon --settings kuproxy.toml
    ku daemon --settings kuproxy.toml --check
    """
    if path is None and _DEFAULT_CONFIG.exists():
        path = _DEFAULT_CONFIG
    settings = load_settings(path)
    if check:
        config = load_config(settings.paths()) if settings.files else None
        click.echo(f"good: {len(config.vips) if config is not None else 0} VIPs")
        return
    log = make_log(settings.log_format)
    exit_after(lambda: Daemon(settings, path, log), log)


def exit_after(make: Callable[[], Daemon], log: Any) -> NoReturn:
    """Serve, and end as the keeper understands it.  Raises KuError."""
    try:
        sys.exit(asyncio.run(make().serve()))
    except HandoverError as error:
        log.error("cannot take over", text=str(error))
        sys.exit(BEGIN_ANEW)


if __name__ == "__main__":
    run(daemon, name="ku daemon")
