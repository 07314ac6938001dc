"""The view `flow`: a text on its way through all layers: the residual stream, every attention pattern, the predictions.

It is of bounded size: it shows the last 40 positions of a text, 16 of the stream's columns, and attention weights in
thousandths.

The axis letters: `T` positions that are shown, `L` layers, `H` heads, `C` width, `D` columns that are shown, `S` stages
of the stream: the embedding, and after attention and after the MLP of each layer, so `2 L + 1`.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from octavo import runs
from octavo.lens.attention import head_statistics
from octavo.lens.capture import attention_pattern, inference, require_finite, run_blocks
from octavo.lens.tokens import Text, Token, make_token, tokenize
from octavo.lens.view import Table, View
from octavo.model import GPT
from octavo.runs import RunLike

_MAX_POSITIONS = 40
_COLUMNS = 16
_TOP = 5


@dataclass(frozen=True, eq=False)
class Flow(View):
    """All layers of a forward pass at the positions from `first` on."""

    caveat: ClassVar[str] = (
        "Attention shows where a head looks, not why. A prediction before the last layer is the logit lens: what the "
        "model would answer if it stopped there."
    )

    tokens: list[Token]
    first: int  # the position of the first token that is shown
    left_out: int  # how many tokens at the end of the text were truncated
    columns: list[int]  # the columns of the residual stream that are shown, evenly spaced
    stream: np.ndarray  # (S, T, D)
    norms: np.ndarray  # (S, T) of the residual stream
    attention: np.ndarray  # (L, T) the norm of what attention adds
    mlp: np.ndarray  # (L, T) the norm of what the MLP adds
    patterns: list[list[list[list[int]]]]  # [layer][head][t]: the attention weights of 0 to t, in thousandths
    habits: list[list[str]]  # [layer][head]: the head's habit over the whole text, see `HeadStatistics`
    predictions: np.ndarray  # (T,) the most likely next token at each position
    prediction_probabilities: np.ndarray  # (T,)
    stage_predictions: np.ndarray  # (L + 1,) the same at the last position, if the model ended after 0, 1, ... layers
    stage_probabilities: np.ndarray  # (L + 1,)
    next_tokens: np.ndarray  # the five most likely tokens after the text
    next_probabilities: np.ndarray
    vocabulary: dict[int, str]  # the labels of all ids above

    def tables(self) -> list[Table]:
        rows = []
        for i, id in enumerate(self.stage_predictions):
            added = (float(self.attention[i - 1, -1]), float(self.mlp[i - 1, -1])) if i else (None, None)
            name = f"after layer {i - 1}" if i else "embedding"
            prediction = self.vocabulary[int(id)], float(self.stage_probabilities[i])
            rows.append((name, *added, float(self.norms[2 * i, -1]), *prediction))
        columns = ("stage", "attention added", "MLP added", "norm of the stream", "prediction", "probability")
        title = f"at the last position, {self.tokens[-1].label}: norms, and the most likely next token"
        return [Table(title, columns, rows)]


def flow(run: RunLike, text: Text = None, *, unknown: str = "error") -> Flow:
    """The forward pass of a text of up to `block_size` tokens, at its last 40 positions."""
    loaded = runs.load(run)
    tokenized = tokenize(loaded, text, unknown)
    model, C = loaded.model, loaded.model.settings.n_embd
    first = max(0, len(tokenized.tokens) - _MAX_POSITIONS)
    columns = [i * C // min(C, _COLUMNS) for i in range(min(C, _COLUMNS))]
    attention, mlp, patterns, habits = [], [], [], []
    with inference(model):
        x = model.embed(tokenized.ids)
        stages, last_position = [x[0, first:]], [x[0, -1:]]
        for i, layer in enumerate(run_blocks(model, x)):
            resid_mid = layer.resid_pre + layer.attention  # (B, T, C)
            stages += [resid_mid[0, first:], layer.resid_post[0, first:]]
            last_position.append(layer.resid_post[0, -1:])
            attention.append(layer.attention[0, first:].norm(dim=-1))
            mlp.append(layer.mlp[0, first:].norm(dim=-1))
            weights = [attention_pattern(q, k) for q, k in zip(layer.q[0], layer.k[0], strict=True)]  # H of (T, T)
            patterns.append([_thousandths(pattern[first:, first:]) for pattern in weights])
            habits.append([head_statistics(i, h, pattern).habit for h, pattern in enumerate(weights)])
        probabilities = _next_probabilities(model, stages[-1])  # (T, V)
        predictions = probabilities.max(-1)
        stage_predictions = _next_probabilities(model, torch.cat(last_position)).max(-1)
        most_likely = probabilities[-1].topk(min(_TOP, probabilities.size(-1)))
    stream = torch.stack(stages)  # (S, T, C)
    ids = {int(id) for each in (predictions, stage_predictions, most_likely) for id in each.indices}
    return Flow(
        tokens=tokenized.tokens[first:],
        first=first,
        left_out=tokenized.left_out,
        columns=columns,
        stream=stream[..., columns].numpy(),
        norms=stream.norm(dim=-1).numpy(),
        attention=torch.stack(attention).numpy(),
        mlp=torch.stack(mlp).numpy(),
        patterns=patterns,
        habits=habits,
        predictions=predictions.indices.numpy(),
        prediction_probabilities=predictions.values.numpy(),
        stage_predictions=stage_predictions.indices.numpy(),
        stage_probabilities=stage_predictions.values.numpy(),
        next_tokens=most_likely.indices.numpy(),
        next_probabilities=most_likely.values.numpy(),
        vocabulary={id: make_token(loaded.tokenizer, id).label for id in sorted(ids)},
    )


def _next_probabilities(model: GPT, x: Tensor) -> Tensor:
    """The probabilities of the next token, (N, V), from rows of the residual stream (N, C)."""
    return require_finite(model.unembed(model.norm(x[None])))[0].softmax(-1)


def _thousandths(weights: Tensor) -> list[list[int]]:
    """The rows of a pattern up to the diagonal, as integers."""
    rows: list[list[int]] = (weights * 1000).round().int().tolist()
    return [row[: t + 1] for t, row in enumerate(rows)]
