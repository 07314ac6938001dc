"""GPT-2 once more, in plain float64 NumPy from the files of a checkpoint: `verify` holds the model against it.

It shares nothing with `octavo.model`: no step, no library, not even the loading. So a mistake in the one doesn't
repeat itself in the other. One text, one head at a time; slow, and short enough to be checked by reading.

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

Array = npt.NDArray[np.float64]
_erf: Callable[[Array], Array] = np.vectorize(math.erf, otypes=[np.float64])


class Files:
    """The weights (in, out) and the config of a Hugging Face GPT-2 folder, read one at a time, as float64."""

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self._tensors = safetensors.torch.load_file(folder / "model.safetensors")  # mapped: read when used
        self._prefix = "transformer." if "transformer.wte.weight" in self._tensors else ""

    def __getitem__(self, name: str) -> Array:
        weight: Array = self._tensors[self._prefix + name].double().numpy()  # by PyTorch, for NumPy has no bfloat16
        return weight


def streams(weights: Files, ids: Array, zeroed: tuple[int, int] | None = None, rounded: bool = False) -> list[Array]:
    """The stream (T, C) of ids (T,), before the first layer and after each. `zeroed` (layer, head) gathers 0.

    `rounded`: every norm and every sum to float32, which tells how far such rounding alone carries in this model.
    """
    kept: Callable[[Array], Array] = as_float32 if rounded else np.asarray
    config = weights.config
    x = weights["wte.weight"][ids] + weights["wpe.weight"][: len(ids)]
    found = [x]
    for layer in range(config.get("n_layer", 12)):
        h = f"h.{layer}"
        silent = zeroed[1] if zeroed and zeroed[0] == layer else None
        x = kept(x + attention(weights, h, kept(norm(x, weights, f"{h}.ln_1")), config.get("n_head", 12), silent))
        x = kept(
            x + mlp(weights, h, kept(norm(x, weights, f"{h}.ln_2")), config.get("activation_function", "gelu_new"))
        )
        found.append(x)
    return found


def as_float32(x: Array) -> Array:
    """What float32 can hold of it."""
    rounded: Array = x.astype(np.float32).astype(np.float64)
    return rounded


def logits(weights: Files, stream: Array) -> Array:
    """What is read off a stream (T, C): the final norm, and the token embedding the other way round; (T, V)."""
    return norm(stream, weights, "ln_f") @ weights["wte.weight"].T


def attention(weights: Files, h: str, x: Array, n_head: int, silent: int | None) -> Array:
    C = x.shape[1]
    D = C // n_head
    qkv = x @ weights[f"{h}.attn.c_attn.weight"] + weights[f"{h}.attn.c_attn.bias"]
    gathered = np.zeros_like(x)
    for head in range(n_head):
        mine = slice(head * D, (head + 1) * D)
        q, k, v = qkv[:, :C][:, mine], qkv[:, C : 2 * C][:, mine], qkv[:, 2 * C :][:, mine]
        if head != silent:
            gathered[:, mine] = shares(q, k) @ v
    mixed: Array = gathered @ weights[f"{h}.attn.c_proj.weight"] + weights[f"{h}.attn.c_proj.bias"]
    return mixed


def shares(q: Array, k: Array) -> Array:
    """Position by position, over what is not in its future: no mask that could be wrong."""
    given = np.zeros((len(q), len(q)))
    for t in range(len(q)):
        scores = k[: t + 1] @ q[t] / math.sqrt(q.shape[1])
        e = np.exp(scores - scores.max())
        given[t, : t + 1] = e / e.sum()
    return given


def mlp(weights: Files, h: str, x: Array, activation: str) -> Array:
    hidden = x @ weights[f"{h}.mlp.c_fc.weight"] + weights[f"{h}.mlp.c_fc.bias"]
    return gelu(hidden, activation) @ weights[f"{h}.mlp.c_proj.weight"] + weights[f"{h}.mlp.c_proj.bias"]


def gelu(x: Array, activation: str) -> Array:
    """x times the chance that a normal number is below x: exactly, or by the tanh that GPT-2 was trained with."""
    below: Array
    if activation == "gelu":
        below = _erf(x / math.sqrt(2))
    else:
        below = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return x * (1 + below) / 2


def norm(x: Array, weights: Files, name: str) -> Array:
    centred: Array = x - x.mean(1, keepdims=True)
    deviation: Array = np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
    return centred / deviation * weights[f"{name}.weight"] + weights[f"{name}.bias"]
