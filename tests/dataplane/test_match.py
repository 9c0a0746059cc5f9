"""The match table against a dictionary, and its shape: no linear search, whatever has come and gone."""

import os
from ipaddress import IPv6Address, IPv6Network

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kuproxy.control.compile import address_words
from kuproxy.dataplane.layout import MATCH, T_MATCH, Region, Tables
from kuproxy.dataplane.match import TOMBSTONE, mask_address, match_find
from kuproxy.dataplane.writer import MatchWriter, match_arena
from kuproxy.errors import TableFullError

SMALL_ARENA = 1 << 16


def small_tables() -> Tables:
    """Tables of which only header and match table exist."""
    nothing = np.zeros(0, np.uint8)
    header = np.zeros(128, np.uint64)
    others = dict.fromkeys(Tables._fields, nothing)
    return Tables(**others | {"header": header, "match": np.zeros(SMALL_ARENA, MATCH)})


keys = st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 40))


class MatchMachine(RuleBasedStateMachine):
    """Few keys, so that deletions and insertions meet; retired tables are freed at once or later."""

    def __init__(self):
        super().__init__()
        self.retired = []
        self.tables = small_tables()
        self.writer = MatchWriter(self.tables, T_MATCH, match_arena(self.tables), self.retired.append)
        self.model = {}

    @rule(key=keys, value=st.integers(1, 2**32 - 1))
    def put(self, key, value):
        self.writer.put(np.uint64(key[0]), np.uint64(key[1]), np.uint64(key[2]), value)
        self.model[key] = value

    @rule(key=keys)
    def delete(self, key):
        if self.model.pop(key, None) is not None:
            self.writer.delete(np.uint64(key[0]), np.uint64(key[1]), np.uint64(key[2]))

    @rule(first=st.integers(100, 10_000), count=st.integers(1, 200))
    def come_and_go(self, first, count):
        for key in range(first, first + count):
            self.writer.put(np.uint64(9), np.uint64(9), np.uint64(key), 1)
        for key in range(first, first + count):
            self.writer.delete(np.uint64(9), np.uint64(9), np.uint64(key))

    @rule()
    def quiesce(self):
        for action in self.retired:
            action()
        self.retired.clear()

    @invariant()
    def same_answers(self):
        location = self.tables.header[T_MATCH]
        for hi in range(4):
            for lo in range(4):
                for key in range(1, 41):
                    found = match_find(
                        self.tables.match, location, np.uint64(hi), np.uint64(lo), np.uint64(key)
                    )
                    assert int(found) == self.model.get((hi, lo, key), 0)
        assert self.writer.entries == len(self.model)


TestMatch = MatchMachine.TestCase
TestMatch.settings = settings(max_examples=20, stateful_step_count=30, deadline=None)


def longest_run(tables: Tables) -> int:
    """Slots that the longest probe sequence can visit."""
    location = int(tables.header[T_MATCH])
    base, size = location >> 8, 1 << (location & 0xFF)
    taken = tables.match["key"][base : base + size] != 0
    longest = run = 0
    for slot in np.concatenate([taken, taken]):
        run = run + 1 if slot else 0
        longest = max(longest, run)
    return longest


def test_growth_keeps_the_table_half_empty_and_probes_short():
    tables = small_tables()
    writer = MatchWriter(tables, T_MATCH, match_arena(tables), lambda action: action())
    for number in range(4000):
        writer.put(np.uint64(number), np.uint64(number * 7), np.uint64(1 << 56 | 80), number + 1)
    location = int(tables.header[T_MATCH])
    assert 1 << (location & 0xFF) >= 2 * 4000
    assert longest_run(tables) < 100


def test_tombstones_are_cleared_by_rebuilding():
    tables = small_tables()
    writer = MatchWriter(tables, T_MATCH, match_arena(tables), lambda action: action())
    for number in range(20_000):
        writer.put(np.uint64(1), np.uint64(number), np.uint64(5), 1)
        writer.delete(np.uint64(1), np.uint64(number), np.uint64(5))
    location = int(tables.header[T_MATCH])
    assert location & 0xFF == 6, "the table of nothing is still the smallest"
    live = tables.match["key"][location >> 8 : (location >> 8) + 64]
    assert np.count_nonzero(live == TOMBSTONE) <= 32


@given(st.integers(0, 2**128 - 1), st.integers(0, 128))
def test_mask_address_equals_ipaddress(number, length):
    network = IPv6Network((number, length), strict=False)
    hi, lo = address_words(IPv6Address(number))
    assert mask_address(hi, lo, length) == address_words(network.network_address)


def test_region_pages_appear_when_touched():
    """Capacity costs nothing: the tables' 4 GiB of ring slots are address space."""
    region = Region((("a", "<u4", (1 << 24,)), ("b", "u1", (10,))))
    region.arrays["a"][1 << 20] = 7
    assert os.fstat(region.fd).st_blocks * 512 <= 4 << 20
    other = Region(region.spec, os.dup(region.fd))
    assert other.arrays["a"][1 << 20] == 7
    region.close()
    other.close()


def test_a_region_that_is_dropped_gives_its_descriptor_back():
    """Its arrays can be used for as long as somebody has them, whatever became of the region."""
    before = os.listdir("/proc/self/fd")
    array = Region((("a", "<u4", (1024,)),)).arrays["a"]
    array[3] = 7
    assert array.sum() == 7
    del array
    assert os.listdir("/proc/self/fd") == before


def test_a_full_arena_is_refused_and_the_table_stays():
    tables = small_tables()
    tables = tables._replace(match=tables.match[:512])
    writer = MatchWriter(tables, T_MATCH, match_arena(tables), lambda action: None)
    with pytest.raises(TableFullError, match="match entries"):
        for number in range(512):
            writer.put(np.uint64(1), np.uint64(number), np.uint64(5), number + 1)
    assert (
        int(match_find(tables.match, tables.header[T_MATCH], np.uint64(1), np.uint64(7), np.uint64(5))) == 8
    )
