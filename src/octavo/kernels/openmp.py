"""PyTorch's own OpenMP runtime, whose threads run its operations."""

import contextlib
import ctypes
import functools
from collections.abc import Iterator
from pathlib import Path

import torch


@functools.cache
def find_openmp() -> ctypes.CDLL | None:
    """GNU OpenMP as PyTorch has loaded it, or None where PyTorch has another runtime."""
    folder = Path(torch.__file__).parent / "lib"
    for path in [*folder.glob("libgomp*.so*"), *folder.glob("../../torch.libs/libgomp*.so*")]:
        return ctypes.CDLL(str(path))  # loaded already: this finds it
    return None


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run PyTorch's CPU operations in the calling thread.

    Use it for small operations while other threads have work: OpenMP's worker threads keep spinning after their share
    is done, on cores that the other threads need.

    OpenMP's own setting applies to the calling thread alone. `torch.set_num_threads` would also change the default of
    all threads that are started later.
    """
    openmp = find_openmp()
    set_threads = openmp.omp_set_num_threads if openmp else torch.set_num_threads
    threads = torch.get_num_threads()
    set_threads(1)
    try:
        yield
    finally:
        set_threads(threads)
