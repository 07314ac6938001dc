"""Forward and backward of GPT on a CPU, written out: the matmuls in PyTorch, everything between them in C.

Autograd runs an operation, and a pass over memory, for every addition, norm, activation, cast and copy. In small models
these take longer than the matmuls. Here `octavo.kernels.training` fuses all operations between two matmuls into one
pass. Attention over short sequences is a single pass too, including its matmuls. Buffers are allocated once, and the
list of calls that a batch needs is made once and run for every batch of that shape. The plain path, autograd through
`octavo.model`, is the specification: `tests/test_fused_step.py` compares losses and gradients.

The residual stream, its gradient and all sums are float32. Matmuls run in float32, or in bf16 with bf16 copies of the
weights.

Axis letters: `B` sequences, `T` positions, `N = B T` rows, `C` width, `H` heads, `D` head width, `V` vocabulary, `K`
chunks of rows.
"""

import ctypes
import math
import platform
from collections.abc import Callable, Iterator
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from octavo.kernels import MAX_MATMUL_ATTENTION_LENGTH, onednn_matmuls
from octavo.kernels.training import (
    Call,
    CrossEntropy,
    Dropout,
    Embed,
    TrainingKernels,
    count_chunks,
    has_fused_attention,
    load_training_library,
)
from octavo.kernels.weights import check_weights
from octavo.model import GPT, MLP, Block, CausalSelfAttention
from octavo.native_library import UnavailableError
from octavo.settings import ModelSettings

_MIN_ROWS_OF_PART = 512  # the fastest of 128 to 4,096, measured on an Intel with AMX
_MAX_ELEMENTS_OF_ALL_PARTS = 1 << 23  # bounds the memory of the parts of one weight's gradient


def is_supported(settings: ModelSettings) -> bool:
    """Whether a model can be trained this way: it has no dropout of attention weights, and at most 512 positions.

    With more positions, PyTorch's own attention is faster (`octavo.kernels.replacements`).
    """
    return not settings.attention_dropout and settings.block_size <= MAX_MATMUL_ATTENTION_LENGTH


def is_available(settings: ModelSettings) -> bool:
    """Whether a model is trained this way on this machine's CPU, if no other setting prevents it."""
    if not is_supported(settings) or not is_faster():
        return False
    try:
        load_training_library()
    except UnavailableError:
        return False
    return True


def is_faster() -> bool:
    """Whether the C code is faster than autograd on this processor: it is on x86.

    With AVX2 or SSE2 alone it is 1.2 and 1.1 times as fast in float32 (bench/instruction_sets.py, emulated). Other
    processors have not been measured.
    """
    return platform.machine() in ("x86_64", "AMD64")


def forward_loss(model: GPT) -> Callable[[Tensor], Tensor] | None:
    """A function from ids (B, T + 1) to their summed loss in float32, for an evaluation of the weights as they are now.

    None if the C code can't read the weights, or if `is_available` is False: then PyTorch has to compute the loss.
    """
    if not is_available(model.settings):
        return None
    try:
        step = FusedStep(model, bf16=False, only_forward=True)
    except UnavailableError:
        return None
    step.refresh()
    return step.loss


