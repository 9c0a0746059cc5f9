"""Source ranges: which clients a VIP lets in. A short list per VIP, read from front to end."""

import numpy as np

from kuproxy.dataplane._jit import kernel


@kernel
def is_allowed(tables, offset, hi, lo):
    """Does the address lie in a range of the block at `offset` (VIP["ranges"], not 0)?"""
    count = np.int64(tables.ranges[offset]["hi"])
    for index in range(offset + 1, offset + 1 + count):
        entry = tables.ranges[index]
        if lo & entry["mask_lo"] == entry["lo"] and hi & entry["mask_hi"] == entry["hi"]:
            return True
    return False
