"""Activation checkpointing: a block recomputes its activations in the backward instead of keeping them.

The method is that of Chen et al. (2016), "Training Deep Nets with Sublinear Memory Cost". Only the input of each
block is kept. Dropout drops the same elements in the recomputation, so losses and gradients are bit-identical to those
without activation checkpointing.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from octavo import kernels
from octavo.model import GPT, LayerCache


def checkpoint_blocks(model: GPT, device: torch.device) -> None:
    """Checkpoint the activations of each block of a model that computes on `device`."""
    for block in model.transformer.h:
        # PyTorch's `checkpoint_wrapper` would change the names of the parameters.
        block.forward = functools.partial(_forward, block.forward, device)


def _forward(
    forward: Callable[..., Tensor], device: torch.device, x: Tensor, cache: LayerCache | None = None
) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(x, cache)
    options: dict[str, Any] = {"use_reentrant": False}
    if not torch.compiler.is_compiling():
        # PyTorch turns `fast_path` off inside `backward`, so the recomputation would run other kernels. Compiled code
        # runs the traced ones.
        options["context_fn"] = lambda: (contextlib.nullcontext(), kernels.fast_path(device))
    result: Tensor = checkpoint(forward, x, cache, **options)
    return result
