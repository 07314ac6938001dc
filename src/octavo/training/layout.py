"""How the processes that train together hold the model: each has all of it, or they divide it (`sharding`).

`Layout.parameters` are the tensors that this process updates, with their gradients. Optimizers, gradient clipping and
checkpoints use them in both layouts.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from octavo.device import accumulation_dtype
from octavo.distributed import ALONE, World


class Layout:
    """Each process has the whole model. After the backward, an all-reduce adds up their gradients.

    `Sharded` is the other layout.
    """

    parts = 1  # how many processes divide a tensor among them

    def __init__(self, parameters: Mapping[str, Parameter], world: World = ALONE) -> None:
        self.parameters, self.world = dict(parameters), world

    def exchange(self, loss: Tensor) -> None:
        """Replace the loss and the gradients of this process's rows by their sums over all processes."""
        self.world.all_reduce([loss, *self.gradients])

    @property
    def gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]

    def clear_gradients(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    def gradient_norm(self) -> Tensor:
        """The L2 norm of all gradients, in float32."""
        return self.norm_of_parts(norm(self.gradients)).float()

    def norm_of_parts(self, norm: Tensor) -> Tensor:
        """The norm of all gradients, from the norm of those that this process has."""
        return norm

    def shape(self, parameter: Parameter) -> torch.Size:
        """The shape of the whole parameter."""
        return parameter.shape

    def whole(self, parameter: Parameter, part: Tensor) -> Tensor:
        """The whole tensor, from this process's part of it. All processes call this in the same order."""
        return part

    def part(self, parameter: Parameter, whole: Tensor) -> Tensor:
        """This process's part of a tensor that belongs to a parameter: weights, an update, or state of an optimizer."""
        return whole

    def split_for_gathering(self, parameters: Sequence[Parameter]) -> list[list[Parameter]]:
        """Divide parameters into lists, so that a process can hold the whole tensors of one list at once."""
        return [list(parameters)] if parameters else []

    def gather(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yield whole tensors, one at a time, from this process's parts. All processes must iterate to the end.

        A tensor has the name of its parameter, or that name after a prefix: `exp_avg.transformer.wte.weight`.
        """
        for name, part in tensors.items():
            parameter = self.parameters[name if name in self.parameters else name.partition(".")[2]]
            yield name, self.whole(parameter, part.detach())

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Set the parameters to these whole tensors."""
        for name, parameter in self.parameters.items():
            parameter.copy_(self.part(parameter, weights[name]))


def norm(gradients: Sequence[Tensor]) -> Tensor:
    """The L2 norm of gradients, in float64 (float32 on MPS).

    Each row's norm is computed separately, and their squares are added up in float64. So the result, rounded to
    float32, does not depend on how rows are divided among processes. Adding up in float32 was wrong by up to 0.1%.
    """
    rows = torch.cat([torch.linalg.vector_norm(g, dim=-1) if g.dim() > 1 else g for g in gradients])
    total: Tensor = torch.linalg.vector_norm(rows, dtype=accumulation_dtype(rows.device))
    return total
