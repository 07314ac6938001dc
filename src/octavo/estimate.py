"""What a run costs, by formula: parameters, FLOPs, memory, disk, and seconds from a measured step.

Settings in, numbers out: nothing here builds a model, reads a file or measures. Speed depends on the machine; it is
measured by `octavo.training.run_estimate`, which combines it with these formulas.

Axis letters: `B` sequences in a batch, `T` positions, `C` width, `H` heads, `L` layers, `V` vocabulary.
"""

import math
from dataclasses import dataclass

from octavo.settings import SAMPLE_TOKENS, ModelSettings, Settings
from octavo.units import format_bytes

FLOPS_FORMULA = "forward 2 W + 4 L T C, backward twice that (PaLM, appendix B); W: the weights of matmuls"
MAX_EPOCHS = 20  # with more epochs, `warnings` warns of overfitting
# With fewer training tokens per vocabulary entry, `warnings` reports that the vocabulary is too large. word2vec
# (Mikolov et al., 2013) drops words that occur fewer than 5 times.
MIN_TOKENS_PER_ENTRY = 5

# The heap fragments, because the blocks that a step frees do not fit the next ones. Measured with glibc, over 15 model
# shapes: 0.2 to 0.57 of the activations.
_FRAGMENTATION = 0.45


def parameters(settings: ModelSettings) -> int:
    """The number of parameters; the head shares its weights with the token embedding, which count once."""
    return sum(parameters_by_part(settings).values())


def parameters_by_part(settings: ModelSettings) -> dict[str, int]:
    """The number of parameters of each part of the model, counted as Hugging Face does: `wte` is also the head.

    nanoGPT's count leaves out `wpe`; the scaling laws (Kaplan et al., 2020) leave out both embeddings.
    """
    C, bias, L = settings.n_embd, settings.bias, settings.n_layer
    return {
        "wte": settings.vocab_size * C,
        "wpe": settings.block_size * C,
        "attention": L * (4 * C * C + bias * 4 * C),
        "mlp": L * (8 * C * C + bias * 5 * C),
        "norms": (2 * L + 1) * C * (1 + bias),
    }


def flops_per_token(settings: ModelSettings, sequence_length: int | None = None) -> int:
    """FLOPs of forward and backward for one token of training; sequences are block_size long by default.

    Six for each weight of a matmul (position embeddings are only added), and 12 L T C for attention's two matmuls over
    the full T x T square: PaLM (Chowdhery et al., 2022), appendix B. `torch.utils.flop_counter` counts the same number
    if attention runs as matmuls; it does not count PyTorch's fused CPU attention at all.
    """
    return 3 * forward_flops_per_token(settings, sequence_length)


def forward_flops_per_token(settings: ModelSettings, sequence_length: int | None = None) -> int:
    """FLOPs of the forward for one token: a third of `flops_per_token`."""
    weights = settings.n_layer * 12 * settings.n_embd**2 + settings.vocab_size * settings.n_embd
    return 2 * weights + 4 * settings.n_layer * (sequence_length or settings.block_size) * settings.n_embd


@dataclass(frozen=True)
class Memory:
    """Bytes that training uses, by part, and at its peak: of a GPU's memory, or of the process on a CPU."""

    weights: int  # float32, plus the 16-bit copy that mixed precision makes
    gradients: int
    optimizer: int  # its state
    activations: int  # saved by the forward for the backward
    logits: int  # with autograd three float32 tensors of their size (see `memory`); the C code has one
    optimizer_workspace: int  # temporary tensors of an optimizer step
    fragmentation: int  # of the allocator's heap
    checkpoint: int  # the copy that is written while training continues; 0 on CUDA, whose copy is in main memory
    program: int  # Python, PyTorch, and the libraries that the first step loads
    peak: int


