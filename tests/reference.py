"""GPT-2 in plain operations: the reference for tests of `octavo.model`.

One sequence, one head and one position at a time, every formula written out, nothing fused. It follows OpenAI's
`src/model.py` (Radford et al., 2019) and imports nothing from `octavo.model`. The weights are a dict of GPT-2's names;
matrices are (out, in), as in PyTorch's `nn.Linear`. Autograd differentiates every step. With float64 weights, the
rounding errors of the reference are negligible.

Axis letters: `T` positions, `C` width of the residual stream, `D` width of a head, `V` vocabulary. There is no batch.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from octavo.settings import ModelSettings

Weights = Mapping[str, Tensor]


def gpt2(weights: Weights, settings: ModelSettings, ids: Tensor) -> Tensor:
    """Logits (T, V) for ids (T,)."""
    wte, wpe = weights["transformer.wte.weight"], weights["transformer.wpe.weight"]
    x = wte[ids] + wpe[: len(ids)]  # (T, C)
    for layer in range(settings.n_layer):
        x = block(weights, settings, f"transformer.h.{layer}", x)
    x = layer_norm(weights, "transformer.ln_f", x)
    return x @ wte.T  # the output head shares its weight with the token embedding


def block(weights: Weights, settings: ModelSettings, name: str, x: Tensor) -> Tensor:
    x = x + attention(weights, settings, f"{name}.attn", layer_norm(weights, f"{name}.ln_1", x))
    return x + mlp(weights, settings, f"{name}.mlp", layer_norm(weights, f"{name}.ln_2", x))


def attention(weights: Weights, settings: ModelSettings, name: str, x: Tensor) -> Tensor:
    """c_attn computes queries, keys and values of all heads. Each head uses D columns of each."""
    D = settings.n_embd // settings.n_head
    queries, keys, values = linear(weights, f"{name}.c_attn", x).split(settings.n_embd, dim=1)
    heads = []
    for head in range(settings.n_head):
        columns = slice(head * D, (head + 1) * D)
        heads.append(one_head(queries[:, columns], keys[:, columns], values[:, columns]))
    return linear(weights, f"{name}.c_proj", torch.cat(heads, dim=1))


def one_head(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The output of one head, (T, D). It needs no mask, because position t only gets the keys up to its own."""
    T, D = queries.shape
    outputs = []
    for t in range(T):
        scores = keys[: t + 1] @ queries[t] / math.sqrt(D)  # (t + 1,)
        outputs.append(softmax(scores) @ values[: t + 1])
    return torch.stack(outputs)


def mlp(weights: Weights, settings: ModelSettings, name: str, x: Tensor) -> Tensor:
    gelu = {"gelu_new": gelu_tanh, "gelu": gelu_exact}[settings.activation]
    return linear(weights, f"{name}.c_proj", gelu(linear(weights, f"{name}.c_fc", x)))


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)


def layer_norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    """Normalize each position to mean 0 and variance 1, then scale and shift (Ba, Kiros and Hinton, 2016)."""
    centered = x - x.mean(dim=1, keepdim=True)
    variance = (centered**2).mean(dim=1, keepdim=True)
    return centered / torch.sqrt(variance + 1e-5) * weights[f"{name}.weight"] + weights.get(f"{name}.bias", 0)


def softmax(scores: Tensor) -> Tensor:
    exp = torch.exp(scores - scores.max())
    return exp / exp.sum()


def gelu_exact(x: Tensor) -> Tensor:
    """x times the probability that a standard normal variable is below x (Hendrycks and Gimpel, 2016)."""
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def gelu_tanh(x: Tensor) -> Tensor:
    """The approximation from the same paper, with which GPT-2 was trained."""
    return x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
