"""Ways to start weights that learn faster than noise. What the model computes stays GPT-2's.

GPT-2 has to find out from noise which row of `wpe` follows which, and only then can a head learn to look at the
token before. Both are given here as a beginning, and learned on from there as ever.

The axis letters: `T` positions, `C` width of the residual stream, `H` heads of width `D`.
"""

import math

import torch

from octavo.model import GPT

_SIZE = 0.07  # of the sinusoids; the token table's noise is 0.02
_SHARPNESS = 0.7  # of the heads' gaze; 0.5 to 0.7 learned best, 1.4 was too set in its ways


@torch.no_grad()
def sinusoids(model: GPT) -> None:
    """Start `wpe` from small sinusoids.

    Half the columns are sines, half cosines; wavelengths run from 4 positions to 400 in even ratios, so that
    neighbours are told apart and a step to the left is the same turn everywhere (Vaswani et al., 2017, 3.5).
    """
    table = model.transformer.wpe.weight  # (T, C)
    angle = torch.arange(table.size(0))[:, None] * _speeds(table.size(1))  # (T, C/2)
    table.copy_(_SIZE * torch.cat([angle.sin(), angle.cos()], dim=1)[:, : table.size(1)])


@torch.no_grad()
def lookback(model: GPT) -> None:
    """Let the first layer's heads begin by looking one, two, three ... tokens back, along `sinusoids`.

    A head's key is some of a position's sines and cosines as they are; its query is the same, turned back by
    the head's distance. Their product is largest where the key stands just that far behind.
    """
    C, H, D = model.settings.n_embd, model.settings.n_head, model.settings.head_size
    turns = torch.linspace(0, C // 2 - 1, D // 2).round().long()  # which of the C/2 pairs of columns a head reads
    sine, cosine = turns, (C + 1) // 2 + turns
    upper, lower = torch.arange(D // 2), D // 2 + torch.arange(D // 2)  # its rows for sines and for cosines
    query, key, _ = model.get_parameter("transformer.h.0.attn.c_attn.weight").view(3, H, D, C)
    key[:, : 2 * len(turns)] = query[:, : 2 * len(turns)] = 0.0  # an odd width's last row stays noise
    key[:, upper, sine] = key[:, lower, cosine] = _SHARPNESS
    for head in range(H):
        angle = (head + 1) * _speeds(C)[turns]
        query[head, upper, sine] = query[head, lower, cosine] = _SHARPNESS * angle.cos()
        query[head, upper, cosine] = -_SHARPNESS * angle.sin()
        query[head, lower, sine] = _SHARPNESS * angle.sin()


def _speeds(C: int) -> torch.Tensor:
    """The angle from one position to the next, for each pair of columns, ((C + 1) // 2,)."""
    return math.pi / 2 * 100.0 ** -torch.linspace(0, 1, (C + 1) // 2)