def memory(
    settings: Settings,
    device: str,
    precision: str,
    micro_batch: int,
    program: int = 0,
    processes: int = 1,
    has_fused_step: bool = True,
) -> Memory:
    """What training uses on a device of type "cpu", "cuda" or "mps", with `micro_batch` sequences at once.

    If several processes divide the batch, this is what each uses, with one more tensor to all-reduce the gradients.
    `has_fused_step`: whether the C code may compute the gradients on a CPU, which stores less than autograd.

    Autograd's peak is at the start of a backward, with all activations and three tensors the size of the logits: the
    loss's log-probabilities, their gradient, and the gradient of the logits. If activations are small, the peak is in
    the optimizer step. The backward frees activations as it adds gradients, so gradients count in addition only with
    gradient accumulation, when those of the previous micro-batch exist already. The formula was compared with
    measurements on a CPU; on a GPU a compiled step stores fewer activations. The C code allocates all its buffers once
    and keeps them: activations, logits and gradients.
    """
    P, matrices, V = parameters(settings), settings.n_layer * 12 * settings.n_embd**2, settings.vocab_size
    size, rows = _element_size(precision), min(micro_batch, settings.batch_size)
    bf16_copy = device == "cuda" and precision == "bf16"  # training.bf16_weights; elsewhere autocast casts the matrices
    # The backward needs the cast matrices: with activation checkpointing, those of one block at a time.
    cast_matrices = matrices // settings.n_layer if settings.checkpoint_activations else matrices
    cast_weights = (P if bf16_copy else cast_matrices + V * settings.n_embd) if size == 2 else 0
    is_fused = has_fused_step and device == "cpu" and not settings.checkpoint_activations
    activations, logits = (rows * count for count in bytes_per_sequence(settings, device, precision, is_fused))
    muon = settings.optimizer == "muon"
    weights, gradients = 4 * P + 2 * cast_weights, (6 if bf16_copy else 4) * P
    optimizer = 8 * P - 4 * matrices * muon  # AdamW keeps two float32 numbers per parameter, Muon one
    # Muon: the update itself, and four tensors of a Newton-Schulz iteration, its input and three matmul results.
    workspace = matrices * (4 + 4 * (2 if precision == "bf16" else 4)) * muon
    after_backward = max(workspace, 4 * P * (processes > 1))
    if is_fused:
        transient = gradients + activations + logits + after_backward
    elif rows < settings.batch_size // processes:  # gradient accumulation
        transient = gradients + max(activations + logits, after_backward)
    else:
        transient = max(activations + logits, gradients + after_backward)
    # With activation checkpointing, large blocks are returned to the kernel instead (`kernels.return_freed_memory`).
    fragmented = workspace + (0 if settings.checkpoint_activations or is_fused else activations)
    fragmentation = int(_FRAGMENTATION * fragmented) if device == "cpu" else 0
    # The matrices once more: they are transposed for Hugging Face's layout.
    checkpoint = 4 * P + optimizer + 4 * matrices if device != "cuda" else 0
    peak = program + weights + optimizer + transient + fragmentation + checkpoint
    return Memory(
        weights, gradients, optimizer, activations, logits, workspace, fragmentation, checkpoint, program, peak
    )


def disk_bytes(settings: Settings) -> int:
    """The most disk that the checkpoints of a run take.

    Two keep the trainer's state, and a third is complete before one of them is removed. The best and the log-spaced
    ones hold only weights.
    """
    weights = 4 * parameters(settings)
    state = memory(settings, "cpu", "fp32", 1).optimizer
    return 3 * (weights + state) + (1 + len(settings.log_spaced_steps)) * weights


def bytes_per_sequence(settings: Settings, device: str, precision: str, is_fused: bool = False) -> tuple[int, int]:
    """Return the bytes of activations and the bytes of logits of one training sequence.

    `is_fused`: of the C code (`octavo.fused_step`); otherwise of autograd.

    With activation checkpointing, the activations of one block are allocated after the logits are freed, so only the
    bytes by which they are larger count.
    """
    L, C, T = settings.n_layer, settings.n_embd, settings.block_size
    size = _element_size(precision)
    residual = size if device == "cuda" and precision == "bf16" else 4  # autocast keeps the residual stream in float32
    # Saved per position and block: the residual stream before both norms, and the norms' outputs; queries, keys, values
    # and the heads' outputs; the MLP's hidden units before and after the GELU; two float32 statistics of each norm.
    attention = _attention_bytes(settings, device, size, is_fused)
    block = 2 * C * residual + (2 + 4 + 8) * C * size + 16 + attention
    mask = 1 if device == "cuda" else size
    if settings.dropout and not is_fused:  # the C code stores no masks: it computes them again
        block += 2 * C * mask
    if is_fused:  # the blocks share the buffers of the activations' gradients, and the logits become their gradient
        buffers = 4 * C + (1 + 1 + 1 + 4 + 3) * C * size
        # Attention that runs as matmuls has four more: `attention_gradient`, `qkv`, `y_heads` and `qkv_heads_gradient`.
        if attention:
            buffers += attention + (3 + 1 + 3) * C * size
        return T * (L * block + (4 + size) * C + 8 + 12 + buffers), T * settings.vocab_size * size
    # Outside the blocks: the final norm's input, output and statistics; the ids and targets in int64; the dropout mask
    # of the embedding.
    rest = C * residual + C * size + 8 + 16 + (C * (1 if device == "cuda" else 4) if settings.dropout else 0)
    logits = 12 * settings.vocab_size
    if settings.checkpoint_activations:
        return T * (L * C * residual + rest + max(0, block - logits)), T * logits
    return T * (L * block + rest), T * logits


