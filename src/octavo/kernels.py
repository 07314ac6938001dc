"""Faster ways to the same arithmetic, where PyTorch's default on a CPU is not the best that it has.

    with kernels.fast_path(device):
        ...  # the model's forward and backward, unchanged

On a CPU three things change inside, on a GPU one; what is computed stays. `tests/test_kernels.py` holds each against
the default.
The figures were measured on 2 cores of an AMD Zen 5; `docs/speed.md` has the table.

The axis letters: `B` sequences, `H` heads, `T` positions, `D` width of a head.
"""

import contextlib
import ctypes
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

# Beyond, the scores (B, H, T, T) fall out of the caches, and the fused kernel skips more than half of them.
MAX_MATMUL_ATTENTION_LENGTH = 512
_ON_GPU = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_MATMUL: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # PyTorch's stubs don't know it


@contextlib.contextmanager
def fast_path(device: torch.device) -> Iterator[None]:
    """The context in which products, attention and dropout take the faster way."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0):
        # PyTorch prefers its own flash attention; cuDNN's is faster on Hopper and after.
        with sdpa_kernel(_ON_GPU, set_priority=True):
            yield
        return
    if device.type != "cpu":
        yield
        return
    with _by_onednn, _Replaced():
        yield


class _ByOneDNN:
    """The context in which float32 products are oneDNN's, where those are exact: PyTorch's switch is the process's, so
    the first thread to enter turns it, and the last to leave turns it back."""

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, ""

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = _MATMUL.fp32_precision
                if is_onednn_exact():
                    _MATMUL.fp32_precision = "bf16"
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                _MATMUL.fp32_precision = self._before


_by_onednn = _ByOneDNN()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """The context in which PyTorch's operations on a CPU run in the thread that calls them.

    For small ones between others' work: OpenMP's threads go on spinning when theirs is done, on the core that
    somebody else may need.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@functools.cache
def keep_freed_memory() -> None:
    """Let the allocator keep what is freed, from here on, where it is glibc's.

    A step frees and takes the same megabytes again and again. glibc hands large ones back to the system each time, and
    the system clears every page before it gives them out anew: a third of a small model's step. The largest go back
    nevertheless. They have to lie in one piece, so kept holes seldom fit them: with two of GPT-2's layers, 2.9 GB were
    held for 2.1 GB, and the step was no faster.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(AttributeError):  # musl has no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        # Before 2.35 it takes no more than 32 MB. Refused both, it must keep adapting its thresholds by itself.
        if mallopt(_M_MMAP_THRESHOLD, 64 << 20) or mallopt(_M_MMAP_THRESHOLD, 32 << 20):
            mallopt(_M_TRIM_THRESHOLD, 1 << 30)


@functools.cache
def is_onednn_exact() -> bool:
    """Whether oneDNN multiplies float32 in float32 although it is allowed bf16.

    PyTorch sends float32 products to MKL, which runs at less than half of its speed on a CPU that isn't Intel's.
    The one switch that sends them to oneDNN also permits bf16 inside, which only CPUs with AMX make use of.
    So this asks for a product that bf16 would round, and looks.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    before = _MATMUL.fp32_precision
    exact = []
    try:
        _MATMUL.fp32_precision = "bf16"
        for batch, rows, width in ((1, 64, 64), (1, 768, 512), (48, 64, 32)):
            # bf16 has 8 bits: every one of these would become 1
            x = 1 + torch.arange(batch * rows * width).view(batch, rows, width) * 2.0**-24
            eye = torch.eye(width).expand(batch, width, width)
            exact += [torch.equal(x @ eye, x), torch.equal(eye @ x.mT, x.mT)]
        return all(exact)
    finally:
        _MATMUL.fp32_precision = before


def matmul_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout_p: float = 0.0,
              is_causal: bool = False) -> Tensor:  # fmt: skip
    """Causal attention over short blocks as two batched products; whatever else, by PyTorch's own.

    PyTorch's fused kernel cuts heads into tiles, and at 64 to 512 positions spends its time on calls: forward and
    backward take it 3 to 5 times as long as this in bf16, 1 to 2 times in float32.
    """
    B, H, T, D = q.shape
    if not is_causal or mask is not None or dropout_p or T > MAX_MATMUL_ATTENTION_LENGTH:
        return F.scaled_dot_product_attention(q, k, v, mask, dropout_p, is_causal)
    q, k, v = (each.reshape(B * H, T, D) for each in (q, k, v))
    scores = torch.baddbmm(_future(T, q.dtype), q, k.mT, alpha=D**-0.5)  # (B * H, T, T)
    return torch.bmm(scores.softmax(-1), v).view(B, H, T, D)


def fast_dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Dropout from 16 random bits for each number, a quarter of the time of PyTorch's 64; p to within 1e-5."""
    if not training or p == 0:
        return x
    bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    dropped = round(p * 2**16)
    keep = bits[: x.numel()].view(x.shape) >= dropped - 2**15
    return x * keep.to(x.dtype).mul_(1 / (1 - dropped / 2**16))


REPLACEMENTS: dict[Any, Callable[..., Tensor]] = {
    F.scaled_dot_product_attention: matmul_attention,
    F.dropout: fast_dropout,
}


class _Replaced(TorchFunctionMode):
    """Calls of the functions in `REPLACEMENTS` take the faster one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return REPLACEMENTS.get(func, func)(*args, **(kwargs or {}))


@functools.lru_cache(maxsize=8)
def _future(T: int, dtype: torch.dtype) -> Tensor:
    """What is added to the scores (T, T) so that no position sees a later one."""
    with torch.inference_mode(False):  # training may use what an evaluation made first
        return torch.full((T, T), -torch.inf, dtype=dtype).triu(1)
