"""Newton-Schulz iterations of Muon in C, on Intel's matrix unit: newton_schulz.h, a part of training.c.

Axis letters: `N` squares, `C` width.
"""

import ctypes
import functools

import torch
from torch import Tensor

from octavo.kernels.training import load_training_library
from octavo.native_library import UnavailableError

_MAX_WIDTH = 256  # 512 is as fast in PyTorch: the matrices of a square no longer fit in a core's cache


class _NewtonSchulz(ctypes.Structure):
    _fields_ = (
        ("N", ctypes.c_int64),
        ("C", ctypes.c_int64),
        ("iterations", ctypes.c_int64),
        ("a", ctypes.c_float),
        ("b", ctypes.c_float),
        ("c", ctypes.c_float),
        ("squares", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
    )


def is_supported(squares: Tensor) -> bool:
    """Whether `newton_schulz` can run on these squares (N, C, C), on this processor."""
    fits = squares.size(-1) % 32 == 0 and squares.size(-1) <= _MAX_WIDTH and squares.is_contiguous()
    return squares.device.type == "cpu" and squares.dtype == torch.bfloat16 and fits and _load() is not None


def newton_schulz(squares: Tensor, coefficients: tuple[float, float, float], iterations: int) -> Tensor:
    """Divide each of the squares (N, C, C) by its norm, run the iterations on it, and replace it by the result."""
    library, threads = _load(), torch.get_num_threads()
    assert library is not None
    N, C, _ = squares.shape
    workspace = torch.empty(threads, 6, C, C, dtype=squares.dtype)
    argument = _NewtonSchulz(N, C, iterations, *coefficients, squares.data_ptr(), workspace.data_ptr())
    library.newton_schulz(ctypes.byref(argument), threads)
    return squares


@functools.cache
def _load() -> ctypes.CDLL | None:
    """The library, or None if it can't be used or the processor has no AMX."""
    try:
        library = load_training_library().functions
    except UnavailableError:  # reported by the fused step, if training uses it
        return None
    return library if library.has_newton_schulz() else None
