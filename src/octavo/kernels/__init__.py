"""Faster CPU paths under an unchanged model: replacements of PyTorch's functions, and C code.

    replacements.py    other PyTorch operations for attention, dropout and float32 matmuls
    training.c         fused kernels for everything but the matmuls of a training step (`training.py` calls it)
    attention.h        attention over short sequences, for training.c
    muon.h             Muon's elementwise work, a part of training.c (`muon.py` calls it)
    newton_schulz.h    Muon's iterations on Intel's matrix unit, a part of training.c (`muon.py` calls it)
    forward.c          the decoder of `octavo.generation.native`, in threads of its own (team.h)
    kv_cache.h         its KV cache, in float32 or int8
    linear.h           its linear layers, for int8 weights also on Intel's matrix unit (amx.h)
    outer_products.h   its linear layers for many rows with float32 weights
    sampling.c         top-k and the random choice of one token (`sampling.py` calls it)
    words.c            a table of words and their token ids, for `octavo.data.word_table`
    weights.py         what C code needs of a model's weights
    floats.h           vectors of floats, for forward.c, training.c and sampling.c
    openmp.py          PyTorch's threads
    allocator.py       glibc's allocator

Every fast path has a plain one that it must equal, and that runs where the fast one can't.
"""

from octavo.kernels.allocator import keep_freed_memory, return_freed_memory
from octavo.kernels.openmp import one_thread
from octavo.kernels.replacements import (
    MAX_MATMUL_ATTENTION_LENGTH,
    REPLACEMENTS,
    fast_dropout,
    fast_path,
    is_onednn_exact,
    matmul_attention,
    onednn_matmuls,
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
