"""PyTorch's own OpenMP runtime, whose threads run its operations."""

import ctypes
import functools
from pathlib import Path

import torch


@functools.cache
def find_openmp() -> ctypes.CDLL | None:
    """GNU OpenMP as PyTorch has loaded it, or None where PyTorch has another runtime."""
    folder = Path(torch.__file__).parent / "lib"
    for path in [*folder.glob("libgomp*.so*"), *folder.glob("../../torch.libs/libgomp*.so*")]:
        return ctypes.CDLL(str(path))  # loaded already: this finds it
    return None
