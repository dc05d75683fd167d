"""How a CPU's memory is handed out; torch leaves it to the system, whose defaults are for small blocks."""

from __future__ import annotations

import ctypes
import os
import sys

# glibc's mallopt: blocks from this size on are mapped one by one, and go back to the system when freed.
M_MMAP_THRESHOLD, LARGE_BLOCK = -3, 8 * 2**20


def hand_out_large_blocks() -> None:
    """Returns large blocks to the system when they are freed, and maps them in large pages. On Linux alone.

    Left to itself glibc keeps freed blocks of up to 32 MB, between which larger ones no longer fit: an MoE layer
    at width 1664 held 1.3 GB after it had freed everything, and 0.3 GB with this. A fresh block costs a page
    fault for each 4 kB, three times its first use; torch can ask for large pages, before its first tensor.
    """
    if sys.platform != "linux":
        return
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # musl has none
        libc.mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)
