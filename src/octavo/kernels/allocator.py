"""Settings of glibc's memory allocator. No effect on other systems."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def keep_freed_memory() -> None:
    """Make glibc's allocator keep freed memory for reuse, until `return_freed_memory` is called.

    A training step frees and allocates the same megabytes over and over. By default glibc returns large blocks to the
    kernel, which zeroes every page before handing it out again; that took a third of the time of a small model's step.
    The largest blocks (over 64 MiB) are still returned: they need contiguous space, which the holes between kept blocks
    seldom offer. For two layers of GPT-2's size, keeping them too took 2.9 GB for 2.1 GB in use, and the step was no
    faster.
    """
    # glibc before 2.35 accepts at most 32 MiB. If it refuses both, leave its self-adjusting thresholds alone.
    if _mallopt(_M_MMAP_THRESHOLD, 64 << 20) or _mallopt(_M_MMAP_THRESHOLD, 32 << 20):
        _mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def return_freed_memory() -> None:
    """Make glibc's allocator return blocks of a megabyte or more to the kernel, until `keep_freed_memory` is called.

    Activation checkpointing fragments the heap: it frees large tensors between small ones that stay. 300 MB in use took
    1,150 MB, and 430 MB with this.
    """
    _mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def _mallopt(option: int, value: int) -> bool:
    """Set an option of the allocator. Returns whether there is such an option and it accepts the value."""
    if not sys.platform.startswith("linux"):
        return False
    function = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return function is not None and bool(function(option, value))
