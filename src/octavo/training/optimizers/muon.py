"""Muon: momentum with an orthogonalized update (Jordan et al., 2024, "Muon: An optimizer for hidden layers").

A few directions dominate a matrix's gradient, and the rare ones carry what is hard to learn. Setting its singular
values to one gives all directions the same weight. Newton-Schulz iterations do this with matrix products alone.

All matrices of a group are cut into squares of the group's smallest side C; in GPT-2, the sides of every matrix of a
block are multiples of C. So one batch (N, C, C) of squares holds the updates of the whole model or, if the model is
sharded, of one block. Several processes divide the batch among them. Muon is for matrices inside the blocks;
embeddings, biases and norms stay with AdamW.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Parameter

from octavo.distributed import rows_of_rank
from octavo.kernels import muon as kernels
from octavo.training.layout import Layout
from octavo.training.optimizers.base import Optimizer

# Jordan's fifth-degree polynomial. It is steep at 0, so that small singular values grow fast; after five iterations the
# singular values are within 0.7 to 1.2.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


class Muon(Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for matrices only."""

    state_names = frozenset(("momentum",))

    def __init__(
        self,
        params: Any,
        lr: float = 0.05,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,  # of the iterations; bfloat16 is precise enough
        layout: Layout | None = None,  # how several processes hold the matrices
    ) -> None:
        self._layout = layout or Layout({})
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "dtype": dtype})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        shapes = [tuple(self._layout.shape(parameter)) for parameter in self.param_groups[-1]["params"]]
        width = min(min(shape, default=0) for shape in shapes)
        if any(len(shape) != 2 or not width or shape[0] % width or shape[1] % width for shape in shapes):
            raise ValueError(f"Muon needs matrices whose sides are multiples of the smallest side, not {shapes}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            width = min(min(self._layout.shape(matrix)) for matrix in group["params"])
            with_gradient = [matrix for matrix in group["params"] if matrix.grad is not None]
            for matrices in self._layout.split_for_gathering(with_gradient):
                self._update(matrices, group, width)
        return loss

    def _update(self, matrices: Sequence[Parameter], group: dict[str, Any], width: int) -> None:
        """Update matrices of a group, in squares of `width`."""
        layout, world = self._layout, self._layout.world
        counts = [layout.shape(matrix).numel() // width**2 for matrix in matrices]
        squares = torch.empty(sum(counts), width, width, dtype=group["dtype"], device=matrices[0].device)  # (N, C, C)
        in_c = self._matrices_in_c(matrices, squares)
        if in_c:
            kernels.update_momentum(in_c, squares, group["momentum"])
        else:
            for matrix, part in zip(matrices, torch.split(squares, counts), strict=True):
                update = as_squares(layout.whole(matrix, self._update_momentum(matrix, group["momentum"])), width)
                part.view(update.shape).copy_(update)
        own = rows_of_rank(len(squares), world.rank, world.size)  # which squares this process orthogonalizes
        squares = world.all_gather(fast_orthogonalize(squares[own]), len(squares))
        decay = 1 - group["lr"] * group["weight_decay"]
        if in_c:
            kernels.update_weights(in_c, squares, decay, group["lr"])
            return
        for matrix, part in zip(matrices, torch.split(squares, counts), strict=True):
            update = torch.empty(layout.shape(matrix), dtype=matrix.dtype, device=matrix.device)
            view = as_squares(update, width)
            view.copy_(part.view(view.shape))
            matrix.mul_(decay)
            matrix.sub_(layout.part(matrix, update), alpha=group["lr"])

    def _matrices_in_c(self, matrices: Sequence[Parameter], squares: Tensor) -> list[kernels.Matrix] | None:
        """The matrices for the functions in C; None where PyTorch computes the same, an operation at a time."""
        if self._layout.parts > 1:
            return None
        found = [kernels.Matrix(matrix, cast(Tensor, matrix.grad), self._momentum(matrix)) for matrix in matrices]
        tensors = [tensor for matrix in found for tensor in matrix]
        return found if kernels.is_elementwise_supported(squares, tensors) else None

    def _update_momentum(self, matrix: Parameter, momentum: float) -> Tensor:
        """Update the running mean of the gradient, and return it with Nesterov's look-ahead."""
        assert matrix.grad is not None
        mean = self._momentum(matrix).lerp_(matrix.grad, 1 - momentum)
        return matrix.grad.lerp(mean, momentum)

    def _momentum(self, matrix: Parameter) -> Tensor:
        """The running mean of a matrix's gradient; 0 before the first step."""
        state = self.state[matrix]
        if not state:
            state["momentum"] = torch.zeros_like(matrix)
        return cast(Tensor, state["momentum"])


def orthogonalize(x: Tensor) -> Tensor:
    """Bring the singular values of the matrices (N, C, C) near 1, by Newton-Schulz iterations."""
    a, b, c = COEFFICIENTS
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        # a x + (b gram + c gram^2) x, the polynomial of fifth degree in x
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def fast_orthogonalize(squares: Tensor) -> Tensor:
    """What `orthogonalize` returns, computed in C if possible. The C code overwrites `squares`.

    The result of a square does not depend on the others.
    """
    if kernels.is_newton_schulz_supported(squares):
        return kernels.newton_schulz(squares, COEFFICIENTS, ITERATIONS)
    if len(squares) == 1:  # PyTorch multiplies a single matrix in another kernel with other rounding
        return orthogonalize(squares.repeat(2, 1, 1))[:1]
    return orthogonalize(squares)


def as_squares(matrix: Tensor, width: int) -> Tensor:
    """View a matrix (n C, m C) as squares (n, m, C, C), where C is `width`."""
    rows, columns = matrix.shape
    return matrix.view(rows // width, width, columns // width, width).transpose(1, 2)
