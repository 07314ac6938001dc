"""AdamW (Loshchilov and Hutter, 2019): Adam with decoupled weight decay, which the moving averages do not include."""

import inspect
from collections.abc import Callable
from typing import Any

import torch

from octavo.training.optimizers.base import Optimizer


class AdamW(Optimizer, torch.optim.AdamW):
    """PyTorch's AdamW, whose `step` does not import the compiler (see `base`).

    With `fused=True` it makes one pass over each tensor instead of a dozen, also on a CPU.
    """

    state_names = frozenset(("step", "exp_avg", "exp_avg_sq"))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        return inspect.unwrap(torch.optim.AdamW.step)(self, closure)
