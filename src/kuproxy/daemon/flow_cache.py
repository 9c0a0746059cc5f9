"""The flow cache's owner: which flows the kernel carries for the workers, from when, and until when.

The kernel repeats rewrites, and decides nothing (steering/cache_program.py); the workers decide, and do not know of it.
Between the two stands this module, in the control thread, the only one that enters flows and takes them back.  About
twice a second it takes a turn: what it has taken back may be used again; what was armed a turn ago and is still what it
was may be rewritten; flows that have been used of late are armed.  Whatever changes the tables is followed at once
(`follow_tables`), before the change is answered.  docs/adr/031 says why nothing here can send a packet astray.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

import numpy as np

from kuproxy.daemon.cache_choice import CacheChoice
from kuproxy.daemon.flow_ways import FlowWays
from kuproxy.daemon.precedence import Destinations, of_addresses
from kuproxy.engine.cached import (
    BOOK_LAYOUT,
    NS_PER_TICK,
    Book,
    Ends,
    Progress,
    Stage,
    ends_of,
    left_packets,
    make_counts,
    precedence,
    seconds_left,
    tick_of,
)
from kuproxy.engine.live import LiveEngine
from kuproxy.errors import DriverError, SteeringError
from kuproxy.keeper.vault import Vault
from kuproxy.model.report import CacheReport, Carried
from kuproxy.model.vip import Address
from kuproxy.steering.cache_layout import KEY
from kuproxy.steering.cache_maps import ENDS, CacheMaps, forget_left
from kuproxy.steering.steering import Steering
from kuproxy.steering.targets import Asked

__all__ = ["GIVEN_BACK", "TURN_S", "FlowCache"]

# Why flows are given back to the workers.
GIVEN_BACK = ("closed", "idle", "changed", "lost", "evicted", "failed")

TURN_S = 0.5
_NS = 1_000_000_000
# While a flow is armed, packets may still be on their way from the program to the worker: `Progress` tells whether they
# have arrived. This long it lasts at least.
_SETTLE_NS = _NS // 5
_PATIENCE_TURNS = 20  # a worker that has not come so far by then stands still
# What is worth it: flows of which a packet came since the last turn but one, and that began before that.
_WITHIN_TICKS, _AGE_TICKS = 10, 5
_IDLE_NS = 30 * _NS  # such a flow gives its place back
_GIVES_WAY_NS = 2 * _NS  # such a one only if others want it
_AT_ONCE = 16384  # flows that are entered in a turn: some 50 ms of this thread
_FOR_EACH = 16  # candidates that are looked at for each free place
_ROUND_S = 5.0  # between two calls to the workers
_FAILURES = 3  # of such calls, one after the other
_TRACE_PATIENCE_NS = 5 * _NS  # without a traced packet: other workers may not get any


class FlowCache:
    """Of one node.  All methods are called in the control thread."""

    def __init__(self, choice: CacheChoice, engine: LiveEngine, vault: Vault, steering: Steering) -> None:
        """With what a predecessor has left.  Raises SteeringError where the kernel cannot."""
        self._engine, self._steering = engine, steering
        self._lease_ns = choice.flow_cache_lease * _NS
        pairs = choice.flow_cache_entries // 2
        name = f"cache-book/{BOOK_LAYOUT}/{pairs}"
        if name not in vault.names():
            forget_left(vault)  # maps without their book say too little
        vault.drop(*(each for each in vault.names("cache-book/") if each != name))
        self.maps = CacheMaps(choice.flow_cache_entries, vault)
        self._book = Book(pairs, vault.take(name) if self.maps.adopted else None)
        vault.keep({name: self._book.region.fd})
        self._vault, self._name = vault, name
        self.counts = make_counts(vault)
        self._destinations = Destinations()
        self._node: frozenset[Address] = frozenset()
        self._keys: dict[bytes, int] = {}
        self._pair_of: list[np.ndarray] = []  # by worker: int32 of its slots, 0 = not cached
        self._turns = 0
        self._armed: dict[int, tuple[int, list[Progress]]] = {}  # by turn: when (ns), and how far workers were
        self._owed: list[list[np.ndarray]] = []  # by worker: TOUCH arrays of flows that were given back
        self._failures: Counter[int] = Counter()
        self._next_round = 0.0
        # While packets are to be traced: how many are left, and since when (ns) so many.
        self._traced: tuple[int, int] | None = None
        self._began: Counter[str] = Counter()  # flows entered, turned away
        self._ended: Counter[str] = Counter()  # flows given back, by reason
        self._lines: list[str] = []  # for the log
        self._last_words: CacheReport | None = None
        self.failure = ""  # why nothing is cached any more
        self._ways: FlowWays | None = None
        if choice.flow_cache_shortcuts != "off":
            try:
                self._ways = FlowWays(choice.flow_cache_shortcuts, self.maps, steering)
            except (OSError, SteeringError) as error:
                self._lines.append(f"no shortcuts: {error}")
        self._index_slots()
        if self.maps.adopted:
            self._adopt()

    @property
    def _shortest(self) -> int:
        """Ticks that a flow's timeout must have: its worker remembers it when the lease ends (see `_send_touches`)."""
        return 2 * self._lease_ns // NS_PER_TICK

    def _index_slots(self) -> None:
        self._pair_of = [np.zeros(len(state.entries), np.int32) for state in self._engine.states]
        self._owed = [[] for _ in self._engine.states]

    def _adopt(self) -> None:
        """What a predecessor had armed was not judged to the end; what was live goes on, and is judged soon."""
        self.maps.forbid(self._book.at(Stage.FREE)[1:])
        self._book.move(self._book.at(Stage.ARMED), Stage.LEAVING)
        self.maps.forbid(self._book.at(Stage.LEAVING))
        live = self._book.at(Stage.LIVE)
        self._remember(live, self.maps.keys_of(live))
        for pair in live[self._book.strays(live, self._engine.states)].tolist():
            self._release(np.array([pair]), "lost")
        live = self._book.at(Stage.LIVE)
        for worker, slots, pairs in self._book.by_worker(live):
            self._pair_of[worker][slots] = pairs

    def _remember(self, pairs: np.ndarray, keys: np.ndarray) -> None:
        for pair, (there, back) in zip(pairs.tolist(), _cut(keys), strict=True):
            self._keys[there] = self._keys[back] = pair

    # ------------------------------------------------------------------------------------ what others change

    def begin(self, asked: Asked) -> None:
        """What is asked of steering already, by a predecessor's tables."""
        self._destinations = Destinations(asked.destinations, asked.node_ports)
        self._node = self._steering.addresses

    def follow_tables(self, before: Asked, now: Asked) -> None:
        """The tables have changed: give back, at once, every flow that they say something else about.

        `before` and `now`: what is asked of steering no more, and from now on.
        """
        vips, ports = self._destinations.change(
            before.destinations, now.destinations, before.node_ports, now.node_ports
        )
        pairs = self._used()
        if not len(pairs):
            return
        gone = ~self._book.allowed(pairs, self._engine.tables, self._shortest)
        if vips or ports:
            keys = self.maps.keys_of(pairs)
            for way in (0, 1):
                gone |= Destinations.become(keys[:, way], vips, ports)
        self._release(pairs[gone], "changed")

    def follow_addresses(self, addresses: frozenset[Address]) -> None:
        """The node has these addresses now."""
        if addresses == self._node:
            return
        self._node = addresses
        self.forget_node_ports()
        pairs = self._used()
        mine = of_addresses(self.maps.keys_of(pairs)[:, 0], addresses)
        self._release(pairs[mine], "changed")

    def forget_node_ports(self) -> None:
        """Node ports are served elsewhere now: give back flows that came by one."""
        pairs = self._used()
        self._release(pairs[self._book.rows["by_node_port"][pairs] != 0], "changed")

    def clear(self) -> None:
        """Give back all flows: their tables are about to be flushed, or to move."""
        self._release(self._used(), "changed")
        self._send_touches()

    def moved(self) -> None:
        """The workers' tables have other sizes now; nothing is cached (`clear`)."""
        self._index_slots()

    def filenos(self) -> list[int]:
        """Readable when `follow_ways` has something to do."""
        return [] if self._ways is None else self._ways.filenos()

    def follow_ways(self) -> list[str]:
        """Something has happened on the node: no shortcut is taken until it is known which are safe. Log lines."""
        return [] if self._ways is None or self.failure else self._ways.follow(self._used())

    def trace(self) -> None:
        """Packets are to be traced: let all come up until they have been, or until none has come for a while."""
        self._traced = -1, time.monotonic_ns()
        self.maps.lease(0)

    # ------------------------------------------------------------------------------------------- every turn

    def turn(self) -> list[str]:
        """About every TURN_S; returns lines for the log."""
        if self.failure:
            return []
        try:
            self._turn()
        except Exception as error:  # whatever it is: the workers forward without a cache, too
            self.maps.lease(0)
            self.failure = f"{type(error).__name__}: {error}"
            self._lines.append(f"the flow cache is off: {self.failure}")
        lines, self._lines = self._lines, []
        return lines

    def _turn(self) -> None:
        self._turns += 1
        now_ns = time.monotonic_ns()
        self._recycle()
        pairs = self._used()
        self._release(pairs[self._closed(pairs)], "closed")
        pairs = self._used()
        self._release(pairs[~self._book.allowed(pairs, self._engine.tables, self._shortest)], "changed")
        pairs = np.concatenate([self._book.at(Stage.ARMED), self._some(self._book.at(Stage.LIVE))])
        self._release(pairs[~self._book.held(pairs, self._engine.states, tick_of(now_ns))], "lost")
        self.refresh()
        self._allow(now_ns)
        live = self._book.at(Stage.LIVE)
        self._release(live[self._idle_ns(live, now_ns) > _IDLE_NS], "idle")
        if time.monotonic() >= self._next_round:
            self._next_round = time.monotonic() + min(_ROUND_S, self._lease_ns / _NS / 4)
            self._note_touches(now_ns)
            self._send_touches()
        self._arm(now_ns)
        if self._ways is not None:
            self._lines += self._ways.turn(self._used())
        self._renew_lease(now_ns)

    def _renew_lease(self, now_ns: int) -> None:
        if self._traced is not None:
            left, since_ns = left_packets(self._engine.states), now_ns
            if left == self._traced[0]:
                since_ns = self._traced[1]
            if left and now_ns - since_ns < _TRACE_PATIENCE_NS:
                self._traced = left, since_ns
                return
            self._traced = None
        self.maps.lease(now_ns + self._lease_ns)

    def _used(self) -> np.ndarray:
        stages = self._book.stages
        return np.flatnonzero((stages == Stage.ARMED) | (stages == Stage.LIVE))

    def _some(self, pairs: np.ndarray, most: int = _AT_ONCE) -> np.ndarray:
        """At most so many of them, others at every turn."""
        return np.roll(pairs, -self._turns * most)[:most]

    def _closed(self, pairs: np.ndarray) -> np.ndarray:
        rows = self.maps.rows["closed"]
        return np.asarray((rows[2 * pairs] | rows[2 * pairs + 1]) != 0)

    def _last_seen_ns(self, pairs: np.ndarray) -> np.ndarray:
        seen = self.maps.rows["last_seen_ns"]
        return np.maximum(seen[2 * pairs], seen[2 * pairs + 1])

    def _idle_ns(self, pairs: np.ndarray, now_ns: int) -> np.ndarray:
        """int64: since the last packet, or since they were allowed."""
        seen = np.maximum(self._last_seen_ns(pairs), self._book.rows["allowed_ns"][pairs])
        return now_ns - seen.astype(np.int64)

    # -------------------------------------------------------------------------------------- giving back

    def _release(self, pairs: np.ndarray, reason: str) -> None:
        """From here on their packets go up."""
        if not len(pairs):
            return
        self.maps.forbid(pairs)
        self._book.move(pairs, Stage.LEAVING)
        for worker, slots, _ in self._book.by_worker(pairs):
            self._pair_of[worker][slots[slots < len(self._pair_of[worker])]] = 0
        self._note_touches(time.monotonic_ns(), pairs)
        self._ended[reason] += len(pairs)

    def _recycle(self) -> None:
        """Make free what was given back; when it is certain that no program looks at it, count the last packets."""
        pairs = self._book.at(Stage.LEAVING)
        if not len(pairs):
            return
        keys = self.maps.keys_of(pairs)
        self.maps.erase(keys)
        self.maps.fence()
        self._tally(pairs)
        self._book.move(pairs, Stage.FREE)
        for pair, both in zip(pairs.tolist(), _cut(keys), strict=True):
            for key in both:
                if self._keys.get(key) == pair:
                    del self._keys[key]

    # -------------------------------------------------------------------------------------------- entering

    def _arm(self, now_ns: int) -> None:
        """Enter flows that are worth it: so far their packets go up, and SYN, FIN and RST are noted."""
        free = self._book.at(Stage.FREE)[1:]  # pair 0 is none
        tables, room, wanted, entered = self._engine.tables, len(free), 0, 0
        free = free[:_AT_ONCE]
        for worker, state in enumerate(self._engine.states):
            stretches = self._book.stretches(state)
            first = stretches[self._turns % len(stretches)]
            found = self._book.candidates(
                worker,
                tables,
                state,
                first,
                self._pair_of[worker],
                tick_of(now_ns),
                _WITHIN_TICKS,
                _AGE_TICKS,
                self._shortest,
            )
            wanted += len(found.slots)
            if not len(free):
                continue
            # Some may never be ours to carry; but where there is hardly any room, nobody need look at thousands.
            most = min(_AT_ONCE, _FOR_EACH * len(free))
            if len(found.slots) > most:
                found = found.some(self._some(np.arange(len(found.slots)), most))
            ends = _ends(ends_of(tables, found))
            keys = CacheMaps.keys(ends)
            exact, by_port = precedence(tables, found)
            chosen, pairs = self._claim(keys, self._are_theirs(keys, exact, by_port), free)
            if not len(pairs):
                continue
            free, entered = free[len(pairs) :], entered + len(pairs)
            if len(chosen) < len(found.slots):
                found, ends, by_port, keys = (
                    found.some(chosen),
                    ends[chosen],
                    by_port[chosen],
                    keys[chosen],
                )
            generations = self._book.note(pairs, found, by_port, tables, self._turns)
            self._pair_of[worker][found.slots] = pairs
            self.maps.enter(pairs, generations, ends, keys)
            if self._ways is not None:
                self._ways.choose(pairs)
        if entered:
            self._armed[self._turns] = now_ns, [Progress.of(state) for state in self._engine.states]
        self._began["entered"] += entered
        if wanted > room:
            self._began["turned away"] += wanted - room
            self._make_room(wanted - room, now_ns)

    def _are_theirs(self, keys: np.ndarray, exact: np.ndarray, by_node_port: np.ndarray) -> np.ndarray:
        """bool[n]: would packets with these keys, KEY[n, 2], find these flows?

        A flow may live in its table although its client's packets go elsewhere by now: replies keep it alive.  `exact`:
        its VIP is as specific as can be.  Clients on the node itself are nobody's here: the program does not see what
        they send, so that it could not note a SYN.
        """
        there, back = keys[:, 0], keys[:, 1]
        good = (self._destinations.vips_of(back) == 0) & ~of_addresses(there, self._node)
        others = np.flatnonzero(~exact)
        by_port, some = by_node_port[others], there[others]
        served = self._destinations.are_node_ports(some, self._steering.node_addresses)
        good[others] &= (self._destinations.vips_of(some) == ~by_port) & (~by_port | served)
        return np.asarray(good)

    def _claim(self, keys: np.ndarray, good: np.ndarray, free: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(indices, pairs): of flows with these keys, KEY[n, 2], those that are good, and new in both directions."""
        known = self._keys
        wanted = np.flatnonzero(good)
        ours = keys[wanted].reshape(-1).view(f"V{KEY.itemsize}").tolist()
        theres, backs = ours[::2], ours[1::2]
        if len(wanted) <= len(free) and len(set(ours)) == len(ours) and known.keys().isdisjoint(ours):
            pairs = free[: len(wanted)]  # as it nearly always is
            known.update(zip(theres, pairs.tolist(), strict=True))
            known.update(zip(backs, pairs.tolist(), strict=True))
            return wanted, pairs
        chosen: list[int] = []
        places = iter(free.tolist())
        for index, there, back in zip(wanted.tolist(), theres, backs, strict=True):
            if there not in known and back not in known:
                pair = next(places, 0)
                if not pair:
                    break
                known[there] = known[back] = pair
                chosen.append(index)
        return np.array(chosen, np.int64), free[: len(chosen)]

    def _make_room(self, number: int, now_ns: int) -> None:
        """The flows that have been idle for longest give way, if that is long enough."""
        live = self._book.at(Stage.LIVE)
        idle = self._idle_ns(live, now_ns)
        longest = np.argsort(-idle, kind="stable")[:number]
        self._release(live[longest[idle[longest] > _GIVES_WAY_NS]], "evicted")

    def _allow(self, now_ns: int) -> None:
        """Let packets be rewritten of flows that were armed, once nothing older is on its way to their worker."""
        states = self._engine.states
        armed = self._book.at(Stage.ARMED)
        turns, workers = self._book.rows["turn"][armed], self._book.rows["worker"][armed]
        for turn in np.unique(turns).tolist():
            since_ns, before = self._armed.get(turn, (now_ns, []))
            mine = turns == turn
            if self._turns - turn > _PATIENCE_TURNS:
                self._release(armed[mine], "lost")
            elif now_ns - since_ns >= _SETTLE_NS:
                for worker, progress in enumerate(before):
                    if Progress.of(states[worker]).has_passed(progress):
                        ready = armed[mine & (workers == worker)]
                        self._book.rows["allowed_ns"][ready] = now_ns
                        self._book.move(ready, Stage.LIVE)
                        self.maps.allow(ready)
        still = set(self._book.rows["turn"][self._book.at(Stage.ARMED)].tolist())
        self._armed = {turn: each for turn, each in self._armed.items() if turn in still}

    # ------------------------------------------------------------------------------------- the flows' lives

    def _note_touches(self, now_ns: int, pairs: np.ndarray | None = None) -> None:
        """Note until when workers have to remember flows: of these, or of live ones that they would forget too soon.

        A timeout is at least two leases long.  A live flow's expiry lags by at most a quarter of that, and a round,
        which is at most a quarter of a lease; so it is more than a lease ahead whenever the lease is renewed.
        """
        leaving = pairs is not None
        if pairs is None:
            pairs = self._book.at(Stage.LIVE)
        touches, later, left, timeouts = self._book.touches(
            pairs, self._last_seen_ns(pairs), self._engine.tables, self._engine.states, tick_of(now_ns)
        )
        soon = int(3 * _ROUND_S * _NS / NS_PER_TICK)
        due = (later > 0) & ((later >= timeouts // 4) | (left <= soon) | leaving)
        workers = self._book.rows["worker"][pairs]
        for worker, owed in enumerate(self._owed):
            some = touches[due & (workers == worker)]
            if len(some):
                owed.append(some)

    def _send_touches(self) -> None:
        """Tell the workers. One that does not answer is asked again; then its flows are given back."""
        for worker, owed in enumerate(self._owed):
            if not owed:
                continue
            try:
                self._engine.workers[worker].touch(np.concatenate(owed))
                self._failures[worker] = 0
                owed.clear()
            except DriverError as error:
                self._lines.append(str(error))
                self._failures[worker] += 1
                if self._failures[worker] >= _FAILURES:
                    self._failures[worker] = 0
                    owed.clear()
                    used = self._used()
                    self._release(used[self._book.rows["worker"][used] == worker], "failed")

    # ------------------------------------------------------------------------------------ what there is to say

    def refresh(self) -> None:
        """Count what has come up to now."""
        self._tally(self._used())

    def _tally(self, pairs: np.ndarray) -> None:
        packets = np.stack([self.maps.rows["packets"][2 * pairs + way] for way in (0, 1)], axis=1)
        sizes = np.stack([self.maps.rows["bytes"][2 * pairs + way] for way in (0, 1)], axis=1)
        self._book.tally(pairs, packets, sizes, self.counts)

    def carried(self, worker: int, slot: int) -> Carried | None:
        """A flow as things are, None: the kernel does not carry it."""
        if slot >= len(self._pair_of[worker]):
            return None
        pair = int(self._pair_of[worker][slot])
        if not pair or self._book.stages[pair] != Stage.LIVE:
            return None
        pairs = np.array([pair])
        if self._closed(pairs)[0]:
            return None
        now = tick_of(time.monotonic_ns())
        _, later, left, _ = self._book.touches(
            pairs, self._last_seen_ns(pairs), self._engine.tables, self._engine.states, now
        )
        ways = ("route", "route") if self._ways is None else self._ways.of(pair)
        return Carried(seconds_left(later, left), ways)

    def report(self) -> CacheReport:
        if self._last_words is not None:
            return self._last_words
        stats, steered = self.maps.stats(), self._steering.stats()
        ways, because = ({}, {}) if self._ways is None else self._ways.summary(self._book.at(Stage.LIVE))
        return CacheReport(
            on=not self.failure,
            why=self.failure,
            flows=int(np.count_nonzero(self._book.stages == Stage.LIVE)),
            capacity=self.maps.pairs,
            hits=stats.hits,
            came_up=steered.forward + steered.returned,
            closed=stats.closed,
            lapsed=stats.lapsed,
            failed=stats.failed,
            entered=self._began["entered"],
            turned_away=self._began["turned away"],
            given_back=dict(self._ended),
            short=stats.short,
            ways=ways,
            because=because,
        )

    # ------------------------------------------------------------------------------------------------ the end

    def leave(self) -> None:
        """Let go, for a successor: flows go on, shortcuts for as long as their lease lasts."""
        if self._ways is not None:
            self._ways.leave()
        self.maps.close()

    def close(self) -> None:
        """Let nothing be left; what was counted can still be read. While steering still stands."""
        self.maps.lease(0)
        if self._ways is not None:
            self._ways.close()
        self.refresh()
        self._last_words = self.report()
        self.maps.drop()
        self._vault.drop(self._name)


def _cut(keys: np.ndarray) -> Iterator[tuple[bytes, bytes]]:
    """KEY[n, 2] as bytes."""
    data, size = keys.tobytes(), KEY.itemsize
    for at in range(0, len(data), 2 * size):
        yield data[at : at + size], data[at + size : at + 2 * size]


def _ends(found: Ends) -> np.ndarray:
    """ENDS[n]."""
    ends = np.zeros(len(found.family), ENDS)
    for name, addresses in found.addresses.items():
        ends[name], ends[f"{name}_port"] = addresses, found.ports[name]
    ends["protocol"], ends["family"] = found.protocol, found.family
    return ends
