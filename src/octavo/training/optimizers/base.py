"""What AdamW and Muon share: a `torch.optim.Optimizer` that does not import PyTorch's compiler.

PyTorch wraps some of the optimizer's methods so that `torch.compile` leaves them alone. The wrapper imports
`torch._dynamo` on the first call, 0.9 s on two cores, in a run that compiles nothing. `inspect.unwrap` returns the
method below the wrapper (or the method itself, if a version of PyTorch does not wrap it).
"""

import inspect
from typing import Any

import torch


class Optimizer(torch.optim.Optimizer):
    """A PyTorch optimizer in every respect: param_groups, state_dict, hooks, learning-rate schedulers."""

    state_names: frozenset[str]  # what it stores for each parameter after a step

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        inspect.unwrap(torch.optim.Optimizer.add_param_group)(self, param_group)
