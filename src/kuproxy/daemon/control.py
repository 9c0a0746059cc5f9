"""The owner of a running data plane: the one writer of its store, between the sources above and the workers below.

Everything here happens in one thread, the caller's.  A change is judged as a whole, kept on disk, taken over by the
tables, and only then followed by the traffic that needs it; whatever is refused leaves everything as it was.  `ku run`
uses it with files alone, the daemon adds the source `cli` (commands and the API) and its state file.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from kuproxy.control.store import Changes
from kuproxy.daemon.announcing import Announcing
from kuproxy.daemon.commands import SOURCE, Commands
from kuproxy.daemon.node import Forwarder
from kuproxy.daemon.persist import Loaded, StateFile
from kuproxy.daemon.sampler import Sampler
from kuproxy.daemon.schema import Conf, State, merged_marks, settings_over
from kuproxy.errors import ConflictError, DriverError, KuError
from kuproxy.explain.services import ServiceFinder, finder
from kuproxy.explain.services import Source as ServiceSource
from kuproxy.load import load_config
from kuproxy.model.config import Config, InterfaceMark, Settings, Show
from kuproxy.model.vip import Address, Pod, Prefix, Vip, VipKey
from kuproxy.plane import Plane
from kuproxy.vppcli.apply import Desired

__all__ = ["FILES", "Answer", "Controller"]

FILES = "files"


def _no_successor() -> None:
    raise DriverError("there is no keeper that would start a successor: restart `ku daemon` instead")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a change did."""

    added: int = 0
    changed: int = 0
    removed: int = 0
    generation: int = 0
    flushed: int | None = None  # flows forgotten, if that was asked for
    shows: tuple[Show, ...] = ()


