"""Sharded training: several processes divide the weights, gradients and optimizer state of one model (FSDP2).

FSDP2 gathers the weights of a block before it computes with them, frees them afterwards, and adds up the gradients of
a block as soon as they are computed. Each process keeps and updates its rows of every tensor. A run that is not sharded
does not import this module.

On a GPU in bf16 the weights are gathered in bf16 and used in bf16, in evaluations too, and the blocks are compiled one
by one. This has not been run on several GPUs.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import Parameter

from octavo.device import Runtime
from octavo.distributed import World, rows_of_rank
from octavo.model import GPT
from octavo.training.layout import Layout


class Sharded(Layout):
    """Each group of `parts` processes divides the rows of every tensor. All groups have the same model.

    The tied output head and the token embedding stay one parameter: it is in no block, so FSDP2 gathers it for the
    whole forward or backward.
    """

    def __init__(self, model: GPT, world: World, parts: int, runtime: Runtime) -> None:
        mesh = world.mesh(runtime.device.type, parts)
        shapes = [parameter.shape for parameter in model.parameters()]
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if runtime.stores_bf16 else MixedPrecisionPolicy()
        for module in (*model.transformer.h, model):
            if runtime.compile and module is not model:
                module.compile()
            # Without `reshard_after_forward`, the whole model would keep the gathered weights after an evaluation.
            fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
            # The trainer has divided the loss, and gloo can only add.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
        self._sharded = dict(model.named_parameters())
        with torch.no_grad():
            super().__init__({name: Parameter(_local(value)) for name, value in self._sharded.items()}, world)
        self.parts, self._group = parts, mesh.get_group("shard")
        self._shapes = dict(zip(self.parameters.values(), shapes, strict=True))
        self._blocks = {p: name.split(".")[:3] for name, p in self.parameters.items()}  # transformer.h.N

    def exchange(self, loss: Tensor) -> None:
        with torch.no_grad():
            for name, parameter in self._sharded.items():
                self.parameters[name].grad = None if parameter.grad is None else _local(parameter.grad)
        self.world.all_reduce([loss])

    def clear_gradients(self) -> None:
        for parameter in (*self.parameters.values(), *self._sharded.values()):
            parameter.grad = None

    def norm_of_parts(self, norm: Tensor) -> Tensor:
        square = norm**2
        self.world.all_reduce([square])
        return (square * self.parts / self.world.size).sqrt()

    def shape(self, parameter: Parameter) -> torch.Size:
        return self._shapes[parameter]

    def whole(self, parameter: Parameter, part: Tensor) -> Tensor:
        rows = self._shapes[parameter][0]
        return self.world.all_gather(part, rows, self._group) if part.dim() else part

    def part(self, parameter: Parameter, whole: Tensor) -> Tensor:
        rows = self._shapes[parameter][0]
        # A copy, since a view would keep the whole tensor in memory.
        return whole[rows_of_rank(rows, self.world.rank % self.parts, self.parts)].clone() if whole.dim() else whole

    def split_for_gathering(self, parameters: Sequence[Parameter]) -> list[list[Parameter]]:
        return [list(block) for _, block in itertools.groupby(parameters, self._blocks.__getitem__)]


def _local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that FSDP2 has divided."""
    assert isinstance(tensor, DTensor)
    local: Tensor = tensor.to_local()
    return local
