"""A cache of compiled kernels that is read and never written: in an image, whose file system is read-only.

Numba takes a cache directory only if it can write there; with
`NUMBA_CACHE_LOCATOR_CLASSES=kuproxy.kept_cache.KeptCacheLocator` it takes one that is there.  What the cache lacks is
compiled and cannot be kept, which is an error that names the file: the cache was made for another processor
(`NUMBA_CPU_NAME`), by other versions, or before sources changed.
"""

import os

from numba.core.caching import UserProvidedCacheLocator

__all__ = ["KeptCacheLocator"]


class KeptCacheLocator(UserProvidedCacheLocator):
    """`$KUPROXY_CACHE` as it is; while it is being filled, like any other."""

    def ensure_cache_path(self) -> None:
        """Raises OSError, which makes Numba look elsewhere, if the directory is neither there nor can be made."""
        if not os.path.isdir(self.get_cache_path()):
            super().ensure_cache_path()