class Controller:
    """Keeps tables and steering equal to what the sources ask for."""

    def __init__(
        self, forwarder: Forwarder, files: Sequence[Path], log: Any, state_file: StateFile | None = None
    ) -> None:
        self.forwarder = forwarder
        self.plane = Plane(forwarder.engine, decrement_ttl=False, any_node_address=False)
        self.sampler = Sampler(self.plane)
        self.files = tuple(files)
        self.base = Config()  # what holds where there are no files
        self.file_config = Config()
        self.commands = Commands()
        self.before_reload: Callable[[], None] = lambda: None  # may set `files`; may raise ConfigError
        self.replace: Callable[[], None] = (
            _no_successor  # have another control process take over; may raise KuError
        )
        self.find_service: ServiceFinder = lambda owner: None  # of another source, by a VIP's owner
        self.announcing = Announcing()
        self.ready = False
        self.adoption_s: float | None = None  # from the last change to its adoption by every worker
        self._pending: tuple[int, float] | None = None  # generation, when it was published
        self.node_masquerade: tuple[Address, ...] = ()  # of the Node object, at most one of each family
        self.node_pod_ranges: tuple[Prefix, ...] = ()  # by which pods are known there
        self._published: dict[str, Config] = {}  # by source
        self._state_file = state_file
        self._log = log

    @property
    def settings(self) -> Settings:
        """Of all sources together."""
        return self._over(self.file_config.settings, self.commands.conf)

    def _over(self, base: Settings, conf: Conf) -> Settings:
        """What files and commands say; where they do not, the node says whose address pods see, and who pods are."""
        settings = settings_over(base, conf)
        said = {address.version for address in settings.masquerade}
        missing = tuple(address for address in self.node_masquerade if address.version not in said)
        ranges = settings.pod_ranges or self.node_pod_ranges
        return replace(settings, masquerade=settings.masquerade + missing, pod_ranges=ranges)

    @property
    def marks(self) -> tuple[InterfaceMark, ...]:
        return merged_marks(self.file_config, self.commands.config())

    def service_behind(self, owner: str) -> ServiceSource | None:
        """The Service that a VIP with this owner is made from, and from where it was looked at."""
        found = self.find_service(owner)
        if found is not None:
            return found
        return finder(self.file_config.services, self.file_config.view)(owner)

    @property
    def generation(self) -> int:
        """Of the tables, as published."""
        return self.plane.compiler.generation

    # ----------------------------------------------------------------------------------------------- life

    def read_files(self) -> Config:
        """The files as they are now.  Raises ConfigError."""
        config = load_config(self.files) if self.files else self.base
        for note in config.notes:
            self._log.info("config", text=str(note))
        return config

    def start(self, config: Config, *, complete: bool = True) -> None:
        """Forward what the files (already read) and the state ask for.  Raises KuError.

        With `complete` false another source is to come: `complete_start` when it has spoken.  What a former control
        process has left is served until then.
        """
        self.forwarder.start(self.plane)
        loaded = self._state_file.load() if self._state_file is not None else None
        if (
            loaded is not None
        ):  # settings first: files alone would take away for a moment what commands have set
            with contextlib.suppress(KuError):
                self.commands = Commands().with_conf(config.settings, loaded.state.conf)
        self.apply_files(config)
        if self._state_file is not None and loaded is not None:
            self._restore(self._state_file, loaded)
        if complete:
            self.complete_start()

    def complete_start(self) -> None:
        """Every source has spoken."""
        removed = self.plane.finish_adoption()
        if removed:
            self._log.info("no longer asked for", vips=removed)
        self.forwarder.steer(self.plane, self.marks)
        for line in self.forwarder.take_over():
            self._log.info("taken over", text=line)
        self.ready = True

    def _restore(self, state_file: StateFile, loaded: Loaded) -> None:
        for line in loaded.warnings:
            self._log.error("state", text=line)
        base = self.file_config.settings
        try:
            self._commit(Commands.of(loaded.state, base), None)
        except KuError as error:
            # The files changed while nobody was looking: what contradicts them waits in a copy, the rest serves.
            copy = state_file.keep_copy("refused")
            for line in str(error).splitlines():
                self._log.error("state refused in part", text=line, copy=str(copy))
            self._restore_one_by_one(loaded.state)
            state_file.prepare(self.commands.state())
            state_file.commit()

    def _restore_one_by_one(self, state: State) -> None:
        base = self.file_config.settings
        kept = State()
        parts: list[dict[str, Any]] = [
            {"conf": state.conf},
            {"interfaces": state.interfaces},
            *({"vips": [vip]} for vip in state.vips),
        ]
        for part in parts:
            wanted = {**part, "vips": [*kept.vips, *part.get("vips", [])]}
            try:
                trial = msgspec.structs.replace(kept, **wanted)
                self._commit(Commands.of(trial, base), None)
                kept = trial
            except KuError as error:
                self._log.error("refused", text=str(error).replace("\n", "; "))

    def reload(self) -> Answer:
        """Read the files again and apply the difference.  Raises KuError; then everything stays as it is."""
        self.before_reload()
        return self.apply_files(self.read_files())

    def leave(self) -> None:
        """End without an end of forwarding: a successor takes over."""
        self.ready = False
        self.forwarder.leave()

    def stop(self) -> None:
        """Leave the node as it was; counters can still be read."""
        self.ready = False
        self.forwarder.stop()

    def tend(self) -> None:
        """About once a second: free what has drained, see that everything runs.  Raises DriverError."""
        self.note_adoption()
        if self.plane.collect():
            self.forwarder.steer(self.plane, self.marks)
        self.forwarder.check()

    @property
    def not_ready(self) -> str:
        """Why this node does not forward what was asked for; empty if it does."""
        if not self.ready:
            return "nothing is forwarded"
        if missing := self.forwarder.missing():
            return f"no process works as worker {', '.join(map(str, missing))}"
        adopted = self.plane.engine.acknowledged()
        if adopted < self.generation:
            return f"generation {adopted} of {self.generation} is adopted"
        return ""

    @property
    def adopting(self) -> bool:
        """Whether some worker has not been seen yet to have adopted the last change."""
        return self._pending is not None

    def note_adoption(self) -> None:
        """See whether the workers have adopted the last change."""
        if self._pending and self.plane.engine.acknowledged() >= self._pending[0]:
            self.adoption_s = time.monotonic() - self._pending[1]
            self._pending = None

    # -------------------------------------------------------------------------------------------- changes

    def apply_files(self, config: Config) -> Answer:
        """Let the source `files` hold this.  Raises KuError, changing nothing."""
        commands = self.commands.rebased(config.settings)
        settings = self._over(config.settings, commands.conf)
        marks = merged_marks(config, commands.config())
        answer = self._publish(FILES, replace(config, settings=settings, interfaces=marks))
        self.file_config, self.commands = config, commands
        return self._follow_up(config, answer)

    def run(self, text: str) -> Answer:
        """Carry out lines of the command language, all or none.  Raises KuError."""
        return self._commit(self.commands.run(text, self.file_config.settings), self._state_file)

    def edit(self, change: Callable[[Desired], None]) -> Answer:
        """Change VIPs or marks of the source `cli`.  Raises KuError, changing nothing."""
        return self._commit(self.commands.edit(self.file_config.settings, change), self._state_file)

    def set_conf(self, conf: Conf) -> Answer:
        """Replace what `ku conf` has set.  Raises KuError, changing nothing."""
        return self._commit(self.commands.with_conf(self.file_config.settings, conf), self._state_file)

    def load_state(self, state: State) -> Answer:
        """Replace everything that the source `cli` holds.  Raises KuError, changing nothing."""
        return self._commit(Commands.of(state, self.file_config.settings), self._state_file)

    def _commit(self, commands: Commands, keep: StateFile | None) -> Answer:
        """Let these be the commands, and keep them there."""
        base = self.file_config.settings
        state = commands.state()
        config = commands.config()
        if state == self.commands.state():  # asked for again, or nothing to keep: a trace, a flush, a `show`
            return self._follow_up(config, Answer(generation=self.generation))
        wanted = replace(
            config,
            settings=self._over(base, commands.conf),
            interfaces=merged_marks(self.file_config, config),
        )
        if keep is not None:
            keep.prepare(state)
        try:
            answer = self._publish(SOURCE, wanted)
        except BaseException:
            if keep is not None:
                keep.discard()
            raise
        self.commands = commands
        if keep is not None:
            keep.commit()
        return self._follow_up(config, answer)

    def _publish(self, source: str, config: Config) -> Answer:
        """Tables first, then the traffic that needs them."""
        before = self.plane.settings
        log2 = config.settings.buckets.bit_length() - 1
        wish = config.settings.flow_hash.wish
        self.forwarder.resize(log2)
        try:
            self.forwarder.rehash(wish)
            changes = self._apply(config, source)
        except BaseException:
            if before.buckets != config.settings.buckets:
                self.forwarder.resize(before.buckets.bit_length() - 1)
            self.forwarder.rehash(before.flow_hash.wish)
            raise
        if changes:
            self._pending = (self.generation, time.monotonic())
        try:
            self.forwarder.steer(self.plane, config.interfaces)
        except KuError:
            former = replace(
                self._published.get(source, Config()), settings=before, interfaces=self.marks, flushed=()
            )
            self.plane.apply(former, source)
            self.forwarder.resize(before.buckets.bit_length() - 1)
            self.forwarder.rehash(before.flow_hash.wish)
            with contextlib.suppress(KuError):
                self.forwarder.steer(self.plane, former.interfaces)
            raise
        self._published[source] = config
        counts = Answer(len(changes.added), len(changes.changed), len(changes.removed), self.generation)
        self._log.info(
            "applied",
            source=source,
            added=counts.added,
            changed=counts.changed,
            removed=counts.removed,
            generation=counts.generation,
        )
        return counts

    def set_node(
        self,
        masquerade: tuple[Address, ...],
        node_port_networks: frozenset[Prefix] | None,
        pod_ranges: tuple[Prefix, ...] = (),
    ) -> None:
        """What the own Node says: the address that pods see, where node ports are served (None: everywhere), its pods.

        Raises ConfigError or SteeringError, changing nothing.
        """
        before, self.node_masquerade = self.node_masquerade, masquerade
        try:
            settings = self.settings
            self.forwarder.serve_node_ports(self.plane, node_port_networks)
        except KuError:
            self.node_masquerade = before
            raise
        if settings.masquerade != self.plane.settings.masquerade:
            self.plane.set_masquerade(settings.masquerade)
        self.set_pods(pod_ranges)

    def set_pods(self, ranges: tuple[Prefix, ...]) -> None:
        """By which addresses pods are known, where neither files nor commands say it."""
        self.node_pod_ranges = ranges
        settings = self.settings
        if settings.pod_ranges != self.plane.settings.pod_ranges:
            self.plane.set_pod_ranges(settings.pod_ranges)

    def update(
        self,
        source: str,
        add: Iterable[Vip] = (),
        remove: Iterable[VipKey] = (),
        flushed: Iterable[tuple[VipKey, Pod]] = (),
    ) -> Answer:
        """Change a part of what a source holds, in tables and traffic; the cost follows the change.

        Raises ConflictError, TableFullError or SteeringError, changing nothing.
        """
        flushed = list(flushed)
        changes, former = self.plane.update(source, add, remove, flushed)
        if not changes:
            if flushed:  # whoever carries their flows has to hear of it
                self.forwarder.steer(self.plane, self.marks)
            return Answer(generation=self.generation)
        self._pending = (self.generation, time.monotonic())
        try:
            self.forwarder.steer(self.plane, self.marks)
        except KuError:
            self.plane.update(source, *former)
            with contextlib.suppress(KuError):
                self.forwarder.steer(self.plane, self.marks)
            raise
        return Answer(len(changes.added), len(changes.changed), len(changes.removed), self.generation)

    def _apply(self, config: Config, source: str) -> Changes:
        """Say in a conflict whose the other side is: `cli` and scripts go by one owner's name, `ku`."""
        try:
            return self.plane.apply(config, source)
        except ConflictError as error:
            others = " or ".join(name for name in self.plane.store.sources if name != source)
            hint = f"it belongs to the source {others}" if others else ""
            raise ConflictError(replace(each, hint=each.hint or hint) for each in error.problems) from None

    def _follow_up(self, config: Config, answer: Answer) -> Answer:
        """What was asked for once."""
        if config.trace:
            self.forwarder.trace(config.trace)
        flushed = None
        if config.flush_flows:
            flushed = self.forwarder.flush()
            self._log.info("flushed", flows=flushed)
        return replace(answer, flushed=flushed, shows=config.shows)
