"""AdamW (Loshchilov and Hutter, 2019): Adam, with a decay that the gradient's size does not touch.

The arithmetic is PyTorch's fused kernel, on a CPU too: one pass over each tensor instead of a dozen. The class is not,
because the first use of any `torch.optim.Optimizer` imports PyTorch's compiler, three quarters of a second.
"""

from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw


class AdamW:
    """AdamW over groups of `params` with their `weight_decay`; whoever steps sets each group's `lr`."""

    def __init__(self, groups: list[dict[str, Any]], beta1: float, beta2: float) -> None:
        self.param_groups, self.beta1, self.beta2 = groups, beta1, beta2
        self.state: dict[Tensor, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self) -> None:
        """Make one update from the gradients that the parameters hold."""
        for group in self.param_groups:
            states = [self._state(parameter) for parameter in group["params"]]
            adamw(
                group["params"], [parameter.grad for parameter in group["params"]],
                [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states], [],
                [state["step"] for state in states], fused=True, amsgrad=False, maximize=False, eps=1e-8,
                beta1=self.beta1, beta2=self.beta2, lr=group["lr"], weight_decay=group["weight_decay"],
            )  # fmt: skip

    def _state(self, parameter: Tensor) -> dict[str, Tensor]:
        """The averages of the gradient and of its square, and the count of updates they have seen."""
        if parameter not in self.state:
            self.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        return self.state[parameter]
