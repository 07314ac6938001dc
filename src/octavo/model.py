"""GPT-2: the model and its KV cache. No files, devices, tokenizers, loss, optimizer or sampling.

    ids (B, T) --embed--> (B, T, C) --blocks--> (B, T, C) --norm--> (B, T, C) --unembed--> logits (B, T, V)

The architecture is that of "Language Models are Unsupervised Multitask Learners" (Radford et al., 2019): learned
token and position embeddings, pre-norm blocks, a final layer norm, and an output head that shares its weight with
the token embedding. Modules have GPT-2's own names. Every step is a method (embed, blocks, norm, unembed; project,
attend, output; expand, contract), so that `octavo.lens` looks inside by calling the steps that training runs.

Axis letters: `B` sequences in a batch, `T` positions in this call, `S` positions in the KV cache after this call,
`C` width of the residual stream, `H` heads, `D = C / H` width of a head, `V` vocabulary.
"""

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo.errors import OctavoError
from octavo.settings import ModelSettings

Index = tuple[slice | Tensor, ...]


class GPT(nn.Module):
    """GPT-2 of any size: `GPT(settings)(idx)` returns the logits of the next token at every position."""

    def __init__(self, settings: ModelSettings, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if settings.vocab_size < 1:
            raise OctavoError("a model needs a vocabulary: vocab_size=0", "vocab_size=tokenizer.vocab_size")
        self.settings = settings
        self.transformer = Transformer(settings)
        self.lm_head = nn.Linear(settings.n_embd, settings.vocab_size, bias=False)
        self.tie()
        self.initialize(generator)

    def forward(self, idx: Tensor, cache: "KVCache | None" = None, start: int = 0) -> Tensor:
        """Logits (B, T, V) for ids (B, T), the first of them at position `start`.

        With a cache, `idx` continues the sequences in the cache.
        """
        return self.unembed(self.hidden(idx, cache, start))  # (B, T, V)

    def hidden(self, idx: Tensor, cache: "KVCache | None" = None, start: int = 0) -> Tensor:
        """The final hidden states (B, T, C): the input of the output head."""
        x = self.embed(idx, cache.lengths if cache else start)  # (B, T, C)
        x = self.blocks(x, cache)  # (B, T, C)
        return self.norm(x)

    def embed(self, idx: Tensor, start: int | Sequence[int] = 0) -> Tensor:
        """Token plus position embedding. `start` is the first position: one for all sequences, or one for each."""
        T = idx.size(1)
        starts = [start] if isinstance(start, int) else start
        end = max(starts) + T
        if end > self.settings.block_size:
            raise OctavoError(
                f"{end} positions, but the model's block_size is {self.settings.block_size}",
                "crop the text, or train with a larger block_size",
            )
        tok = self.transformer.wte(idx)  # (B, T, C)
        wpe = self.transformer.wpe.weight
        pos = torch.stack([wpe[first : first + T] for first in starts])  # a batch of 1 or B
        return self.transformer.drop(tok + pos)  # (B, T, C)

    def blocks(self, x: Tensor, cache: "KVCache | None" = None) -> Tensor:
        """The residual stream after all blocks."""
        layers = cache.layers(x.size(1)) if cache else [None] * self.settings.n_layer
        for block, layer in zip(self.transformer.h, layers, strict=True):
            x = block(x, layer)  # (B, T, C)
        if cache:
            cache.lengths = [length + x.size(1) for length in cache.lengths]
        return x

    def norm(self, x: Tensor) -> Tensor:
        """The final layer norm."""
        return self.transformer.ln_f(x)  # (B, T, C)

    def unembed(self, x: Tensor) -> Tensor:
        """Logits: the dot product of each position with every row of the token embedding."""
        return self.lm_head(x)  # (B, T, V)

    def tie(self) -> None:
        """Make the output head and the token embedding one parameter (Press and Wolf, 2017)."""
        self.lm_head.weight = self.transformer.wte.weight

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Initialize the weights as GPT-2 does: matrices from N(0, 0.02), biases 0, gains of layer norms 1.

        The 2 n_layer projections into the residual stream are scaled by 1 / sqrt(2 n_layer): their outputs add up.
        With the setting embedding_init="uniform", the embeddings are uniform instead.
        """
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif ".ln_" in name:
                nn.init.ones_(parameter)
            elif self.settings.embedding_init == "uniform" and name.endswith(("wte.weight", "wpe.weight")):
                bound = 1 / math.sqrt(self.settings.n_embd)
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
            else:
                shrink = math.sqrt(2 * self.settings.n_layer) if name.endswith("c_proj.weight") else 1
                nn.init.normal_(parameter, std=0.02 / shrink, generator=generator)


class Transformer(nn.Module):
    """GPT-2's name for everything below the output head. It only holds the modules; `GPT` runs them."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.wte = nn.Embedding(settings.vocab_size, settings.n_embd)
        self.wpe = nn.Embedding(settings.block_size, settings.n_embd)
        self.drop = nn.Dropout(settings.dropout)
        self.h = nn.ModuleList(Block(settings) for _ in range(settings.n_layer))
        self.ln_f = nn.LayerNorm(settings.n_embd, bias=settings.bias)


class Block(nn.Module):
    """Attention reads from other positions, the MLP transforms each position; both add to the residual stream."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(settings.n_embd, bias=settings.bias)
        self.attn = CausalSelfAttention(settings)
        self.ln_2 = nn.LayerNorm(settings.n_embd, bias=settings.bias)
        self.mlp = MLP(settings)

    def forward(self, x: Tensor, cache: "LayerCache | None" = None) -> Tensor:
        x = x + self.attn(self.ln_1(x), cache)  # (B, T, C)
        x = x + self.mlp(self.ln_2(x))  # (B, T, C)
        return x


class CausalSelfAttention(nn.Module):
    """Each position compares its query with the keys up to its own and takes a weighted mean of their values."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.n_head = settings.n_head
        self.dropout = settings.attention_dropout
        self.c_attn = nn.Linear(settings.n_embd, 3 * settings.n_embd, bias=settings.bias)
        self.c_proj = nn.Linear(settings.n_embd, settings.n_embd, bias=settings.bias)
        self.drop = nn.Dropout(settings.dropout)

    def forward(self, x: Tensor, cache: "LayerCache | None" = None) -> Tensor:
        q, k, v = self.project(x)  # (B, H, T, D)
        if cache is None:
            return self.output(self.attend(q, k, v))
        k, v = cache.extend(k, v)  # (B, H, S, D)
        return self.output(self.attend(q, k, v, cache.mask))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of every head, (B, H, T, D) each."""
        B, T, C = x.shape
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)  # (B, T, 3, H, D)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, D)
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """softmax(q kᵀ / sqrt(D)) v, where every query sees the keys up to its own position.

        `mask` (B, 1, T, S) is True where query t sees key s. None: as many keys as queries, or one query that sees
        all keys.
        """
        # On a CPU, `octavo.kernels.fast_path` replaces scaled_dot_product_attention and dropout with faster kernels.
        dropout = self.dropout if self.training else 0.0
        causal = mask is None and q.size(2) > 1
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal)  # (B, H, T, D)

    def output(self, y: Tensor) -> Tensor:
        """The outputs of all heads, concatenated and mixed by `c_proj`: what attention adds to the residual stream."""
        B, H, T, D = y.shape
        y = y.transpose(1, 2).reshape(B, T, H * D)  # (B, T, C)
        return self.drop(self.c_proj(y))  # (B, T, C)


class MLP(nn.Module):
    """C -> 4C -> C with a GELU between, for each position separately."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.approximate = {"gelu_new": "tanh", "gelu": "none"}[settings.activation]
        self.c_fc = nn.Linear(settings.n_embd, 4 * settings.n_embd, bias=settings.bias)
        self.c_proj = nn.Linear(4 * settings.n_embd, settings.n_embd, bias=settings.bias)
        self.drop = nn.Dropout(settings.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.contract(self.expand(x))

    def expand(self, x: Tensor) -> Tensor:
        """The activations of the 4C hidden units."""
        return F.gelu(self.c_fc(x), approximate=self.approximate)  # (B, T, 4C)

    def contract(self, h: Tensor) -> Tensor:
        """The hidden units' output vectors, weighted by their activations: what the MLP adds to the residual stream."""
        return self.drop(self.c_proj(h))  # (B, T, C)


class KVCache:
    """Keys and values of positions already computed, so that the model runs on new tokens only.

    The cache has a row for each of `batch` sequences. Rows may have different lengths, up to `block_size`.
    """

    def __init__(self, model: GPT, batch: int = 1) -> None:
        settings, weight = model.settings, model.lm_head.weight
        shape = (batch, settings.n_head, settings.block_size, settings.head_size)
        # Zeros, because attention multiplies masked values by 0, and 0 * NaN from uninitialized memory is NaN.
        self.keys = [weight.new_zeros(shape) for _ in range(settings.n_layer)]
        self.values = [weight.new_zeros(shape) for _ in range(settings.n_layer)]
        self.rows = list(range(batch))
        self.lengths = [0] * batch  # cached positions of each row; `GPT.blocks` advances them

    def select(self, rows: Sequence[int], lengths: Sequence[int]) -> "KVCache":
        """A view of some rows, each cut to the given length. It shares the memory of this cache."""
        view = copy.copy(self)
        view.rows, view.lengths = list(rows), list(lengths)
        return view

    def layers(self, T: int) -> list["LayerCache"]:
        """Every layer's part of the cache, ready to take T new positions of each row."""
        device, S = self.keys[0].device, max(self.lengths) + T
        positions = torch.tensor(self.lengths, device=device)[:, None] + torch.arange(T, device=device)  # (B, T)
        same_length = len(set(self.lengths)) == 1
        mask = None  # plain causal attention, or one query that sees all keys: both have faster kernels
        if any(self.lengths) and not (T == 1 and same_length):
            mask = torch.arange(S, device=device) <= positions[:, None, :, None]  # (B, 1, T, S)
        first, last = self.rows[0], self.rows[-1]
        rows: slice | Tensor = slice(first, last + 1)
        new_index: Index = (rows, slice(S - T, S))
        if not same_length or self.rows != list(range(first, last + 1)):  # then `extend` returns copies, not views
            rows = torch.tensor(self.rows, device=device)
            new_index = (rows[:, None], positions)
        pairs = zip(self.keys, self.values, strict=True)
        return [LayerCache(k, v, new_index, (rows, slice(None), slice(S)), mask) for k, v in pairs]


class LayerCache(NamedTuple):
    """One layer's part of a `KVCache` during one call of the model."""

    keys: Tensor
    values: Tensor
    new_index: Index  # rows and positions of the new tokens
    full_index: Index  # rows, heads and positions of all tokens
    mask: Tensor | None  # see `CausalSelfAttention.attend`

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values (B, H, T, D) of the new positions; return those of all, (B, H, S, D)."""
        # Detached, because the buffers would otherwise keep the autograd graphs of all calls alive.
        self.keys.transpose(1, 2)[self.new_index] = k.detach().transpose(1, 2)
        self.values.transpose(1, 2)[self.new_index] = v.detach().transpose(1, 2)
        return self.keys[self.full_index], self.values[self.full_index]
