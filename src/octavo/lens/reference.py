"""GPT-2 in plain float64 NumPy, from the files of a checkpoint: `verify` compares the model with it.

It shares no code with `octavo.model`, neither a step nor the loading, and computes in NumPy instead of PyTorch, so a
mistake in one is not repeated in the other. It runs one text and one head at a time: slow, and short enough to check by
reading.

Formulas: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019), and OpenAI's code for it.
The axis letters: `T` positions, `C` width, `D` width of one head, `V` the vocabulary.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
from torch import Tensor

from octavo.interop import gpt2_folder

Array = npt.NDArray[np.float64]
_erf: Callable[[Array], Array] = np.vectorize(math.erf, otypes=[np.float64])


class Weights:
    """The config and weights of a Hugging Face GPT-2 folder. A weight is converted to float64 each time it is used.

    The matrix of a linear layer has the shape (in, out), as GPT-2's Conv1D stores it.
    """

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self._tensors: dict[str, Tensor] = {}
        for path in gpt2_folder.safetensors_files(folder):
            self._tensors |= safetensors.torch.load_file(path)  # memory-mapped
        self._prefix = "transformer." if "transformer.wte.weight" in self._tensors else ""

    def __getitem__(self, name: str) -> Array:
        # Through PyTorch, because NumPy has no bfloat16.
        weight: Array = self._tensors[self._prefix + name].double().numpy()
        return weight


def streams(weights: Weights, ids: Array, ablated: tuple[int, int] | None = None, rounded: bool = False) -> list[Array]:
    """The residual stream (T, C) of ids (T,), before the first layer and after each.

    `ablated` (layer, head) is a head whose output is 0. With `rounded`, the outputs of layer norms and the stream after
    each addition are rounded to float32, which shows how much rounding alone changes the result.
    """
    rounding: Callable[[Array], Array] = as_float32 if rounded else np.asarray
    config = weights.config
    n_head, activation = config.get("n_head", 12), config.get("activation_function", "gelu_new")
    x = weights["wte.weight"][ids] + weights["wpe.weight"][: len(ids)]  # (T, C)
    stages = [x]
    for layer in range(config.get("n_layer", 12)):
        block = f"h.{layer}"
        ablated_head = ablated[1] if ablated and ablated[0] == layer else None
        x = rounding(x + attention(weights, block, rounding(norm(x, weights, f"{block}.ln_1")), n_head, ablated_head))
        x = rounding(x + mlp(weights, block, rounding(norm(x, weights, f"{block}.ln_2")), activation))
        stages.append(x)
    return stages


def as_float32(x: Array) -> Array:
    """Round to float32."""
    rounded: Array = x.astype(np.float32).astype(np.float64)
    return rounded


def logits(weights: Weights, stream: Array) -> Array:
    """The logits (T, V) of a residual stream (T, C): the final norm, then the transposed token embedding."""
    return norm(stream, weights, "ln_f") @ weights["wte.weight"].T


def attention(weights: Weights, block: str, x: Array, n_head: int, ablated_head: int | None) -> Array:
    """What the attention of `block`, such as "h.0", adds to the residual stream, (T, C)."""
    C = x.shape[1]
    D = C // n_head
    qkv = x @ weights[f"{block}.attn.c_attn.weight"] + weights[f"{block}.attn.c_attn.bias"]  # (T, 3C)
    heads = np.zeros_like(x)
    for head in range(n_head):
        columns = slice(head * D, (head + 1) * D)
        q, k, v = qkv[:, :C][:, columns], qkv[:, C : 2 * C][:, columns], qkv[:, 2 * C :][:, columns]  # (T, D)
        if head != ablated_head:
            heads[:, columns] = attention_pattern(q, k) @ v
    output: Array = heads @ weights[f"{block}.attn.c_proj.weight"] + weights[f"{block}.attn.c_proj.bias"]
    return output


def attention_pattern(q: Array, k: Array) -> Array:
    """The attention pattern (T, T), row by row over the positions that are not in the future: there is no mask."""
    pattern = np.zeros((len(q), len(q)))
    for t in range(len(q)):
        scores = k[: t + 1] @ q[t] / math.sqrt(q.shape[1])
        e = np.exp(scores - scores.max())
        pattern[t, : t + 1] = e / e.sum()
    return pattern


def mlp(weights: Weights, block: str, x: Array, activation: str) -> Array:
    """What the MLP of `block`, such as "h.0", adds to the residual stream, (T, C)."""
    hidden = x @ weights[f"{block}.mlp.c_fc.weight"] + weights[f"{block}.mlp.c_fc.bias"]  # (T, 4C)
    return gelu(hidden, activation) @ weights[f"{block}.mlp.c_proj.weight"] + weights[f"{block}.mlp.c_proj.bias"]


def gelu(x: Array, activation: str) -> Array:
    """x times the standard normal CDF of x: exact, or by the tanh approximation that GPT-2 was trained with."""
    erf_like: Array
    if activation == "gelu":
        erf_like = _erf(x / math.sqrt(2))
    else:
        erf_like = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return x * (1 + erf_like) / 2


def norm(x: Array, weights: Weights, name: str) -> Array:
    """Layer norm of every row."""
    centered: Array = x - x.mean(1, keepdims=True)
    deviation: Array = np.sqrt((centered**2).mean(1, keepdims=True) + 1e-5)
    return centered / deviation * weights[f"{name}.weight"] + weights[f"{name}.bias"]
