"""Muon in C: its elementwise work (muon.h), and the Newton-Schulz iterations on Intel's matrix unit (newton_schulz.h).

Both are parts of training.c. Axis letters: `N` squares, `C` width.
"""

import ctypes
import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from octavo.kernels.training import load_training_library
from octavo.native_library import UnavailableError

_MAX_WIDTH = 256  # 512 is as fast in PyTorch: the matrices of a square no longer fit in a core's cache
_LANES = 16  # a width must be a multiple of the largest number of floats in a vector


class Matrix(NamedTuple):
    """A weight matrix, its gradient, and the running mean of its gradients; all float32 and contiguous."""

    weight: Tensor
    gradient: Tensor
    momentum: Tensor


class _Matrix(ctypes.Structure):
    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("gradient", ctypes.c_void_p),
        ("momentum", ctypes.c_void_p),
        ("columns", ctypes.c_int64),
        ("first", ctypes.c_int64),
    )


class _Muon(ctypes.Structure):
    _fields_ = (
        ("N", ctypes.c_int64),
        ("C", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("matrices", ctypes.POINTER(_Matrix)),
        ("squares", ctypes.c_void_p),
        ("momentum", ctypes.c_float),
        ("gradient_weight", ctypes.c_float),
        ("decay", ctypes.c_float),
        ("learning_rate", ctypes.c_float),
    )


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


def is_elementwise_supported(squares: Tensor, tensors: Sequence[Tensor]) -> bool:
    """Whether `update_momentum` and `update_weights` can run on these squares (N, C, C) and tensors of the matrices."""
    return (
        _is_bf16_on_cpu(squares)
        and squares.size(-1) % _LANES == 0
        and all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in tensors)
        and _load() is not None
    )


def update_momentum(matrices: Sequence[Matrix], squares: Tensor, momentum: float) -> None:
    """Update the running means of the gradients, and write them with Nesterov's look-ahead to the squares."""
    _run("muon_momentum", matrices, squares, momentum=momentum, gradient_weight=1 - momentum)


def update_weights(matrices: Sequence[Matrix], squares: Tensor, decay: float, learning_rate: float) -> None:
    """Multiply the weights by `decay`, then subtract the squares times the learning rate."""
    _run("muon_update", matrices, squares, decay=decay, learning_rate=learning_rate)


def is_newton_schulz_supported(squares: Tensor) -> bool:
    """Whether `newton_schulz` can run on these squares (N, C, C), on this processor."""
    fits = squares.size(-1) % 32 == 0 and squares.size(-1) <= _MAX_WIDTH and squares.is_contiguous()
    return _is_bf16_on_cpu(squares) and fits and (library := _load()) is not None and library.has_newton_schulz()


def newton_schulz(squares: Tensor, coefficients: tuple[float, float, float], iterations: int) -> Tensor:
    """Divide each of the squares (N, C, C) by its norm, run the iterations on it, and replace it by the result."""
    library, threads = _load(), torch.get_num_threads()
    assert library is not None
    N, C, _ = squares.shape
    workspace = torch.empty(threads, 6, C, C, dtype=squares.dtype, device="cpu")
    argument = _NewtonSchulz(N, C, iterations, *coefficients, squares.data_ptr(), workspace.data_ptr())
    library.newton_schulz(ctypes.byref(argument), threads)
    return squares


def _run(function: str, matrices: Sequence[Matrix], squares: Tensor, **numbers: float) -> None:
    library = _load()
    assert library is not None
    N, C, _ = squares.shape
    array, first = (_Matrix * len(matrices))(), 0
    for number, matrix in enumerate(matrices):
        array[number] = _Matrix(*(tensor.data_ptr() for tensor in matrix), matrix.weight.size(1), first)
        first += matrix.weight.numel() // C**2
    assert first == N
    argument = _Muon(N, C, len(matrices), array, squares.data_ptr(), **numbers)
    getattr(library, function)(ctypes.byref(argument), torch.get_num_threads())


def _is_bf16_on_cpu(squares: Tensor) -> bool:
    return squares.device.type == "cpu" and squares.dtype == torch.bfloat16


@functools.cache
def _load() -> ctypes.CDLL | None:
    """The library, or None if it can't be used."""
    try:
        return load_training_library().functions
    except UnavailableError:  # reported by the fused step, if training uses it
        return None