def _attention_bytes(settings: ModelSettings, device: str, size: int, is_fused: bool) -> int:
    """Bytes that attention saves per position, besides queries, keys, values and outputs."""
    from octavo import kernels  # it loads PyTorch, which `octavo list` does not
    from octavo.kernels.training import has_fused_attention

    C, H, T = settings.n_embd, settings.n_head, settings.block_size
    if device == "cuda" or (T > kernels.MAX_MATMUL_ATTENTION_LENGTH and not settings.attention_dropout):
        return 4 * H  # fused attention saves only the softmax's normalizer
    if settings.attention_dropout:
        # In float32: attention weights, mask and their product. Queries, keys and values are in float32 too, where the
        # caller counts `size` bytes.
        return 12 * H * T + 3 * C * (4 - size)
    if is_fused and has_fused_attention(T, C // H, bf16=size == 2):
        return 0
    return H * T * size


def _element_size(precision: str) -> int:
    return 4 if precision == "fp32" else 2


@dataclass(frozen=True)
class Timing:
    """Seconds that a machine takes for each part of a run."""

    step: float
    short_step: float  # during the curriculum, with sequences of block_size / curriculum_splits
    evaluated_token: float
    sample: float


def timing_from_step(settings: Settings, step: float, sequence_length: int) -> Timing:
    """The timing of a run whose steps, with sequences of this length, take `step` seconds: the rest follows from FLOPs.

    Evaluation and sampling run in float32, at half the rate of bf16. With a KV cache, a token of a sample takes 0.3 ms
    per layer, whatever the width (measured on two cores, up to n_embd=400); past block_size it takes a whole forward.
    """
    T, tokens = settings.block_size, settings.batch_size * settings.block_size
    seconds_per_flop = step / (tokens * flops_per_token(settings, sequence_length))
    forward = forward_flops_per_token(settings) * seconds_per_flop * (2 if settings.precision == "bf16" else 1)
    uncached = max(0, SAMPLE_TOKENS - T)
    return Timing(
        step=tokens * flops_per_token(settings) * seconds_per_flop,
        short_step=tokens * flops_per_token(settings, T // settings.curriculum_splits) * seconds_per_flop,
        evaluated_token=forward,
        sample=SAMPLE_TOKENS * settings.n_layer * 3e-4 + uncached * T * forward,
    )


def seconds_by_part(settings: Settings, timing: Timing, tokens_per_evaluation: int) -> dict[str, float]:
    """The seconds that a run spends on steps, evaluations, samples and checkpoints."""
    short = math.ceil(settings.curriculum_fraction * settings.max_steps) if settings.curriculum_splits > 1 else 0
    evaluations, samples, saves = (
        math.ceil(settings.max_steps / every) if every else 0
        for every in (settings.eval_every, settings.sample_every, settings.save_every)
    )
    weights = 4 * parameters(settings)
    return {
        "steps": short * timing.short_step + (settings.max_steps - short) * timing.step,
        "evaluations": evaluations * tokens_per_evaluation * timing.evaluated_token,
        "samples": samples * timing.sample,
        # A checkpoint that has the optimizer's state is three times as large as the weights (AdamW; less with Muon).
        # Those that `keep_checkpoints` adds hold only weights.
        "checkpoints": max(evaluations, saves) * _write_seconds(3 * weights)
        + settings.keep_checkpoints * _write_seconds(weights),
    }


def _write_seconds(size: int) -> float:
    """Seconds to write a checkpoint of `size` bytes with its checksums, on a common disk."""
    return 0.015 + size / 5e8


def warnings(
    settings: Settings,
    needed_bytes: int,
    free_bytes: int | None,
    train_tokens: int | None = None,
    mean_document_tokens: float | None = None,
    new_model: bool = True,
    free_disk_bytes: int | None = None,
) -> list[str]:
    """Likely mistakes, each with a remedy. The vocabulary is checked only if the model is trained from scratch."""
    T, V, messages = settings.block_size, settings.vocab_size, []
    if free_bytes is not None and needed_bytes > free_bytes:
        messages.append(
            f"training needs about {format_bytes(needed_bytes)} of memory, but {format_bytes(free_bytes)} are free "
            "(smaller: --micro-batch, --n-layer, --n-embd)"
        )
    if free_disk_bytes is not None and (disk := disk_bytes(settings)) > free_disk_bytes:
        messages.append(
            f"checkpoints need up to {format_bytes(disk)} of disk, but {format_bytes(free_disk_bytes)} are free "
            "(smaller: --keep-checkpoints; elsewhere: --out)"
        )
    if train_tokens is None:
        return messages
    tokens_per_step = settings.batch_size * T
    # With early stopping, training ends before the model overfits.
    if not settings.patience and (epochs := settings.max_steps * tokens_per_step / train_tokens) > MAX_EPOCHS:
        fewer = max(1, int(MAX_EPOCHS * train_tokens / tokens_per_step))
        messages.append(
            f"{epochs:,.0f} epochs: after about {MAX_EPOCHS} a model overfits (--max-steps {fewer}, or more text)"
        )
    if new_model and train_tokens < MIN_TOKENS_PER_ENTRY * V:
        messages.append(
            f"a vocabulary of {V:,} for {train_tokens:,} tokens of text: most entries occur too rarely to be learned "
            "(a smaller vocabulary: --tokenizer char)"
        )
    if mean_document_tokens is not None and mean_document_tokens < T:
        messages.append(
            f"documents have {mean_document_tokens:,.0f} tokens on average, so most sequences of {T:,} hold several "
            f"(--block-size {max(8, 1 << int(math.log2(max(1, mean_document_tokens))))})"
        )
    return messages
