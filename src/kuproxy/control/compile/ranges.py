"""Blocks of prefixes: the clients that a VIP lets in, and who is a pod or the node."""

from collections.abc import Sequence

from kuproxy.control.compile.records import Block
from kuproxy.control.compile.state import TableState
from kuproxy.control.compile.words import address_words
from kuproxy.dataplane.layout import RANGE_ARENA, Tables
from kuproxy.dataplane.writer import Arena
from kuproxy.model.vip import Prefix


class RangeBlocks(TableState):
    """A new block is written beside the old one and published with one store."""

    def __init__(self, tables: Tables):
        super().__init__(tables)
        self._ranges = Arena(RANGE_ARENA, "source ranges")

    def _write_block(self, prefixes: Sequence[Prefix]) -> Block | None:
        """A block of these prefixes, which nobody sees yet; None if there are none."""
        if not prefixes:
            return None
        log2 = len(prefixes).bit_length()
        block = Block(self._ranges.allocate(log2), log2)
        rows = self.tables.ranges[block.offset : block.offset + len(prefixes) + 1]
        rows[0]["hi"] = len(prefixes)
        for row, prefix in zip(rows[1:], prefixes, strict=True):
            net_hi, net_lo = address_words(prefix.network_address)
            mask_hi, mask_lo = address_words(prefix.netmask)
            row["hi"], row["lo"], row["mask_hi"], row["mask_lo"] = net_hi, net_lo, mask_hi, mask_lo
        return block

    def _give_up_block(self, block: Block | None) -> None:
        """Free it as soon as nobody can read it any more; it must be out of sight already."""
        if block is not None:
            self._retire(lambda: self._ranges.free(block.offset, block.log2))
