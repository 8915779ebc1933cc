"""glibc keeps the memory of activations between frames instead of handing it back each time.

A frame's activations are blocks of some megabytes. glibc maps such blocks from the system and
unmaps them when they are freed, so every layer of every frame pays for fresh, zeroed pages: a third
of the student's time. Larger blocks, such as whole cines, are still mapped and handed back.
"""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Keys of mallopt(3)."""
_LARGEST_KEPT = 32 << 20
"""Blocks above this many bytes are mapped; more than 32 MiB is refused by glibc on 64 bits."""
_KEPT_AT_MOST = 128 << 20
"""Free bytes at the end of the heap above which they go back to the system."""


def keep_activations() -> bool:
    """Set it for this process; call it before the first frame.

    Returns
    -------
    bool
        Whether it took: False where the C library is another one.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT) and mallopt(_M_TRIM_THRESHOLD, _KEPT_AT_MOST)
    )
