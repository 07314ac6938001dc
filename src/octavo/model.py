"""GPT-2, and nothing else: no disk, no device choice, no tokenizer, no loss, no sampling.

    ids (B, T) --embed--> (B, T, C) --blocks--> (B, T, C) --norm--> (B, T, C) --unembed--> logits (B, T, V)

The axis letters: `B` sequences in a batch, `T` positions of this call, `S` positions seen so far, `C` the
width of the residual stream, `H` heads of width `D = C / H`, `V` the vocabulary.

The architecture is that of "Language Models are Unsupervised Multitask Learners" (Radford et al., 2019):
learned token and position embeddings, pre-norm blocks, a final layer norm, a head tied to the token
embedding. Names are GPT-2's own, so its weights fit. Each stage is a method of its own, so that whoever
wants to look inside (`octavo.lens`) calls the same steps that training does.
"""

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo.errors import OctavoError
from octavo.settings import ModelSettings


class GPT(nn.Module):
    """A GPT-2 of any shape: `GPT(settings)(idx)` gives the logits of the next token at every position."""

    def __init__(self, settings: ModelSettings, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if settings.vocab_size < 1:
            raise OctavoError("a model needs a vocabulary: vocab_size=0", "vocab_size=tokenizer.vocab_size")
        self.settings = settings
        self.transformer = Transformer(settings)
        self.lm_head = nn.Linear(settings.n_embd, settings.vocab_size, bias=False)
        self.tie()
        self.initialize(generator)

    def forward(self, idx: Tensor, cache: "KVCache | None" = None) -> Tensor:
        """Logits (B, T, V) for ids (B, T). With a cache, `idx` continues what the cache has seen."""
        return self.unembed(self.hidden(idx, cache))  # (B, T, V)

    def hidden(self, idx: Tensor, cache: "KVCache | None" = None) -> Tensor:
        """What the head reads, (B, T, C): the final norm's output for ids (B, T)."""
        x = self.embed(idx, cache.lengths if cache else 0)  # (B, T, C)
        x = self.blocks(x, cache)  # (B, T, C)
        return self.norm(x)

    def embed(self, idx: Tensor, start: int | Sequence[int] = 0) -> Tensor:
        """Token embedding plus the embedding of positions `start`, `start + 1`, ...; a start for all texts, or each."""
        T = idx.size(1)
        starts = [start] if isinstance(start, int) else start
        end = max(starts) + T
        if end > self.settings.block_size:
            raise OctavoError(f"{end} positions, but the model's block_size is {self.settings.block_size}",
                              "crop the text, or train with a larger block_size")  # fmt: skip
        tok = self.transformer.wte(idx)  # (B, T, C)
        wpe = self.transformer.wpe.weight
        pos = torch.stack([wpe[each : each + T] for each in starts])  # for all of them, or for each
        x: Tensor = self.transformer.drop(tok + pos)  # (B, T, C)
        return x

    def blocks(self, x: Tensor, cache: "KVCache | None" = None) -> Tensor:
        """The residual stream after all blocks."""
        if cache:
            cache.begin(x.size(1))
        for layer, block in enumerate(self.transformer.h):
            x = block(x, cache, layer)  # (B, T, C)
        if cache:
            cache.lengths = [length + x.size(1) for length in cache.lengths]
        return x

    def norm(self, x: Tensor) -> Tensor:
        """The final layer norm, `ln_f`."""
        x = self.transformer.ln_f(x)  # (B, T, C)
        return x

    def unembed(self, x: Tensor) -> Tensor:
        """Logits: how well each token of the vocabulary fits, by its row of `wte`."""
        logits: Tensor = self.lm_head(x)  # (B, T, V)
        return logits

    def tie(self) -> None:
        """Make the head and the token embedding one parameter (Press and Wolf, 2017)."""
        self.lm_head.weight = self.transformer.wte.weight

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Start the weights as GPT-2 does: N(0, 0.02), projections into the residual stream narrower.

        Those are scaled by 1 / sqrt(2 n_layer), since 2 n_layer of them add up there.
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
    """GPT-2's name for all that comes before the head: a shelf for its parts, walked by `GPT`."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.wte = nn.Embedding(settings.vocab_size, settings.n_embd)
        self.wpe = nn.Embedding(settings.block_size, settings.n_embd)
        self.drop = nn.Dropout(settings.dropout)
        self.h = nn.ModuleList(Block(settings) for _ in range(settings.n_layer))
        self.ln_f = nn.LayerNorm(settings.n_embd, bias=settings.bias)


class Block(nn.Module):
    """Look around (attention), then think (MLP); each adds to the residual stream what it found."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(settings.n_embd, bias=settings.bias)
        self.attn = CausalSelfAttention(settings)
        self.ln_2 = nn.LayerNorm(settings.n_embd, bias=settings.bias)
        self.mlp = MLP(settings)

    def forward(self, x: Tensor, cache: "KVCache | None" = None, layer: int = 0) -> Tensor:
        x = x + self.attn(self.ln_1(x), cache, layer)  # (B, T, C)
        x = x + self.mlp(self.ln_2(x))  # (B, T, C)
        return x


class CausalSelfAttention(nn.Module):
    """Every position asks (query) all positions up to its own (key) and takes what they hold (value)."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.n_head = settings.n_head
        self.dropout = settings.attention_dropout
        self.c_attn = nn.Linear(settings.n_embd, 3 * settings.n_embd, bias=settings.bias)
        self.c_proj = nn.Linear(settings.n_embd, settings.n_embd, bias=settings.bias)
        self.drop = nn.Dropout(settings.dropout)

    def forward(self, x: Tensor, cache: "KVCache | None" = None, layer: int = 0) -> Tensor:
        q, k, v = self.project(x)
        if cache:
            k, v = cache.extend(layer, k, v)
        return self.output(self.attend(q, k, v, cache.seen if cache else None))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of every head: three of (B, H, T, D)."""
        B, T, C = x.shape
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)  # (B, T, 3, H, D)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, D)
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> Tensor:
        """softmax(q kᵀ / sqrt(D)) v, where each of the T queries sees all keys up to its own position.

        `seen` (B, 1, T, S) says which, where the queries are not the first T positions of every text.
        """
        y = F.scaled_dot_product_attention(
            q, k, v, seen, self.dropout if self.training else 0.0, is_causal=seen is None and q.size(2) > 1
        )  # (B, H, T, D)
        return y

    def output(self, y: Tensor) -> Tensor:
        """The heads side by side, mixed, as an addition to the residual stream."""
        B, H, T, D = y.shape
        y = y.transpose(1, 2).reshape(B, T, H * D)  # (B, T, C)
        y = self.drop(self.c_proj(y))  # (B, T, C)
        return y


