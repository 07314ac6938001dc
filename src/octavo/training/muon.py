"""Muon: momentum whose update is made orthogonal (Jordan et al., 2024, "Muon: An optimizer for hidden layers").

A gradient's matrix is dominated by a few directions; the rare ones carry what is hard to learn. Replacing its
singular values by ones lets all of them through alike. Newton-Schulz iterations do so with products alone.

Here every matrix of a block, all multiples of C x C, is cut into squares of C x C, so that the whole model's
updates are one batch (N, C, C) of products. It is for those matrices only; the rest stays with AdamW.
"""

from typing import Any

import torch
from torch import Tensor

# The fifth-degree polynomial of the original: steep at 0, and within 0.7 to 1.2 after five rounds.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 5


class Muon:
    """Muon over groups of matrices (`params`) whose sides are multiples of the narrowest one's.

    Decay (`weight_decay`) is decoupled, as AdamW's; whoever steps sets each group's `lr`.
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float, dtype: torch.dtype = torch.float32) -> None:
        self.param_groups, self.momentum = groups, momentum
        self.dtype = dtype  # of the iterations: bfloat16 suffices, where it is fast
        self.state: dict[Tensor, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self) -> None:
        """Make one update from the gradients that the matrices hold."""
        for group in self.param_groups:
            matrices: list[Tensor] = group["params"]
            width = min(min(matrix.shape) for matrix in matrices)
            squares = [cut(self._direction(matrix), width) for matrix in matrices]
            updates = torch.split(orthogonal(torch.cat(squares).to(self.dtype)), [len(each) for each in squares])
            for matrix, update in zip(matrices, updates, strict=True):
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.sub_(joined(update.to(matrix.dtype), matrix.shape), alpha=group["lr"])

    def _direction(self, matrix: Tensor) -> Tensor:
        """The gradient's running mean, looked ahead as Nesterov's."""
        assert matrix.grad is not None
        if matrix not in self.state:
            self.state[matrix] = {"momentum": torch.zeros_like(matrix)}
        mean = self.state[matrix]["momentum"].lerp_(matrix.grad, 1 - self.momentum)
        return matrix.grad.lerp(mean, self.momentum)


def orthogonal(x: Tensor) -> Tensor:
    """The matrices (N, C, C) with their singular values brought near 1, by Newton-Schulz iterations."""
    a, b, c = _COEFFICIENTS
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(ROUNDS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x


def cut(matrix: Tensor, width: int) -> Tensor:
    """A matrix (n C, m C) as squares (n m, C, C)."""
    rows, columns = matrix.shape
    return matrix.view(rows // width, width, columns // width, width).transpose(1, 2).reshape(-1, width, width)


def joined(squares: Tensor, shape: torch.Size) -> Tensor:
    """What `cut` took apart."""
    width = squares.size(-1)
    return squares.view(shape[0] // width, shape[1] // width, width, width).transpose(1, 2).reshape(shape)
