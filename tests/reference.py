"""GPT-2, written plainly: what `octavo.model` is held against.

One text at a time, one head at a time, one position at a time, every formula spelled out, nothing fused or
fast. It follows OpenAI's `src/model.py` (Radford et al., 2019) and knows nothing of `octavo.model`. Weights
come as a dict under GPT-2's names, matrices (out, in) as PyTorch's `nn.Linear` has them. Every step is
ordinary arithmetic, so autograd differentiates it; in float64 its own rounding is out of the picture.

The axis letters: `T` positions, `C` width, `D` width of one head, `V` vocabulary. There is no batch.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from octavo.settings import ModelSettings

Weights = Mapping[str, Tensor]


def gpt2(weights: Weights, settings: ModelSettings, ids: Tensor) -> Tensor:
    """Logits (T, V) for the ids (T,) of one text."""
    wte, wpe = weights["transformer.wte.weight"], weights["transformer.wpe.weight"]
    x = wte[ids] + wpe[: len(ids)]  # (T, C)
    for layer in range(settings.n_layer):
        x = block(weights, settings, f"transformer.h.{layer}", x)
    x = layer_norm(weights, "transformer.ln_f", x)
    return x @ wte.T  # the head is the token embedding, read the other way


def block(weights: Weights, settings: ModelSettings, name: str, x: Tensor) -> Tensor:
    x = x + attention(weights, settings, f"{name}.attn", layer_norm(weights, f"{name}.ln_1", x))
    return x + mlp(weights, settings, f"{name}.mlp", layer_norm(weights, f"{name}.ln_2", x))


def attention(weights: Weights, settings: ModelSettings, name: str, x: Tensor) -> Tensor:
    """Queries, keys and values of all heads lie side by side; each head takes its D columns of each."""
    D = settings.n_embd // settings.n_head
    queries, keys, values = linear(weights, f"{name}.c_attn", x).split(settings.n_embd, dim=1)
    heads = []
    for head in range(settings.n_head):
        mine = slice(head * D, (head + 1) * D)
        heads.append(one_head(queries[:, mine], keys[:, mine], values[:, mine]))
    return linear(weights, f"{name}.c_proj", torch.cat(heads, dim=1))


def one_head(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """What each position gathers, (T, D). No mask hides the future: position t is shown none of it."""
    T, D = queries.shape
    gathered = []
    for t in range(T):
        scores = keys[: t + 1] @ queries[t] / math.sqrt(D)  # (t + 1,): the past, and itself
        gathered.append(softmax(scores) @ values[: t + 1])
    return torch.stack(gathered)


def mlp(weights: Weights, settings: ModelSettings, name: str, x: Tensor) -> Tensor:
    gelu = {"gelu_new": gelu_tanh, "gelu": gelu_exact}[settings.activation]
    return linear(weights, f"{name}.c_proj", gelu(linear(weights, f"{name}.c_fc", x)))


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)


def layer_norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    """Each position to mean 0 and variance 1, then scaled and shifted (Ba, Kiros and Hinton, 2016)."""
    centred = x - x.mean(dim=1, keepdim=True)
    variance = (centred**2).mean(dim=1, keepdim=True)
    return centred / torch.sqrt(variance + 1e-5) * weights[f"{name}.weight"] + weights.get(f"{name}.bias", 0)


def softmax(scores: Tensor) -> Tensor:
    exp = torch.exp(scores - scores.max())
    return exp / exp.sum()


def gelu_exact(x: Tensor) -> Tensor:
    """x times the chance that a standard normal lies below x (Hendrycks and Gimpel, 2016)."""
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def gelu_tanh(x: Tensor) -> Tensor:
    """The same paper's approximation, with which GPT-2 was trained."""
    return x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