class MLP(nn.Module):
    """C -> 4C -> C with a GELU between, at each position by itself."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.approximate = {"gelu_new": "tanh", "gelu": "none"}[settings.activation]
        self.c_fc = nn.Linear(settings.n_embd, 4 * settings.n_embd, bias=settings.bias)
        self.c_proj = nn.Linear(4 * settings.n_embd, settings.n_embd, bias=settings.bias)
        self.drop = nn.Dropout(settings.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.contract(self.expand(x))

    def expand(self, x: Tensor) -> Tensor:
        """How strongly each of the 4C hidden units answers to a position."""
        h: Tensor = F.gelu(self.c_fc(x), approximate=self.approximate)  # (B, T, 4C)
        return h

    def contract(self, h: Tensor) -> Tensor:
        """What the hidden units write, mixed by how strongly they answer: an addition to the residual stream."""
        x: Tensor = self.drop(self.c_proj(h))  # (B, T, C)
        return x


class KVCache:
    """Keys and values of the positions seen so far, for up to `block_size` positions of each of `batch` texts.

    Sampling runs the model on the newest token alone; what earlier tokens offered stands here, each text's in a row
    of its own, as far as it has come. `at` names rows to go on with.
    """

    def __init__(self, model: GPT, batch: int = 1) -> None:
        settings, like = model.settings, model.lm_head.weight
        shape = (batch, settings.n_head, settings.block_size, settings.head_size)
        self.keys = [like.new_zeros(shape) for _ in range(settings.n_layer)]  # not empty: what a mask hides must
        self.values = [like.new_zeros(shape) for _ in range(settings.n_layer)]  # be finite, for 0 times NaN is NaN
        self.rows = list(range(batch))
        self.lengths = [0] * batch  # positions seen of each text; `GPT.blocks` counts on
        self.seen: Tensor | None = None

    def at(self, rows: Sequence[int], lengths: Sequence[int]) -> "KVCache":
        """The same memory, for the texts in these rows, of which so much was seen."""
        view = copy.copy(self)
        view.rows, view.lengths = list(rows), list(lengths)
        return view

    def begin(self, T: int) -> None:
        """Make ready for T further positions of each text: where they go, and what each of them may see."""
        device = self.keys[0].device
        self._where = torch.tensor(self.lengths, device=device)[:, None] + torch.arange(T, device=device)  # (B, T)
        S = max(self.lengths) + T
        alone = T == 1 and len(set(self.lengths)) == 1  # a newest position sees all: no mask, and the fast kernels
        first = not any(self.lengths)
        self.seen = None if alone or first else (torch.arange(S, device=device) <= self._where[:, None, :, None])

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put in the keys and values (B, H, T, D) of new positions; give those of all, (B, H, S, D)."""
        assert len(k) == len(self.rows), "a cache serves the texts that it was made for"
        keys, values, S = self.keys[layer], self.values[layer], max(self.lengths) + k.size(2)
        k, v = k.detach(), v.detach()  # else the buffers would hold every graph so far
        first, last = self.rows[0], self.rows[-1]
        if self.rows == list(range(first, last + 1)) and len(set(self.lengths)) == 1:  # a plain box of memory
            keys[first : last + 1, :, self.lengths[0] : S] = k
            values[first : last + 1, :, self.lengths[0] : S] = v
            return keys[first : last + 1, :, :S], values[first : last + 1, :, :S]
        rows = torch.tensor(self.rows, device=k.device)
        keys[rows[:, None], :, self._where] = k.transpose(1, 2)
        values[rows[:, None], :, self._where] = v.transpose(1, 2)
        return keys[rows, :, :S], values[rows, :, :S]
