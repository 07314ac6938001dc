"""Initial weights from which a model learns faster than from noise. The architecture stays GPT-2's.

From noise, GPT-2 must first learn which row of `wpe` follows which. Only then can a head learn to attend to the
previous token. Here the position embeddings start as sinusoids (`set_sinusoids`), and the heads of the first block
start by attending to earlier tokens (`set_lookback`). Both are trained like all other weights.

Axis letters: `T` positions, `C` width of the residual stream, `H` heads of width `D`.
"""

import math

import torch

from octavo.model import GPT

_AMPLITUDE = 0.07  # of the sinusoids; the token embeddings start with a standard deviation of 0.02
_SHARPNESS = 0.7  # of the attention pattern; 0.5 to 0.7 learned best, and at 1.4 the heads hardly changed (measured)


def initialize(model: GPT, weight_init: str) -> None:
    """Apply the setting `weight_init` to a model that was initialized with GPT-2's noise."""
    if weight_init in ("sinusoids", "lookback"):
        set_sinusoids(model)
    if weight_init == "lookback":
        set_lookback(model)


@torch.no_grad()
def set_sinusoids(model: GPT) -> None:
    """Set `wpe` to small sinusoids.

    Half the columns are sines, half cosines, with wavelengths in geometric progression from 4 to 400 positions. Nearby
    positions differ clearly, and a shift by one position is the same rotation everywhere (Vaswani et al., 2017, 3.5).
    """
    table = model.transformer.wpe.weight  # (T, C)
    angle = torch.arange(table.size(0))[:, None] * _frequencies(table.size(1))  # (T, C/2)
    table.copy_(_AMPLITUDE * torch.cat([angle.sin(), angle.cos()], dim=1)[:, : table.size(1)])


@torch.no_grad()
def set_lookback(model: GPT) -> None:
    """Let the heads of the first block start by attending one, two, three ... tokens back. Needs `set_sinusoids`.

    A head's key is a selection of its position's sines and cosines. Its query is the same selection, rotated back by
    the head's distance. So their product is largest for the key at that distance.
    """
    C, H, D = model.settings.n_embd, model.settings.n_head, model.settings.head_size
    pairs = torch.linspace(0, C // 2 - 1, D // 2).round().long()  # which of the C/2 (sine, cosine) pairs a head uses
    sine, cosine = pairs, (C + 1) // 2 + pairs  # their columns in wpe
    upper, lower = torch.arange(D // 2), D // 2 + torch.arange(D // 2)  # a head's rows for sines and for cosines
    query, key, _ = model.get_parameter("transformer.h.0.attn.c_attn.weight").view(3, H, D, C)
    key[:, : 2 * len(pairs)] = query[:, : 2 * len(pairs)] = 0.0  # if the head width is odd, the last row stays noise
    key[:, upper, sine] = key[:, lower, cosine] = _SHARPNESS
    for head in range(H):
        angle = (head + 1) * _frequencies(C)[pairs]
        query[head, upper, sine] = query[head, lower, cosine] = _SHARPNESS * angle.cos()
        query[head, upper, cosine] = -_SHARPNESS * angle.sin()
        query[head, lower, sine] = _SHARPNESS * angle.sin()


def _frequencies(C: int) -> torch.Tensor:
    """The angle between neighboring positions, for each pair of columns, ((C + 1) // 2,)."""
    return math.pi / 2 * 100.0 ** -torch.linspace(0, 1, (C + 1) // 2)
