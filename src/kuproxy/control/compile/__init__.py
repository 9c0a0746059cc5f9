"""The only translator between the model and the tables: what changed in the store becomes what changes in the arrays.

Indices are stable: a VIP and a pod keep theirs as long as they exist, so flows survive every change around them. A
new ring is written beside the old one and published with one store. Removed pods stay, for their flows ("drain"),
until no flow refers to them and every worker has passed a quiescent point; their index then starts over with a new
generation.

A pod is known by address and port: when a VIP's target port changes, pods that took it are replaced by others.

`Compiler` is one class in layers, a file each: `state` (generations), `settings` (the header), `entries` (match
tables), `ring_rows`, `pods`, `vips`, and `adoption` (tables that another process wrote; `recover` reads them).
"""

from kuproxy.control.compile.adoption import Compiler
from kuproxy.control.compile.records import VipRecord
from kuproxy.control.compile.rings import ring_owners
from kuproxy.control.compile.words import address_words, key_word, prefix_length

__all__ = ["Compiler", "VipRecord", "address_words", "key_word", "prefix_length", "ring_owners"]