class FusedStep:
    """Computes the gradients of a model's parameters, one micro-batch at a time.

    With `only_forward`, only the loss, without dropout. Raises `UnavailableError` if the C code can't be used, or not
    with these weights.
    """

    def __init__(self, model: GPT, bf16: bool, only_forward: bool = False) -> None:
        check_weights(model)
        if model.lm_head.weight is not model.transformer.wte.weight:
            raise UnavailableError("the C code needs a head that is tied to the token embeddings")
        self.model, self.kernels, self.only_forward = model, TrainingKernels(bf16), only_forward
        self.notices = [self.kernels.notice] if self.kernels.notice else []
        self.dtype = torch.bfloat16 if bf16 else torch.float32
        dropout = 0.0 if only_forward else model.settings.dropout
        self.dropouts = [Dropout(dropout) for _ in range(2 * model.settings.n_layer + 1)]
        self.gradients: dict[Tensor, Tensor] = {}  # of the parameters
        self.weights: dict[Tensor, Tensor] = {}  # of the parameters that matmuls read, in `dtype`
        self._addresses: list[int] = []
        self.memory: dict[str, Tensor] = {}  # of all buffers by name; batches of all shapes share it
        self._calls: dict[tuple[int, int, bool], _Calls] = {}

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the weights as they are now into the matmuls' type. Each update calls this before its micro-batches."""
        parameters = list(self.model.parameters())
        addresses = [parameter.data_ptr() for parameter in parameters]
        if addresses != self._addresses:  # at the first update; also if the tensors were replaced
            self._addresses = addresses
            self._calls.clear()
            matrices = [p for p in parameters if p.dim() == 2 and p is not self.model.transformer.wpe.weight]
            self.weights = {matrix: matrix.detach().to(self.dtype) for matrix in matrices}
            self.gradients = {} if self.only_forward else {p: torch.empty_like(p) for p in parameters}
        if self.dtype != torch.float32:
            torch._foreach_copy_(list(self.weights.values()), list(self.weights))

    @torch.no_grad()
    def accumulate_gradients(self, ids: Tensor, start: int, scale: float, seed: int, first_sequence: int) -> Tensor:
        """Add the gradients of `scale` times the loss over ids (B, T + 1) to the parameters', and return the loss.

        The loss is summed over the targets. `start` is the position of the first token. What dropout drops depends on
        `seed` and on the number of each sequence in the whole batch, the first of which is `first_sequence`.
        """
        T, add = ids.size(1) - 1, self.model.lm_head.weight.grad is not None
        for number, dropout in enumerate(self.dropouts if self.model.settings.dropout else ()):
            dropout.set_seed(seed, number, first_sequence * T)
        loss = self._run(ids, start, scale, add)
        for parameter, gradient in self.gradients.items():
            parameter.grad = gradient
        return loss

    @torch.no_grad()
    def loss(self, ids: Tensor) -> Tensor:
        """The summed loss over ids (B, T + 1)."""
        return self._run(ids, start=0, scale=1.0, add=False)

    def _run(self, ids: Tensor, start: int, scale: float, add: bool) -> Tensor:
        B, T = ids.size(0), ids.size(1) - 1
        smallest, largest = map(int, ids.aminmax())  # in C, they would be read as addresses
        if smallest < 0 or largest >= self.model.settings.vocab_size:
            raise IndexError(f"ids from {smallest} to {largest}; the vocabulary has {self.model.settings.vocab_size}")
        calls = self._calls.get((B, T, add))
        if calls is None:
            calls = _Calls(self, B, T, add)
            self._calls[B, T, add] = calls
        calls.prepare(ids, start, scale)
        self.kernels.update_threads()
        with onednn_matmuls:
            for call in calls.calls:
                call()
        return calls.buffers.losses.sum()

    def free_memory(self) -> None:
        """Free all buffers, after memory has run out."""
        self._calls.clear()
        self.memory.clear()

    def allocate(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor in the memory with this name, which is reallocated if it is too small."""
        size = math.prod(shape)
        if name not in self.memory or self.memory[name].numel() < size:
            self._calls.clear()  # they have addresses in the old memory
            self.memory[name] = torch.empty(size, dtype=dtype, device="cpu")
        return self.memory[name][:size].view(shape)


def count_parts(rows: int, elements: int) -> int:
    """P: into how many parts to divide a weight's gradient, which has `elements` and is a sum over `rows`.

    Each part is the sum over equally many rows. One batched matmul computes the parts, which are added up in a fixed
    order. A single matmul is slower, and PyTorch divides its rows among threads, so the last bits of the result would
    depend on the number of threads.
    """
    most = max(1, min(rows // _MIN_ROWS_OF_PART, _MAX_ELEMENTS_OF_ALL_PARTS // elements))
    return next(parts for parts in range(most, 0, -1) if rows % parts == 0)


class _Buffers:
    """The tensors of a batch of one shape. Batches of all shapes use the same memory, one at a time."""

    def __init__(self, step: "FusedStep", B: int, T: int) -> None:
        settings = step.model.settings
        L, C, H, D, V = settings.n_layer, settings.n_embd, settings.n_head, settings.head_size, settings.vocab_size
        N, K = B * T, count_chunks(B * T)

        def fp32(name: str, *shape: int) -> Tensor:
            return step.allocate(name, shape, torch.float32)

        def activations(name: str, *shape: int) -> Tensor:
            return step.allocate(name, shape, step.dtype)

        def for_layers(allocate: Callable[..., Tensor], name: str, count: int, *shape: int) -> Tensor:
            """A tensor for each layer or norm. Without a backward they share their memory."""
            return allocate(name, 1 if step.only_forward else count, *shape).expand(count, *shape)

        self.ids = step.allocate("ids", (B, T + 1), torch.int64)
        self.losses = fp32("losses", N)
        # What the backward needs of the forward.
        self.x = for_layers(fp32, "x", 2 * L + 1, N, C)  # the residual stream before each norm
        self.statistics = for_layers(fp32, "statistics", 2 * L + 1, 2, N)
        self.h = for_layers(activations, "h", 2 * L + 1, N, C)  # the norms' outputs
        self.has_fused_attention = has_fused_attention(T, D, step.dtype == torch.bfloat16)
        if self.has_fused_attention:
            self.qkv = for_layers(activations, "qkv", L, N, 3 * C)
        else:
            self.qkv = activations("qkv", 1, N, 3 * C)  # overwritten by each layer
            self.qkv_heads = for_layers(activations, "qkv_heads", L, 3, B, H, T, D)
            self.attention = for_layers(activations, "attention", L, B * H, T, T)
            self.y_heads = activations("y_heads", 1, B, H, T, D)
        self.y = for_layers(activations, "y", L, N, C)  # the outputs of all heads
        self.expanded = for_layers(activations, "expanded", L, N, 4 * C)  # before the GELU
        self.activated = for_layers(activations, "activated", L, N, 4 * C)
        # Overwritten by each layer.
        self.branch = activations("branch", N, C)
        self.logits = activations("logits", N, V)
        if step.only_forward:
            return
        # Gradients. The gradient of the logits is written to `logits`.
        self.x_gradient = fp32("x_gradient", N, C)
        self.h_gradient = activations("h_gradient", N, C)
        self.branch_gradient = activations("branch_gradient", N, C)
        self.expanded_gradient = activations("expanded_gradient", N, 4 * C)
        self.qkv_gradient = activations("qkv_gradient", N, 3 * C)
        if not self.has_fused_attention:
            self.qkv_heads_gradient = activations("qkv_heads_gradient", 3, B, H, T, D)
            self.attention_gradient = activations("attention_gradient", B * H, T, T)
        self.qkv_sums = fp32("qkv_sums", B if self.has_fused_attention else K, 3 * C)
        self.norm_sums = fp32("norm_sums", K, 3, C)
        self.wide_sums = fp32("wide_sums", K, 4 * C)
        matrices = (C * C, 3 * C * C, 4 * C * C, V * C)
        self.weight_parts = activations("weight_parts", max(count_parts(N, size) * size for size in matrices))


class _Calls:
    """The calls that compute the gradients of a batch of one shape.

    Norm i reads the residual stream x[i] and writes h[i]. Branch i, attention or MLP, leads from h[i] to x[i + 1].
    """

    def __init__(self, step: "FusedStep", B: int, T: int, add: bool) -> None:
        self._step, self._kernels, self._add = step, step.kernels, add
        self.buffers = b = _Buffers(step, B, T)
        settings, self._transformer = step.model.settings, step.model.transformer
        self._n_head, self._scale = settings.n_head, settings.head_size**-0.5  # the scale of the attention scores
        blocks = cast(list[Block], list(self._transformer.h))
        self._branches = [branch for block in blocks for branch in (block.attn, block.mlp)]
        self._norms = [norm for block in blocks for norm in (block.ln_1, block.ln_2)] + [self._transformer.ln_f]
        wte, self._wpe = self._transformer.wte.weight, self._transformer.wpe.weight
        sequences = {"B": B, "T": T, "ids_stride": T + 1}
        dropout, ids = ctypes.pointer(step.dropouts[0]), b.ids.data_ptr()
        self._embed = Embed(**sequences, C=settings.n_embd, ids=ids, dropout=dropout)
        self._embed.wte, self._embed.x = wte.data_ptr(), b.x.data_ptr()
        self._cross_entropy = CrossEntropy(**sequences, V=settings.vocab_size, bf16=b.logits.dtype == torch.bfloat16)
        self._cross_entropy.logits, self._cross_entropy.losses = b.logits.data_ptr(), b.losses.data_ptr()
        self._cross_entropy.targets = b.ids[:, 1:].data_ptr()
        self.calls = [*self._forward()]
        if step.only_forward:
            return
        # The gradient of wte is a sum over the output head and all tokens, that of wpe a sum over all sequences. Both
        # are computed for one micro-batch, and then added to the sums of the earlier micro-batches.
        tables = {"wte": wte, "wpe": self._wpe}
        self._table_gradients = {
            table: step.allocate(f"gradient of {name}", table.shape, table.dtype) if add else step.gradients[table]
            for name, table in tables.items()
        }
        self._embed_backward = Embed(**sequences, C=settings.n_embd, ids=ids, dropout=dropout)
        self._embed_backward.x = b.x_gradient.data_ptr()  # the backward reads the gradient of x here
        self._embed_backward.wte_gradient = self._table_gradients[wte].data_ptr()
        self.calls += self._backward()

    def prepare(self, ids: Tensor, start: int, scale: float) -> None:
        """Set what differs from batch to batch."""
        self.buffers.ids.copy_(ids)
        self._embed.wpe = self._wpe[start:].data_ptr()
        self._cross_entropy.scale = scale
        if not self._step.only_forward:
            self._embed_backward.wpe_gradient = self._table_gradients[self._wpe][start:].data_ptr()

    def _forward(self) -> Iterator[Call]:
        b, last = self.buffers, len(self._branches)
        yield self._kernels.embed_forward(self._embed)
        yield self._kernels.norm_forward(self._norms[0], b.x[0], b.h[0], b.statistics[0])
        for i, branch in enumerate(self._branches):
            yield from self._mlp_forward(branch, i) if isinstance(branch, MLP) else self._attention_forward(branch, i)
            added = (b.x[i], b.branch, branch.c_proj.bias, self._step.dropouts[i + 1])
            yield self._kernels.norm_forward(self._norms[i + 1], b.x[i + 1], b.h[i + 1], b.statistics[i + 1], added)
        yield self._multiply(b.h[last], self._transformer.wte, b.logits)
        yield self._kernels.cross_entropy(self._cross_entropy)

    def _attention_forward(self, attn: CausalSelfAttention, i: int) -> Iterator[Call]:
        b, layer = self.buffers, i // 2
        qkv, y, bias = b.qkv[layer % len(b.qkv)], b.y[layer], attn.c_attn.bias
        yield self._multiply(b.h[i], attn.c_attn, qkv)
        if b.has_fused_attention:
            yield self._kernels.attention_forward(self._sequences(qkv), bias, self._sequences(y), self._n_head)
        else:
            q, k, v = b.qkv_heads[layer].flatten(1, 2)  # (B H, T, D)
            yield self._kernels.split_heads(qkv, b.qkv_heads[layer], bias)
            yield partial(torch.bmm, q, k.mT, out=b.attention[layer])
            yield self._kernels.softmax_forward(b.attention[layer], self._scale)
            yield partial(torch.bmm, b.attention[layer], v, out=b.y_heads.flatten(0, 2))
            yield self._kernels.merge_heads(b.y_heads, y)
        yield self._multiply(y, attn.c_proj, b.branch)

    def _mlp_forward(self, mlp: MLP, i: int) -> Iterator[Call]:
        b, layer, exact = self.buffers, i // 2, mlp.approximate == "none"
        yield self._multiply(b.h[i], mlp.c_fc, b.expanded[layer])
        yield self._kernels.gelu_forward(b.expanded[layer], mlp.c_fc.bias, b.activated[layer], exact)
        yield self._multiply(b.activated[layer], mlp.c_proj, b.branch)

    def _backward(self) -> Iterator[Call]:
        b, last = self.buffers, len(self._branches)
        yield from self._multiply_backward(b.logits, b.h[last], self._transformer.wte, b.h_gradient)
        yield from self._norm_backward(last)
        for i, branch in reversed(list(enumerate(self._branches))):
            yield from self._add_sums(b.norm_sums[:, 2], branch.c_proj.bias)
            yield from self._mlp_backward(branch, i) if isinstance(branch, MLP) else self._attention_backward(branch, i)
            yield from self._norm_backward(i)
        yield self._table_gradients[self._wpe].zero_
        yield self._kernels.embed_backward(self._embed_backward)
        for table, gradient in self._table_gradients.items() if self._add else ():
            yield self._kernels.accumulate(gradient.unsqueeze(0), self._step.gradients[table], add=True)

    def _norm_backward(self, i: int) -> Iterator[Call]:
        """Through norm i, and through the dropout and bias of the branch that was added before it."""
        b, norm, is_last = self.buffers, self._norms[i], i == len(self._branches)
        branch = (b.branch_gradient, self._step.dropouts[i]) if i else None
        gradients = (b.x_gradient, b.h_gradient, b.norm_sums)
        yield self._kernels.norm_backward(norm, b.x[i], b.statistics[i], *gradients, not is_last, branch)
        yield from self._add_sums(b.norm_sums[:, 0], norm.weight)
        yield from self._add_sums(b.norm_sums[:, 1], norm.bias)

    def _mlp_backward(self, mlp: MLP, i: int) -> Iterator[Call]:
        b, layer, exact = self.buffers, i // 2, mlp.approximate == "none"
        yield from self._multiply_backward(b.branch_gradient, b.activated[layer], mlp.c_proj, b.expanded_gradient)
        yield self._kernels.gelu_backward(b.expanded[layer], mlp.c_fc.bias, b.expanded_gradient, b.wide_sums, exact)
        yield from self._add_sums(b.wide_sums, mlp.c_fc.bias)
        yield from self._multiply_backward(b.expanded_gradient, b.h[i], mlp.c_fc, b.h_gradient)

    def _attention_backward(self, attn: CausalSelfAttention, i: int) -> Iterator[Call]:
        b, layer = self.buffers, i // 2
        yield from self._multiply_backward(b.branch_gradient, b.y[layer], attn.c_proj, b.h_gradient)
        if b.has_fused_attention:
            qkv, y_gradient, gradient = map(self._sequences, (b.qkv[layer], b.h_gradient, b.qkv_gradient))
            arguments = (qkv, attn.c_attn.bias, y_gradient, gradient, b.qkv_sums, self._n_head)
            yield self._kernels.attention_backward(*arguments)
        else:
            yield from self._matmul_attention_backward(layer)
        yield from self._add_sums(b.qkv_sums, attn.c_attn.bias)
        yield from self._multiply_backward(b.qkv_gradient, b.h[i], attn.c_attn, b.h_gradient)

    def _matmul_attention_backward(self, layer: int) -> Iterator[Call]:
        b = self.buffers
        q, k, v = b.qkv_heads[layer].flatten(1, 2)  # (B H, T, D)
        q_gradient, k_gradient, v_gradient = b.qkv_heads_gradient.flatten(1, 2)
        weights, gradient, y_gradient = b.attention[layer], b.attention_gradient, b.y_heads.flatten(0, 2)
        yield self._kernels.split_heads(b.h_gradient, b.y_heads)
        yield partial(torch.bmm, y_gradient, v.mT, out=gradient)
        yield partial(torch.bmm, weights.mT, y_gradient, out=v_gradient)
        yield self._kernels.softmax_backward(weights, gradient, self._scale)
        yield partial(torch.bmm, gradient, k, out=q_gradient)
        yield partial(torch.bmm, gradient.mT, q, out=k_gradient)
        yield self._kernels.merge_heads(b.qkv_heads_gradient, b.qkv_gradient, b.qkv_sums)

    def _sequences(self, rows: Tensor) -> Tensor:
        """Rows (N, ...) as (B, T, ...)."""
        return rows.view(len(self.buffers.ids), -1, *rows.shape[1:])

    def _multiply(self, x: Tensor, module: nn.Linear | nn.Embedding, y: Tensor) -> Call:
        """y = x weightᵀ"""
        return partial(torch.mm, x, self._step.weights[module.weight].T, out=y)

    def _multiply_backward(
        self, y_gradient: Tensor, x: Tensor, module: nn.Linear | nn.Embedding, x_gradient: Tensor
    ) -> Iterator[Call]:
        """Compute the gradients of the weight and of x from that of y = x weightᵀ."""
        gradient = self._table_gradients.get(module.weight, self._step.gradients[module.weight])
        add = self._add and module.weight not in self._table_gradients
        P = count_parts(len(x), gradient.numel())
        parts = self.buffers.weight_parts[: P * gradient.numel()].view(P, *gradient.shape)
        y_gradients, xs = (rows.view(P, -1, rows.size(1)) for rows in (y_gradient, x))
        yield partial(torch.bmm, y_gradients.mT, xs, out=parts)
        yield self._kernels.accumulate(parts, gradient, add)
        yield partial(torch.mm, y_gradient, self._step.weights[module.weight], out=x_gradient)

    def _add_sums(self, sums: Tensor, parameter: Tensor | None) -> Iterator[Call]:
        """Add the sums of all chunks to the gradient of a bias or gain."""
        if parameter is not None:
            yield self._kernels.add_sums(sums, self._step.gradients[parameter], self._add)
