"""What a run costs, before it is run, by formula: parameters, FLOPs, memory, how often what is done.

Settings in, numbers out: nothing is built, measured or read here. What only a machine can tell, how fast it is, is
`octavo.training.run_estimate`'s.

The axis letters: `B` sequences at once, `T` positions, `C` width, `H` heads, `L` layers, `V` vocabulary.
"""

import math
from dataclasses import dataclass

from octavo import kernels
from octavo.settings import ModelSettings, Settings
from octavo.units import format_bytes

FLOPS_FORMULA = "forward 2 W + 4 L T C, backward twice that (PaLM, appendix B); W: weights that multiply"
SAMPLE_TOKENS = 200  # that a run writes, now and then
PASSES = 20  # over a text, beyond which a warning is due
TOKENS_PER_ENTRY = 5  # of the vocabulary; word2vec (Mikolov et al., 2013) leaves out words that come fewer times

# What comes and goes in a step leaves holes in the heap that nothing else fits: by glibc's, 0.2 to 0.57 of it was
# measured, over 15 shapes.
_GAPS = 0.45


def parameters(settings: ModelSettings) -> int:
    """All parameters, the tied head counted once."""
    return sum(parameters_by_part(settings).values())


def parameters_by_part(settings: ModelSettings) -> dict[str, int]:
    """Where the parameters are. `wte` is the head too, and counted once: as Hugging Face counts.

    nanoGPT's figure leaves out `wpe`; the scaling laws' (Kaplan et al., 2020) both tables.
    """
    C, bias, L = settings.n_embd, settings.bias, settings.n_layer
    return {
        "wte": settings.vocab_size * C,
        "wpe": settings.block_size * C,
        "attention": L * (4 * C * C + bias * 4 * C),
        "mlp": L * (8 * C * C + bias * 5 * C),
        "norms": (2 * L + 1) * C * (1 + bias),
    }


def flops_per_token(settings: ModelSettings, window: int | None = None) -> int:
    """FLOPs of forward and backward for one token of training, in windows of a block if not said otherwise.

    Six for each weight that multiplies (position embeddings only add), and 12 n_layer block_size n_embd for
    attention's two products over the full square: PaLM (Chowdhery et al., 2022), appendix B. It is what
    `torch.utils.flop_counter` counts, to the last one, where attention is made of products; of PyTorch's fused
    attention on a CPU that counts nothing.
    """
    return 3 * forward_flops_per_token(settings, window)


def forward_flops_per_token(settings: ModelSettings, window: int | None = None) -> int:
    """The forward's part of `flops_per_token`: a third."""
    weights = settings.n_layer * 12 * settings.n_embd**2 + settings.vocab_size * settings.n_embd
    return 2 * weights + 4 * settings.n_layer * (window or settings.block_size) * settings.n_embd


@dataclass(frozen=True)
class Memory:
    """Bytes of each thing that training holds, and at its peak: of a GPU's memory, or of a process."""

    weights: int  # in float32, and a copy at 16 bits where products run in it
    gradients: int
    optimizer: int
    activations: int  # kept from the forward for the backward
    logits: int  # and what the loss makes of them, there and back
    update: int  # what the optimizer works with
    gaps: int  # that the allocator's heap gets
    program: int  # Python, PyTorch and what it loads in the first step
    peak: int


def memory(settings: Settings, device: str, precision: str, micro_batch: int, program: int = 0) -> Memory:
    """What training holds on a device of this type, "cpu", "cuda" or "mps", with so many sequences at once.

    The peak comes when a backward begins, with all activations and three times the logits: the loss's log-probabilities
    and two gradients. Or in the update, where those are few. Gradients take the room that activations leave, unless
    they are there already, of the micro-batch before. Held against a CPU; on a GPU a compiled step keeps less.
    """
    P, matrices, V = parameters(settings), settings.n_layer * 12 * settings.n_embd**2, settings.vocab_size
    size, rows = _bytes(precision), min(micro_batch, settings.batch_size)
    copied = device == "cuda" and precision == "bf16"  # see training/half.py; elsewhere autocast's copies of matrices
    halves = (P if copied else matrices + V * settings.n_embd) if size == 2 else 0
    activations, logits = (rows * each for each in bytes_per_sequence(settings, device, precision))
    muon = settings.optimizer == "muon"
    weights, gradients, optimizer = 4 * P + 2 * halves, (6 if copied else 4) * P, 8 * P - 4 * matrices * muon
    # Muon's directions, and the four products of that size within a round.
    update = matrices * (4 + 4 * (2 if precision == "bf16" else 4)) * muon
    if rows < settings.batch_size:
        most = gradients + max(activations + logits, update)
    else:
        most = max(activations + logits, gradients + update)
    gaps = int(_GAPS * (activations + update)) if device == "cpu" else 0
    peak = program + weights + optimizer + most + gaps
    return Memory(weights, gradients, optimizer, activations, logits, update, gaps, program, peak)


