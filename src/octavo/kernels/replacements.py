"""Faster CPU implementations of attention, dropout and float32 matmuls, swapped in under an unchanged model.

    with kernels.fast_path(device):
        loss = next_token_loss(model(ids), targets)  # same code, faster kernels

While `fast_path` is active, and only then:

- On a CPU `F.scaled_dot_product_attention` runs `matmul_attention`, two batched matmuls and a softmax, if the call is
  causal without a mask or attention dropout and has at most 512 positions. Other calls run PyTorch's kernel.
- On a CPU `F.dropout` runs `fast_dropout`, which draws 16 random bits per element instead of 64.
- On a CPU float32 matmuls run in oneDNN instead of MKL, if oneDNN is exact in float32 here (`is_onednn_exact`).
- On a GPU from Hopper on, `F.scaled_dot_product_attention` prefers cuDNN's kernel to PyTorch's flash attention. With a
  mask, which only a KV cache needs, cuDNN's is not used (`with_mask`): its results were wrong or NaN in some cases
  (pytorch 193893, 196678).

So the line of `model.py` that reads `scaled_dot_product_attention` may run `matmul_attention` below. The redirection is
a `TorchFunctionMode` (`_Replace`) for the current thread. Training, evaluation, generation and the lens enter
`fast_path` when PyTorch runs the model, except for single decode steps on a CPU. C code does not need it.

The results are the same up to rounding (dropout draws other random numbers): `tests/test_kernels.py` compares each
replacement with PyTorch's own. Speeds in the comments were measured on 2 cores of an AMD Zen 5; `docs/speed.md` has the
table.

Axis letters: `B` sequences in a batch, `H` heads, `T` positions, `D` head width.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from octavo.native_library import cpu_flags

# With more positions the scores (B, H, T, T) no longer fit in the caches, and the fused kernel, which skips the masked
# half, is faster.
MAX_MATMUL_ATTENTION_LENGTH = 512
_CUDA_ATTENTION = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
_MATMUL_BACKEND: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # missing in PyTorch's stubs


@contextlib.contextmanager
def fast_path(device: torch.device, with_mask: bool = False) -> Iterator[None]:
    """Run the block with the replacements listed above; no effect on MPS and on GPUs before Hopper.

    `with_mask`: attention in the block may have a mask.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0):
        with sdpa_kernel(_CUDA_ATTENTION[1:] if with_mask else _CUDA_ATTENTION, set_priority=True):
            yield
    elif device.type == "cpu":
        with onednn_matmuls, _Replace():
            yield
    else:
        yield


def matmul_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
) -> Tensor:
    """Causal attention over at most 512 positions as two batched matmuls; any other call runs PyTorch's kernel.

    q, k, v: (B, H, T, D). PyTorch's fused CPU kernel tiles each head; at 64 to 512 positions the overhead of its many
    small calls dominates. Its forward and backward take 3 to 5 times as long as this in bf16, 1 to 2 times in float32.
    """
    B, H, T, D = q.shape
    if not is_causal or attn_mask is not None or dropout_p or T > MAX_MATMUL_ATTENTION_LENGTH:
        return F.scaled_dot_product_attention(q, k, v, attn_mask, dropout_p, is_causal)
    q, k, v = (x.reshape(B * H, T, D) for x in (q, k, v))
    scores = torch.baddbmm(_causal_mask(T, q.dtype), q, k.mT, alpha=D**-0.5)  # (B * H, T, T)
    return torch.bmm(scores.softmax(-1), v).view(B, H, T, D)


def fast_dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Dropout that draws 16 random bits per element, in a quarter of the time of PyTorch's 64.

    The effective p is a multiple of 2**-16, within 1e-5 of the given one. `inplace` is accepted and ignored.
    """
    if not training or p == 0:
        return x
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device)
    bits = words.random_(-(2**63), None).view(torch.int16)
    threshold = round(p * 2**16)  # how many of the 2**16 values of 16 bits drop an element
    keep = bits[: x.numel()].view(x.shape) >= threshold - 2**15
    return x * keep.to(x.dtype).mul_(1 / (1 - threshold / 2**16))


REPLACEMENTS: dict[Any, Callable[..., Tensor]] = {
    F.scaled_dot_product_attention: matmul_attention,
    F.dropout: fast_dropout,
}


class _Replace(TorchFunctionMode):
    """Redirects calls of the functions in `REPLACEMENTS`. PyTorch disables the mode inside the replacement itself."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return REPLACEMENTS.get(func, func)(*args, **(kwargs or {}))


@functools.lru_cache(maxsize=8)
def _causal_mask(T: int, dtype: torch.dtype) -> Tensor:
    """(T, T): -inf above the diagonal, 0 elsewhere; added to the scores."""
    with torch.inference_mode(False):  # an inference tensor cached by an evaluation could not be used in training
        return torch.full((T, T), -torch.inf, dtype=dtype, device="cpu").triu(1)


class _OneDNNMatmuls:
    """A reentrant, thread-safe context in which float32 matmuls run in oneDNN, if that is exact.

    PyTorch's switch is global to the process, so the first thread to enter sets it and the last to leave restores it.
    """

    def __init__(self) -> None:
        self._lock, self._active, self._previous = threading.Lock(), 0, ""

    def __enter__(self) -> None:
        with self._lock:
            if not self._active:
                self._previous = _MATMUL_BACKEND.fp32_precision
                if is_onednn_exact():
                    _MATMUL_BACKEND.fp32_precision = "bf16"
            self._active += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._active -= 1
            if not self._active:
                _MATMUL_BACKEND.fp32_precision = self._previous


onednn_matmuls = _OneDNNMatmuls()


@functools.cache
def is_onednn_exact() -> bool:
    """Whether oneDNN multiplies float32 in float32 on this CPU even when it is permitted to use bf16.

    PyTorch sends float32 matmuls to MKL, which on CPUs not made by Intel runs at less than half the speed of oneDNN.
    The only switch that sends them to oneDNN, `fp32_precision = "bf16"`, also permits bf16 internally, which only CPUs
    with AMX make use of. On all others this function multiplies numbers that bf16 would round, and compares the result.
    With AMX it must not: the switch is global, so matmuls of other threads would be rounded meanwhile.
    """
    if not torch.backends.mkldnn.is_available() or "amx_bf16" in cpu_flags():  # type: ignore[no-untyped-call]
        return False
    previous = _MATMUL_BACKEND.fp32_precision
    exact = []
    try:
        _MATMUL_BACKEND.fp32_precision = "bf16"
        for batch, rows, width in ((1, 64, 64), (1, 768, 512), (48, 64, 32)):
            # Numbers just above 1. bf16 has 8 significant bits, so it would round nearly all of them.
            numbers = torch.arange(batch * rows * width, dtype=torch.float32, device="cpu")
            x = 1 + numbers.view(batch, rows, width) * 2.0**-24
            eye = torch.eye(width, dtype=torch.float32, device="cpu").expand(batch, width, width)
            exact += [torch.equal(x @ eye, x), torch.equal(eye @ x.mT, x.mT)]
        return all(exact)
    finally:
        _MATMUL_BACKEND.fp32_precision = previous
