"""GPT-2, and nothing else: no disk, no device choice, no tokenizer, no loss, no sampling.

    ids (B, T) --embed--> (B, T, C) --blocks--> (B, T, C) --norm--> (B, T, C) --unembed--> logits (B, T, V)

The axis letters: `B` sequences in a batch, `T` positions of this call, `S` positions seen so far, `C` the
width of the residual stream, `H` heads of width `D = C / H`, `V` the vocabulary.

The architecture is that of "Language Models are Unsupervised Multitask Learners" (Radford et al., 2019):
learned token and position embeddings, pre-norm blocks, a final layer norm, a head tied to the token
embedding. Names are GPT-2's own, so its weights fit. Each stage is a method of its own, so that whoever
wants to look inside (`octavo.lens`) calls the same steps that training does.
"""

import math

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
        x = self.embed(idx, start=cache.length if cache else 0)  # (B, T, C)
        x = self.blocks(x, cache)  # (B, T, C)
        return self.norm(x)

    def embed(self, idx: Tensor, start: int = 0) -> Tensor:
        """Token embedding plus the embedding of positions `start`, `start + 1`, ..."""
        end = start + idx.size(1)
        if end > self.settings.block_size:
            raise OctavoError(f"{end} positions, but the model's block_size is {self.settings.block_size}",
                              "crop the text, or train with a larger block_size")  # fmt: skip
        tok = self.transformer.wte(idx)  # (B, T, C)
        pos = self.transformer.wpe.weight[start:end]  # (T, C)
        x: Tensor = self.transformer.drop(tok + pos)  # (B, T, C)
        return x

    def blocks(self, x: Tensor, cache: "KVCache | None" = None) -> Tensor:
        """The residual stream after all blocks."""
        for layer, block in enumerate(self.transformer.h):
            x = block(x, cache, layer)  # (B, T, C)
        if cache:
            cache.length += x.size(1)
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
        return self.output(self.attend(q, k, v))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of every head: three of (B, H, T, D)."""
        B, T, C = x.shape
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)  # (B, T, 3, H, D)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, D)
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """softmax(q kᵀ / sqrt(D)) v, where the last of the T queries sees all S keys."""
        T, S = q.size(2), k.size(2)
        continues = 1 < T < S  # then the triangle isn't square, and must be drawn
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T) if continues else None
        y = F.scaled_dot_product_attention(
            q, k, v, mask, self.dropout if self.training else 0.0, is_causal=T == S > 1
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
        h = F.gelu(self.c_fc(x), approximate=self.approximate)  # (B, T, 4C)
        x = self.drop(self.c_proj(h))  # (B, T, C)
        return x


class KVCache:
    """Keys and values of the positions seen so far, for up to `block_size` positions.

    Sampling runs the model on the newest token alone; what earlier tokens offered stands here.
    """

    def __init__(self, model: GPT, batch: int = 1) -> None:
        settings, like = model.settings, model.lm_head.weight
        shape = (batch, settings.n_head, settings.block_size, settings.head_size)
        self.keys = [like.new_empty(shape) for _ in range(settings.n_layer)]
        self.values = [like.new_empty(shape) for _ in range(settings.n_layer)]
        self.length = 0  # positions seen; `GPT.blocks` counts on

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put in the keys and values (B, H, T, D) of new positions; give those of all, (B, H, S, D)."""
        assert len(k) == len(self.keys[layer]), "a cache serves the batch that it was made for"
        S = self.length + k.size(2)
        self.keys[layer][:, :, self.length : S] = k.detach()  # else the buffers would hold every graph so far
        self.values[layer][:, :, self.length : S] = v.detach()
        return self.keys[layer][:, :, :S], self.values[layer][:, :, :S]
