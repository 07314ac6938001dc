"""Faster CPU paths under an unchanged model: replacements of PyTorch's functions, and C code.

    replacements.py    other PyTorch operations for attention, dropout and float32 matmuls
    training.c         what stands between the matmuls of a training step (`training.py` calls it)
    forward.c          the decoder of `octavo.generation.native`
    openmp.py          PyTorch's threads

Every fast path has a plain one that it must equal, and that runs where the fast one can't.
"""

from octavo.kernels.replacements import (
    MAX_MATMUL_ATTENTION_LENGTH,
    REPLACEMENTS,
    fast_dropout,
    fast_path,
    is_onednn_exact,
    keep_freed_memory,
    matmul_attention,
    one_thread,
    onednn_matmuls,
    return_freed_memory,
)

__all__ = [
    "MAX_MATMUL_ATTENTION_LENGTH",
    "REPLACEMENTS",
    "fast_dropout",
    "fast_path",
    "is_onednn_exact",
    "keep_freed_memory",
    "matmul_attention",
    "one_thread",
    "onednn_matmuls",
    "return_freed_memory",
]
