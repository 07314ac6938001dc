"""Time a training step on this machine, and the share of it that the matmuls take.

Batches are random tokens, since the time of a step does not depend on them. Nothing is read or saved.

Axis letters: `B` sequences in a batch, `T` positions, `C` width, `H` heads, `D` head width, `V` vocabulary.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from octavo import estimate, kernels
from octavo.device import Runtime, check_model_fits, resolve_runtime
from octavo.errors import OctavoError
from octavo.model import GPT
from octavo.settings import Settings
from octavo.training.optimizers.muon import ITERATIONS
from octavo.training.step import Trainer
from octavo.training.threads import restore_threads
from octavo.units import format_count

FORMULA = "matmul share = (time of the step's matmuls, each timed alone) / (time of the whole step)"
DEFAULT_VOCAB_SIZE = 66  # for settings that leave it to the tokenizer: `char` has this many for tiny Shakespeare
WARM_UP_STEPS = 3


@dataclass(frozen=True)
class TrainBenchmark:
    """A training step of a model on this machine. Times are medians, in seconds."""

    device: str
    precision: str
    compiled: bool
    parameters: int
    tokens_per_step: int
    step_seconds: float
    tokens_per_second: float
    flops_per_second: float
    matmul_seconds: float  # of the step's matmuls alone, including attention's and Muon's, in the step's precision
    matmul_flops_per_second: float
    matmul_share: float


@restore_threads()
def benchmark_training(
    settings: Settings, steps: int = 10, report: Callable[[str], None] = lambda line: None
) -> TrainBenchmark:
    """Time `steps` whole steps and, after each, all of its matmuls alone.

    The matmuls are: one forward and two backward for every linear layer; on a CPU, attention's batched matmuls over the
    full T x T square, two forward and four backward; and those of Muon's Newton-Schulz iterations. They have the step's
    micro-batch and precision. Each is timed after one warm-up call. `report` receives lines of progress.

    Raises `OctavoError` for a device or precision that is missing, and for a model that does not fit into memory.
    """
    if steps < 1:
        raise OctavoError(f"{steps} steps can't be timed", "--rounds 10")
    runtime = resolve_runtime(settings)
    settings = dataclasses.replace(settings, vocab_size=settings.vocab_size or DEFAULT_VOCAB_SIZE)
    check_model_fits(estimate.parameters(settings), runtime.device)
    trainer = Trainer(GPT(settings, torch.Generator().manual_seed(0)).to(runtime.device), settings, runtime)
    shape = (settings.batch_size, settings.block_size + 1)
    batch = np.random.default_rng(0).integers(0, settings.vocab_size, shape)
    tokens = settings.batch_size * settings.block_size
    report(f"{runtime.name}, {runtime.precision}: {format_count(steps, 'step')} of {format_count(tokens, 'token')}")
    for _ in range(WARM_UP_STEPS):
        trainer.update(batch)
    for notice in [*runtime.notices, *trainer.notices]:
        report(f"note: {notice}")
    matmuls = step_matmuls(settings, trainer.micro_batch, runtime)
    step_times, matmul_times = [], []
    for _ in range(steps):
        step_times.append(_time_call(runtime, lambda: trainer.update(batch)))
        with kernels.fast_path(runtime.device):
            matmul_times.append(
                sum(count * _time_call(runtime, multiply, warm_up=True) for count, _, multiply in matmuls)
            )
    step_seconds, matmul_seconds = statistics.median(step_times), statistics.median(matmul_times)
    return TrainBenchmark(
        device=runtime.name,
        precision=runtime.precision,
        compiled=trainer.compiled,
        parameters=estimate.parameters(settings),
        tokens_per_step=tokens,
        step_seconds=step_seconds,
        tokens_per_second=tokens / step_seconds,
        flops_per_second=tokens * estimate.flops_per_token(settings) / step_seconds,
        matmul_seconds=matmul_seconds,
        matmul_flops_per_second=sum(count * flops for count, flops, _ in matmuls) / matmul_seconds,
        matmul_share=matmul_seconds / step_seconds,
    )


def step_matmuls(
    settings: Settings, micro_batch: int, runtime: Runtime
) -> list[tuple[float, int, Callable[[], object]]]:
    """The matmuls of one step: for each its number of calls, its FLOPs, and a function that runs it once."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[runtime.precision]
    L, C, H, D, T = settings.n_layer, settings.n_embd, settings.n_head, settings.head_size, settings.block_size
    positions, heads, micro_batches = micro_batch * T, micro_batch * H, settings.batch_size / micro_batch

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=dtype, device=runtime.device)

    matmuls: list[tuple[float, int, Callable[[], object]]] = []
    linear_layers = [(L, C, 3 * C), (L, C, C), (L, C, 4 * C), (L, 4 * C, C), (1, C, settings.vocab_size)]
    for count, inputs, outputs in linear_layers:
        x, w, gradient = random(positions, inputs), random(outputs, inputs), random(positions, outputs)
        for multiply in (
            lambda x=x, w=w: x @ w.mT,  # forward
            lambda g=gradient, w=w: g @ w,  # gradient of the input
            lambda g=gradient, x=x: g.mT @ x,  # gradient of the weight
        ):
            matmuls.append((count * micro_batches, 2 * positions * inputs * outputs, multiply))
    if runtime.device.type == "cpu":  # elsewhere attention is one fused kernel
        q, square = random(heads, T, D), random(heads, T, T)
        flops = 2 * heads * T * T * D
        matmuls.append((2 * L * micro_batches, flops, lambda: q @ q.mT))  # scores; gradient of the attention weights
        matmuls.append((2 * L * micro_batches, flops, lambda: square @ q))  # output; gradient of the queries
        matmuls.append((2 * L * micro_batches, flops, lambda: square.mT @ q))  # gradients of values and keys
    if settings.optimizer == "muon":  # a layer's matrices have the size of 12 squares; an iteration has three matmuls
        squares = random(12 * L, C, C).to(torch.bfloat16 if runtime.precision == "bf16" else torch.float32)
        matmuls.append((3 * ITERATIONS, 2 * 12 * L * C**3, lambda: squares @ squares))
    return matmuls


def _time_call(runtime: Runtime, function: Callable[[], object], warm_up: bool = False) -> float:
    """The seconds of one call, until the device has finished."""
    if warm_up:
        function()
    runtime.synchronize()
    start = time.perf_counter()
    function()
    runtime.synchronize()
    return time.perf_counter() - start
