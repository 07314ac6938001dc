"""Fused kernels of a training step in C: calls of training.c, which `native_library` loads.

Each method of `TrainingKernels` returns a call: a function without arguments that makes one pass over the tensors that
it was made for, with PyTorch's own threads. A step makes its calls once, and runs them for every batch.

Tensors are contiguous and on the CPU. Activations are bf16 if the `TrainingKernels` were built with `bf16`; all other
tensors are float32, except ids and targets, which are int64. None of this is checked.

Axis letters: `B` sequences, `T` positions, `N = B T` rows, `C` width, `H` heads, `D` head width, `V` vocabulary, `K`
chunks of rows, `P` parts: 3 for queries, keys and values, 1 for the output of all heads.
"""

import ctypes
import functools
import hashlib
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from octavo.kernels.openmp import find_openmp
from octavo.native_library import Library, UnavailableError, load_library

Call = Callable[[], object]

_CHUNK_ROWS = 32  # as in training.c
_MAX_POSITIONS = _MAX_HEAD_WIDTH = 128  # the matrices of a head must fit on the stack of a thread, and in its cache
_pointer, _int, _long, _float = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float


def count_chunks(rows: int) -> int:
    """K: into how many chunks rows are divided. Sums over rows are computed for each chunk."""
    return -(-rows // _CHUNK_ROWS)


def has_fused_attention(T: int, D: int, bf16: bool) -> bool:
    """Whether `attention_forward` and `attention_backward` take such heads, and are faster than matmuls and a softmax.

    They are 1.2 to 3 times as fast (measured with AVX-512, AVX2 and SSE2), except where AMX multiplies large matrices.
    """
    has_fast_matmuls = bf16 and T * D > 4096 and torch.cpu._is_amx_tile_supported()
    return T <= _MAX_POSITIONS and D <= _MAX_HEAD_WIDTH and not has_fast_matmuls


# The structs of training.c, field by field.


class Dropout(ctypes.Structure):
    """What a dropout drops: a function of its probability, a seed, and the number of each row in the whole batch."""

    _fields_ = (("key", ctypes.c_uint32 * 2), ("threshold", ctypes.c_uint32), ("scale", _float), ("first_row", _long))

    def __init__(self, p: float) -> None:
        super().__init__(threshold=min(round(p * 2**32), 2**32 - 1), scale=1 / (1 - p) if p < 1 else 0)

    def set_seed(self, seed: int, number: int, first_row: int) -> None:
        """Set what the next calls drop. `number` says which of the model's dropouts this is."""
        digest = hashlib.blake2b(f"{seed} {number}".encode(), digest_size=8).digest()
        self.key = (ctypes.c_uint32 * 2).from_buffer_copy(digest)
        self.first_row = first_row


class Embed(ctypes.Structure):
    _fields_ = (
        ("B", _long),
        ("T", _long),
        ("C", _long),
        ("bf16", _int),
        ("ids", _pointer),
        ("ids_stride", _long),
        ("wte", _pointer),
        ("wpe", _pointer),
        ("x", _pointer),
        ("wte_gradient", _pointer),
        ("wpe_gradient", _pointer),
        ("dropout", ctypes.POINTER(Dropout)),
    )


class _Norm(ctypes.Structure):
    _fields_ = (
        ("N", _long),
        ("C", _long),
        ("bf16", _int),
        ("x_before", _pointer),
        ("x", _pointer),
        ("branch", _pointer),
        ("bias", _pointer),
        ("gain", _pointer),
        ("norm_bias", _pointer),
        ("h", _pointer),
        ("mean", _pointer),
        ("rstd", _pointer),
        ("x_gradient", _pointer),
        ("has_gradient", _int),
        ("h_gradient", _pointer),
        ("branch_gradient", _pointer),
        ("sums", _pointer),
        ("dropout", ctypes.POINTER(Dropout)),
    )


class _Heads(ctypes.Structure):
    _fields_ = (
        ("B", _long),
        ("T", _long),
        ("H", _long),
        ("D", _long),
        ("P", _long),
        ("bf16", _int),
        ("rows", _pointer),
        ("parts", _pointer),
        ("bias", _pointer),
        ("sums", _pointer),
    )


class _Softmax(ctypes.Structure):
    _fields_ = (
        ("rows", _long),
        ("T", _long),
        ("bf16", _int),
        ("scale", _float),
        ("weights", _pointer),
        ("gradient", _pointer),
    )


class _Attention(ctypes.Structure):
    _fields_ = (
        ("B", _long),
        ("T", _long),
        ("H", _long),
        ("D", _long),
        ("bf16", _int),
        ("scale", _float),
        ("qkv", _pointer),
        ("bias", _pointer),
        ("y", _pointer),
        ("gradient", _pointer),
        ("sums", _pointer),
    )


class _Gelu(ctypes.Structure):
    _fields_ = (
        ("N", _long),
        ("C", _long),
        ("bf16", _int),
        ("exact", _int),
        ("x", _pointer),
        ("bias", _pointer),
        ("y", _pointer),
        ("sums", _pointer),
    )


class CrossEntropy(ctypes.Structure):
    _fields_ = (
        ("B", _long),
        ("T", _long),
        ("V", _long),
        ("bf16", _int),
        ("scale", _float),
        ("logits", _pointer),
        ("targets", _pointer),
        ("ids_stride", _long),
        ("losses", _pointer),
    )


class _Sums(ctypes.Structure):
    _fields_ = (
        ("chunks", _long),
        ("stride", _long),
        ("width", _long),
        ("bf16", _int),
        ("add", _int),
        ("sums", _pointer),
        ("to", _pointer),
    )


class _Accumulate(ctypes.Structure):
    _fields_ = (
        ("parts", _long),
        ("count", _long),
        ("bf16", _int),
        ("add", _int),
        ("from", _pointer),
        ("to", _pointer),
    )


class TrainingKernels:
    """The functions of training.c, for activations in bf16 or float32.

    Raises `UnavailableError` if the C code can't be compiled or may not be used.
    """

    def __init__(self, bf16: bool) -> None:
        library = load_training_library()
        self.notice = library.notice
        self._library, self._bf16 = library.functions, int(bf16)
        self._threads = ctypes.c_int(1)

    def update_threads(self) -> None:
        """Let all calls run in as many threads as PyTorch's operations do now."""
        self._threads.value = torch.get_num_threads()

    def embed_forward(self, embed: Embed) -> Call:
        """x (N, C) = dropout(wte[ids] + wpe)."""
        return self._call("embed_forward", embed)

    def embed_backward(self, embed: Embed) -> Call:
        """The backward of `embed_forward`: add to the gradients of wte and wpe, from the gradient of x (N, C)."""
        return self._call("embed_backward", embed)

    def norm_forward(
        self,
        norm: nn.LayerNorm,
        x: Tensor,
        h: Tensor,
        statistics: Tensor,
        branch: tuple[Tensor, Tensor, Tensor | None, Dropout] | None = None,
    ) -> Call:
        """h (N, C) = norm(x), with its statistics (2, N): mean and 1 / standard deviation.

        With a branch (previous x, its output, bias, dropout), first writes x = previous x + dropout(output + bias).
        """
        before, y, bias, dropout = branch or (x, None, None, None)
        addresses = map(_address, (before, x, y, bias, norm.weight, norm.bias, h, *statistics))
        return self._call("norm_forward", _Norm(*x.shape, self._bf16, *addresses, dropout=_reference(dropout)))

    def norm_backward(
        self,
        norm: nn.LayerNorm,
        x: Tensor,
        statistics: Tensor,
        x_gradient: Tensor,
        h_gradient: Tensor,
        sums: Tensor,
        has_gradient: bool,
        branch: tuple[Tensor, Dropout] | None = None,
    ) -> Call:
        """The backward of `norm_forward`: add to the gradient of x (N, C), from the gradient of h.

        Without `has_gradient`, the gradient of x is written, not added to. With a branch (its gradient (N, C), its
        dropout), writes that gradient too. Writes the sums over each chunk of rows, (K, 3, C): the gradients of the
        gain, of the norm's bias, and of the branch's bias.
        """
        branch_gradient, dropout = branch or (None, None)
        addresses = {
            "x": x,
            "gain": norm.weight,
            "mean": statistics[0],
            "rstd": statistics[1],
            "x_gradient": x_gradient,
            "h_gradient": h_gradient,
            "branch_gradient": branch_gradient,
            "sums": sums,
        }
        argument = _Norm(*x.shape, self._bf16, has_gradient=has_gradient, dropout=_reference(dropout))
        for name, tensor in addresses.items():
            setattr(argument, name, _address(tensor))
        return self._call("norm_backward", argument)

    def split_heads(self, rows: Tensor, parts: Tensor, bias: Tensor | None = None) -> Call:
        """parts (P, B, H, T, D) = rows (B T, P H D) + bias."""
        return self._call("split_heads", self._heads(rows, parts, bias, None))

    def merge_heads(self, parts: Tensor, rows: Tensor, sums: Tensor | None = None) -> Call:
        """rows (B T, P H D) = parts (P, B, H, T, D), and their sums over each chunk of rows, (K, P H D)."""
        return self._call("merge_heads", self._heads(rows, parts, None, sums))

    def softmax_forward(self, scores: Tensor, scale: float) -> Call:
        """Turn scores (B H, T, T) into the causal softmax of `scale` times the scores, with 0 above the diagonal."""
        return self._call("softmax_forward", self._softmax(scores, None, scale))

    def softmax_backward(self, weights: Tensor, gradient: Tensor, scale: float) -> Call:
        """Turn the gradient of the softmax (B H, T, T) into that of the scores."""
        return self._call("softmax_backward", self._softmax(weights, gradient, scale))

    def attention_forward(self, qkv: Tensor, bias: Tensor | None, y: Tensor, heads: int) -> Call:
        """y (B, T, C) = the causal attention of qkv (B, T, 3 C) + bias."""
        return self._call("attention_forward", self._attention(heads, qkv, bias, y))

    def attention_backward(
        self, qkv: Tensor, bias: Tensor | None, y_gradient: Tensor, gradient: Tensor, sums: Tensor, heads: int
    ) -> Call:
        """The gradient of qkv (B, T, 3 C), and its sums over each sequence, (B, 3 C)."""
        return self._call("attention_backward", self._attention(heads, qkv, bias, y_gradient, gradient, sums))

    def gelu_forward(self, x: Tensor, bias: Tensor | None, y: Tensor, exact: bool) -> Call:
        """y (N, C) = gelu(x + bias), with the error function if `exact`, otherwise with tanh."""
        argument = _Gelu(*x.shape, self._bf16, exact, *map(_address, (x, bias, y)))
        return self._call("gelu_forward", argument)

    def gelu_backward(self, x: Tensor, bias: Tensor | None, gradient: Tensor, sums: Tensor, exact: bool) -> Call:
        """Turn the gradient of y (N, C) into that of x. Writes its sums over each chunk of rows, (K, C)."""
        argument = _Gelu(*x.shape, self._bf16, exact, *map(_address, (x, bias, gradient, sums)))
        return self._call("gelu_backward", argument)

    def cross_entropy(self, cross_entropy: CrossEntropy) -> Call:
        """The losses (N,) of logits (N, V); turns the logits into the gradients of `scale` times the summed loss."""
        return self._call("cross_entropy", cross_entropy)

    def add_sums(self, sums: Tensor, to: Tensor, add: bool) -> Call:
        """Add up sums (K, width), whose rows may be strided. Write the total to `to`, a gradient, or add it."""
        argument = _Sums(sums.size(0), sums.stride(0), sums.size(1), 0, add, _address(sums), _address(to))
        return self._call("add_sums", argument)

    def accumulate(self, parts: Tensor, to: Tensor, add: bool) -> Call:
        """Add up partial sums (parts, ...) of a gradient, in bf16 or float32. Write the total to `to`, or add it."""
        is_bf16 = parts.dtype == torch.bfloat16
        argument = _Accumulate(len(parts), to.numel(), is_bf16, add, _address(parts), _address(to))
        return self._call("accumulate", argument)

    def _heads(self, rows: Tensor, parts: Tensor, bias: Tensor | None, sums: Tensor | None) -> _Heads:
        P, B, H, T, D = parts.shape
        return _Heads(B, T, H, D, P, self._bf16, *map(_address, (rows, parts, bias, sums)))

    def _attention(self, heads: int, qkv: Tensor, bias: Tensor | None, y: Tensor, *others: Tensor) -> _Attention:
        B, T, C = y.shape
        D = C // heads
        return _Attention(B, T, heads, D, self._bf16, D**-0.5, *map(_address, (qkv, bias, y, *others)))

    def _softmax(self, weights: Tensor, gradient: Tensor | None, scale: float) -> _Softmax:
        T = weights.size(-1)
        return _Softmax(weights.numel() // T, T, self._bf16, scale, _address(weights), _address(gradient))

    def _call(self, name: str, argument: ctypes.Structure) -> Call:
        function = getattr(self._library, name)
        function.restype, function.argtypes = None, (_pointer, _int)
        return functools.partial(function, ctypes.byref(argument), self._threads)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _reference(dropout: Dropout | None) -> "ctypes._Pointer[Dropout]":
    return ctypes.pointer(dropout or _NO_DROPOUT)


_NO_DROPOUT = Dropout(0.0)


def load_training_library() -> Library:
    """Load the library, and let it run in PyTorch's threads.

    Raises `UnavailableError` if it is missing, or PyTorch has another runtime than GNU OpenMP.
    """
    library, openmp = load_library(), find_openmp()
    if openmp is None:
        raise UnavailableError(f"PyTorch has no GNU OpenMP on {sys.platform}")
    library.functions.use_openmp(*(ctypes.cast(f, _pointer) for f in (openmp.GOMP_parallel, openmp.omp_get_thread_num)))
    return library
