"""AdamW (Loshchilov and Hutter, 2019): Adam with weight decay that does not pass through the gradient's averages."""

import inspect
from collections.abc import Callable
from typing import Any

import torch

from octavo.training.optimizers.base import Optimizer


class AdamW(Optimizer, torch.optim.AdamW):
    """PyTorch's AdamW with its fused kernel, on a CPU too: one pass over each tensor instead of a dozen."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        return inspect.unwrap(torch.optim.AdamW.step)(self, closure)
