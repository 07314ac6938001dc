"""Ways to start weights that learn faster than noise. What the model computes stays GPT-2's."""

import math

import torch

from octavo.model import GPT

_SIZE = 0.07  # of the sinusoids; the token table's noise is 0.02


@torch.no_grad()
def sinusoids(model: GPT) -> None:
    """Start `wpe` from small sinusoids, and learn on from there as ever.

    Half the columns are sines, half cosines; wavelengths run from 4 positions to 400 in even ratios, so that
    neighbours are told apart and a step to the left is the same turn everywhere (Vaswani et al., 2017, 3.5).
    """
    table = model.transformer.wpe.weight  # (T, C)
    half = (table.size(1) + 1) // 2
    speed = math.pi / 2 * 100.0 ** -torch.linspace(0, 1, half)  # (C/2,)
    angle = torch.arange(table.size(0))[:, None] * speed  # (T, C/2)
    table.copy_(_SIZE * torch.cat([angle.sin(), angle.cos()], dim=1)[:, : table.size(1)])
