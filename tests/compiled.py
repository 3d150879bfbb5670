"""One folder for what all processes of a run of the tests compile."""

import os
import threading
from pathlib import Path

from jax._src import lru_cache


def share() -> None:
    """Lets this process write into it while others read: an entry is there once it is whole.

    JAX writes into the very file that others read.
    """
    lru_cache.LRUCache.put = _put


def _put(self: lru_cache.LRUCache, key: str, value: bytes) -> None:
    whole = Path(self.path) / f"{key}{lru_cache._CACHE_SUFFIX}"
    if not whole.exists():
        part = whole.with_name(f"{key}.{os.getpid()}.{threading.get_ident()}")
        part.write_bytes(value)
        part.replace(whole)