def bytes_per_sequence(settings: ModelSettings, device: str, precision: str) -> tuple[int, int]:
    """Bytes of activations and of logits that one sequence of training takes."""
    L, C, T = settings.n_layer, settings.n_embd, settings.block_size
    size = _bytes(precision)
    residual = size if device == "cuda" and precision == "bf16" else 4  # autocast leaves the stream in float32
    # A block keeps, of each position: the stream before both norms and what they give; queries, keys, values, heads'
    # outputs; the hidden units before and after the GELU. And two float32 numbers for each norm.
    block = 2 * C * residual + (2 + 4 + 8) * C * size + 16 + _attention(settings, device, size)
    mask = 1 if device == "cuda" else size
    if settings.dropout:
        block += 2 * C * mask
    ends = C * residual + C * size + 8 + 16 + (C * (1 if device == "cuda" else 4) if settings.dropout else 0)
    return T * (L * block + ends), T * 12 * settings.vocab_size


def _attention(settings: ModelSettings, device: str, size: int) -> int:
    """Bytes that attention keeps of a position beside queries, keys, values and outputs."""
    C, H, T = settings.n_embd, settings.n_head, settings.block_size
    if device == "cuda" or (T > kernels.MAX_MATMUL_ATTENTION_LENGTH and not settings.attention_dropout):
        return 4 * H  # fused: the sums of the softmax alone
    if settings.attention_dropout:  # all in float32: weights, mask and their product
        return 3 * C * (4 - size) + 12 * H * T
    return H * T * size


def _bytes(precision: str) -> int:
    return 4 if precision == "fp32" else 2


@dataclass(frozen=True)
class Timing:
    """Seconds that a machine takes for each thing a run does."""

    step: float
    short_step: float  # with windows cut into `curriculum_splits`
    evaluated_token: float
    sample: float


def timing_from_step(settings: Settings, step: float, window: int) -> Timing:
    """The pace at which one step, in windows of that length, takes so many seconds: everything else by its FLOPs.

    Evaluations and samples are in float32, at half the rate of bf16. Within the block a sample's token takes 0.3 ms a
    layer, whatever the width (measured on two cores, up to 400 wide); beyond, a block.
    """
    T, tokens = settings.block_size, settings.batch_size * settings.block_size
    flop = step / (tokens * flops_per_token(settings, window))
    forward = forward_flops_per_token(settings) * flop * (2 if settings.precision == "bf16" else 1)
    beyond = max(0, SAMPLE_TOKENS - T)
    return Timing(
        step=tokens * flops_per_token(settings) * flop,
        short_step=tokens * flops_per_token(settings, T // settings.curriculum_splits) * flop,
        evaluated_token=forward, sample=SAMPLE_TOKENS * settings.n_layer * 3e-4 + beyond * T * forward,
    )  # fmt: skip


def seconds_by_part(settings: Settings, timing: Timing, evaluated: int) -> dict[str, float]:
    """How long a run takes, by what it spends it on; an evaluation scores so many tokens."""
    short = math.ceil(settings.curriculum_fraction * settings.max_steps) if settings.curriculum_splits > 1 else 0
    evaluations, samples, saves = (
        math.ceil(settings.max_steps / every) if every else 0
        for every in (settings.eval_every, settings.sample_every, settings.save_every)
    )
    weights = 4 * parameters(settings)
    return {
        "steps": short * timing.short_step + (settings.max_steps - short) * timing.step,
        "evaluations": evaluations * evaluated * timing.evaluated_token,
        "samples": samples * timing.sample,
        # Weights alone where they are kept along the way, else two or three times as much.
        "checkpoints": max(evaluations, saves) * _written(3 * weights) + settings.keep_checkpoints * _written(weights),
    }


def evaluation_tokens(val_tokens: int) -> int:
    """How many tokens an evaluation scores: all of the validation split, and some of the other."""
    return val_tokens + min(val_tokens, 1 << 15)


def _written(size: int) -> float:
    """Seconds to write a checkpoint of so many bytes and their checksums, on a common disk."""
    return 0.015 + size / 5e8


def warnings(settings: Settings, needed: int, available: int | None, train_tokens: int | None = None,
             document_tokens: float | None = None, fresh: bool = True) -> list[str]:  # fmt: skip
    """What had better be known before a run: needed and available are bytes, a document's tokens the mean.

    A model that isn't fresh has learnt its vocabulary elsewhere.
    """
    T, V, found = settings.block_size, settings.vocab_size, []
    if available is not None and needed > available:
        found.append(f"training needs about {format_bytes(needed)}, and {format_bytes(available)} are free "
                     "(smaller: --micro-batch, --n-layer, --n-embd)")  # fmt: skip
    if train_tokens is None:
        return found
    step = settings.batch_size * T
    if (passes := settings.max_steps * step / train_tokens) > PASSES:
        fewer = max(1, int(PASSES * train_tokens / step))
        found.append(f"{passes:,.0f} passes over the text: after {PASSES} or so a model learns it by heart "
                     f"(--max-steps {fewer}, or more text)")  # fmt: skip
    if fresh and train_tokens < TOKENS_PER_ENTRY * V:
        found.append(f"a vocabulary of {V:,} for {train_tokens:,} tokens of text: most of it comes too seldom to be "
                     "learnt (a smaller one: --tokenizer char)")  # fmt: skip
    if document_tokens is not None and document_tokens < T:
        found.append(f"a document has {document_tokens:,.0f} tokens on average, so most windows of {T:,} hold several "
                     f"(--block-size {max(8, 1 << int(math.log2(max(1, document_tokens))))})")  # fmt: skip
    return found
