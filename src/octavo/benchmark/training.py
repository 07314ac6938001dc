"""How fast this machine is at this model. Nothing is kept, and no text is needed: time does not depend on it.

The axis letters: `B` sequences, `T` positions, `C` width, `H` heads of width `D`, `V` vocabulary.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from octavo import estimate, kernels
from octavo.device import Runtime, check_fits, resolve_runtime
from octavo.errors import OctavoError
from octavo.model import GPT
from octavo.settings import Settings
from octavo.training.optimizers.muon import ITERATIONS
from octavo.training.step import Trainer

FORMULA = "products' share = (the step's products, each timed alone) / (the whole step)"
VOCABULARY = 65  # where the settings leave it to a tokenizer: tiny Shakespeare's


@dataclass(frozen=True)
class TrainBenchmark:
    """A training step of a model here. Times are medians, in seconds; rates are per second."""

    device: str
    precision: str
    compiled: bool
    parameters: int
    tokens_per_step: int
    step_seconds: float
    tokens_per_second: float
    flops_per_second: float
    matmul_seconds: float  # of a step's matrix products alone, attention's and Muon's included, in the same precision
    matmul_flops_per_second: float
    matmul_share: float


def benchmark_training(
    settings: Settings, steps: int = 10, tell: Callable[[str], None] = lambda line: None
) -> TrainBenchmark:
    """Time whole updates and the products in them, in turn, `steps` times each.

    The products are those of every linear layer (one forward, two backward), on a CPU attention's two batched
    ones (four backward, over the full square), and Muon's iterations: in the micro-batches and the precision of the
    step, each right after it was done once untimed. Raises `OctavoError` for a device or precision that isn't there,
    and a model that does not fit.
    """
    if steps < 1:
        raise OctavoError(f"{steps} steps can't be timed", "--rounds 10")
    runtime = resolve_runtime(settings)
    settings = dataclasses.replace(settings, vocab_size=settings.vocab_size or VOCABULARY)
    check_fits(estimate.parameters(settings), runtime.device)
    trainer = Trainer(GPT(settings, torch.Generator().manual_seed(0)).to(runtime.device), settings, runtime)
    shape = (settings.batch_size, settings.block_size + 1)
    batch = np.random.default_rng(0).integers(0, settings.vocab_size, shape)
    tell(f"{runtime.name}, {runtime.precision}: {steps} steps of {settings.batch_size * settings.block_size:,} tokens")
    for _ in range(3):
        trainer.update(batch)
    for note in [*runtime.notes, *trainer.notices]:
        tell(f"note: {note}")
    products = step_matmuls(settings, trainer.micro_batch, runtime)
    whole, alone = [], []
    for _ in range(steps):
        whole.append(_seconds(runtime, lambda: trainer.update(batch)))
        with kernels.fast_path(runtime.device):
            alone.append(sum(count * _seconds(runtime, run, warm_up=True) for count, _, run in products))
    step, product, tokens = statistics.median(whole), statistics.median(alone), shape[0] * settings.block_size
    return TrainBenchmark(
        device=runtime.name, precision=runtime.precision, compiled=trainer.compiled,
        parameters=estimate.parameters(settings), tokens_per_step=tokens, step_seconds=step,
        tokens_per_second=tokens / step, flops_per_second=tokens * estimate.flops_per_token(settings) / step,
        matmul_seconds=product, matmul_flops_per_second=sum(n * flops for n, flops, _ in products) / product,
        matmul_share=product / step,
    )  # fmt: skip


def step_matmuls(settings: Settings, rows: int, runtime: Runtime) -> list[tuple[float, int, Callable[[], object]]]:
    """The matrix products of an update: how often each comes, its FLOPs, and a function that does it once."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[runtime.precision]
    L, C, H, D, T = settings.n_layer, settings.n_embd, settings.n_head, settings.head_size, settings.block_size
    N, heads, parts = rows * T, rows * H, settings.batch_size / rows

    def full(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=dtype, device=runtime.device)

    products: list[tuple[float, int, Callable[[], object]]] = []
    linear = [(L, C, 3 * C), (L, C, C), (L, C, 4 * C), (L, 4 * C, C), (1, C, settings.vocab_size)]
    for count, wide, out in linear:
        x, w, g = full(N, wide), full(out, wide), full(N, out)
        for run in (lambda x=x, w=w: x @ w.mT, lambda g=g, w=w: g @ w, lambda g=g, x=x: g.mT @ x):
            products.append((count * parts, 2 * N * wide * out, run))
    if runtime.device.type == "cpu":  # elsewhere attention is one fused kernel
        q, square = full(heads, T, D), full(heads, T, T)
        flops = 2 * heads * T * T * D
        products.append((2 * L * parts, flops, lambda: q @ q.mT))  # the scores; the weights' gradient
        products.append((2 * L * parts, flops, lambda: square @ q))  # the output; the queries' gradient
        products.append((2 * L * parts, flops, lambda: square.mT @ q))  # the values' and the keys' gradients
    if settings.optimizer == "muon":  # a layer's matrices are twelve squares, and a round has three products
        matrices = full(12 * L, C, C).to(torch.bfloat16 if runtime.precision == "bf16" else torch.float32)
        products.append((3 * ITERATIONS, 2 * 12 * L * C**3, lambda: matrices @ matrices))
    return products


def _seconds(runtime: Runtime, run: Callable[[], object], warm_up: bool = False) -> float:
    """How long it takes, the device's own work included."""
    if warm_up:
        run()
    runtime.synchronize()
    start = time.perf_counter()
    run()
    runtime.synchronize()
    return time.perf_counter() - start
