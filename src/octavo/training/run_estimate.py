"""Estimate what a run costs on this machine: the formulas of `octavo.estimate`, and its speed from a short probe.

The probe takes about two seconds: it trains, evaluates and samples with random tokens and a new model. If the model
is too slow for that, the probe uses fewer layers, and the rest is extrapolated by FLOPs. An estimate writes to the
cache only: the prepared text and, if the C code has to be compiled, its library.

Axis letters: `B` sequences in a batch, `T` positions.
"""

import contextlib
import dataclasses
import functools
import math
import operator
import os
import re
import shutil
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from octavo import estimate, fused_step, scaling, tokenizers
from octavo.data.dataset import Dataset
from octavo.device import Runtime, free_memory, resident_memory, resolve_runtime, tf32_matmuls
from octavo.distributed import check_divisible
from octavo.errors import OctavoError
from octavo.estimate import Memory, Timing
from octavo.generation.engine import Engine, Request
from octavo.loss import split_loss
from octavo.model import GPT
from octavo.progress import PreparationProgress, preparation
from octavo.runs import Run
from octavo.scaling import Processes, StepCost
from octavo.settings import SAMPLE_TOKENS, Settings
from octavo.training.evaluator import evaluation_tokens
from octavo.training.event import Started
from octavo.training.plan import Plan
from octavo.training.setup import TrainingSetup, cap_steps, prepare_data, resolve_vocab_size
from octavo.training.step import Trainer, auto_micro_batch
from octavo.training.threads import restore_threads

PROBE_SECONDS = 2.0
MAX_PROBE_FLOPS = 4e11  # for one sequence, forward and backward: a second or two on two cores
_LIBRARY_BYTES = 70 << 20  # of PyTorch's kernels and threads, after the first step, evaluation and sample
_PROGRAM_BYTES = 250 << 20  # of Python and PyTorch, if the system does not report the memory of the process


@dataclass(frozen=True)
class RunEstimate:
    """The cost of a run on this machine, in bytes, seconds and tokens. None means unknown."""

    parameters: int
    parameters_by_part: dict[str, int]
    flops_per_token: int
    flops_by_part: dict[str, int]  # forward and backward; attention is contained in both
    device: str
    precision: str
    micro_batch: int
    memory_bytes: int  # peak of each process: its tensors on a GPU, or the whole process on a CPU
    memory_by_part: dict[str, int]
    available_bytes: int | None
    disk_bytes: int  # at most, of all checkpoints of the run
    steps: int
    tokens: int  # of all steps
    train_tokens: int | None
    epochs: float | None
    tokens_per_second: float | None  # during steps
    seconds: float | None  # from preparing the text to the last checkpoint
    seconds_by_part: dict[str, float]
    price: float | None
    step_cost: StepCost | None  # of several processes
    warnings: list[str]


@preparation
def estimate_run(
    plan: Plan,
    price_per_hour: float | None = None,
    *,
    processes: Processes | None = None,
    prepare_text: bool = True,
    timing: Timing | None = None,
    free_bytes: int | None = None,
    probe_seconds: float = PROBE_SECONDS,
    max_probe_flops: float = MAX_PROBE_FLOPS,
) -> Generator[PreparationProgress, None, RunEstimate]:
    """Estimate a new run with this plan, from its first step to its last.

    The decorator makes it return a `Preparation`, whose `result` is the `RunEstimate`:

        octavo.training.estimate_run(octavo.training.plan("my.txt", n_layer=6)).result.seconds

    `processes` are those that train together, all on machines like this one. The price is that of all machines.

    With `prepare_text=False` the text is not read, unless the vocabulary depends on it, and the epochs are unknown.
    `timing` replaces the probe. `free_bytes` is the memory that the run may take, by default what is free now.

    Raises `OctavoError` for a text that cannot be read, a device that is missing, a negative or non-finite price, and a
    plan that resumes a run or starts from its weights.
    """
    if price_per_hour is not None and not 0 <= price_per_hour < math.inf:
        raise OctavoError(f"price_per_hour={price_per_hour:g} is not a finite number of at least 0", "--price 2.50")
    if plan.resume or plan.init is not None:
        raise OctavoError("only a new run can be estimated", "a plan without resume and init")
    settings, data, processes = plan.settings, None, processes or Processes()
    check_divisible(settings.batch_size, processes.count)
    runtime, start = resolve_runtime(settings), time.perf_counter()
    if prepare_text or not _known_vocab_size(settings):
        data = yield from prepare_data(plan)
        settings, _ = cap_steps(resolve_vocab_size(settings, data), data, plan.given)
    preparation_seconds = time.perf_counter() - start
    settings = dataclasses.replace(settings, vocab_size=_known_vocab_size(settings), precision=runtime.precision)
    settings_of_process = dataclasses.replace(settings, batch_size=settings.batch_size // processes.count)
    micro_batch = settings.micro_batch or auto_micro_batch(settings_of_process, runtime)
    free = free_memory(runtime.device) if free_bytes is None else free_bytes
    program_bytes, is_fused = resident_memory(runtime.device), fused_step.is_available(settings)
    memory = estimate_memory(settings, runtime, micro_batch, program_bytes, processes, is_fused)
    timing = timing or measure_timing(settings, runtime, micro_batch, free, probe_seconds, max_probe_flops)
    step_cost = None
    if timing is not None and processes.count > 1:
        kind = runtime.device.type
        compute_seconds = scaling.divide_seconds(timing.step, kind, processes)
        step_cost = scaling.step_cost(settings, compute_seconds, kind, runtime.precision, micro_batch, processes)
        timing = Timing(
            step=step_cost.step_seconds,
            short_step=scaling.divide_seconds(timing.short_step, kind, processes) + step_cost.communication_seconds,
            evaluated_token=scaling.divide_seconds(timing.evaluated_token, kind, processes),
            sample=timing.sample,
        )

    seconds_by_part: dict[str, float] = {}
    if timing is not None:
        tokens_per_evaluation = evaluation_tokens(data.info["tokens"]["val"]) if data else 0
        seconds_by_part = estimate.seconds_by_part(settings, timing, tokens_per_evaluation)
        seconds_by_part = {"preparation": preparation_seconds} | seconds_by_part
    hourly_price = None if price_per_hour is None else price_per_hour * processes.machines
    seconds = sum(seconds_by_part.values()) if timing else None
    steps_seconds = seconds_by_part.get("steps")
    tokens = settings.max_steps * settings.batch_size * settings.block_size
    train_tokens = data.info["tokens"]["train"] if data else None
    forward = estimate.forward_flops_per_token(settings)
    memory_by_part = dataclasses.asdict(memory)
    return RunEstimate(
        parameters=estimate.parameters(settings),
        parameters_by_part=estimate.parameters_by_part(settings),
        flops_per_token=3 * forward,
        flops_by_part={
            "forward": forward,
            "backward": 2 * forward,
            "attention": 12 * settings.n_layer * settings.block_size * settings.n_embd,
        },
        device=runtime.name,
        precision=runtime.precision,
        micro_batch=micro_batch,
        memory_bytes=memory_by_part.pop("peak"),
        memory_by_part=memory_by_part,
        available_bytes=free,
        disk_bytes=estimate.disk_bytes(settings),
        steps=settings.max_steps,
        tokens=tokens,
        train_tokens=train_tokens,
        epochs=tokens / train_tokens if train_tokens else None,
        tokens_per_second=round(tokens / steps_seconds, 1) if steps_seconds else None,
        seconds=None if seconds is None else round(seconds, 1),
        seconds_by_part={part: round(value, 2) for part, value in seconds_by_part.items()},
        price=None if seconds is None or hourly_price is None else seconds / 3600 * hourly_price,
        step_cost=step_cost,
        warnings=run_warnings(settings, runtime, memory, data, free_bytes=free, out=plan.out),
    )


def describe_start(plan: Plan, setup: TrainingSetup, run: Run, trainer: Trainer) -> tuple[Started, list[str]]:
    """The `Started` event of a run, and warnings if the run is new."""
    settings, runtime, data = setup.settings, setup.runtime, setup.data
    processes = Processes(trainer.world.size, shard=trainer.shard)
    program_bytes, is_fused = setup.memory_before, trainer.fused_step is not None
    memory = estimate_memory(settings, runtime, trainer.micro_batch, program_bytes, processes, is_fused)
    tokens = data.info["tokens"]
    started = Started(
        run=run.folder,
        settings=settings,
        step=trainer.step,
        parameters=estimate.parameters(settings),
        device=runtime.name,
        precision=runtime.precision,
        tokenizer=settings.tokenizer,
        vocab_size=settings.vocab_size,
        train_tokens=tokens["train"],
        val_tokens=tokens["val"],
        epochs=settings.max_steps * trainer.tokens_per_step / tokens["train"],
        flops_per_token=estimate.flops_per_token(settings),
        peak_flops=runtime.peak_flops,
        memory_bytes=memory.peak,
        example_word=_find_word(data),
    )
    if plan.resume:
        return started, []
    return started, run_warnings(settings, runtime, memory, data, new_model=plan.init is None, out=run.folder)


def _find_word(data: Dataset) -> str:
    """A word near the beginning of the validation split, or an empty string if no word is found."""
    text = data.tokenizer.decode(data.tokens["val"][:500])
    words = re.findall(r"(?<!\S)[^\W\d_]{3,20}(?!\S)", text)
    return words[len(words) // 2] if words else ""


def estimate_memory(
    settings: Settings,
    runtime: Runtime,
    micro_batch: int,
    program_bytes: int | None,
    processes: Processes,
    has_fused_step: bool,
) -> Memory:
    """The peak memory of training here.

    `program_bytes` is what the process used before the model was built. `has_fused_step`: whether the C code computes
    the gradients, if this is a CPU.
    """
    counts_program = runtime.device.type != "cuda"  # a GPU's peak counts tensors only
    program_bytes = (program_bytes or _PROGRAM_BYTES) + _LIBRARY_BYTES if counts_program else 0
    kind, precision = runtime.device.type, runtime.precision
    return scaling.memory(settings, kind, precision, micro_batch, processes, program_bytes, has_fused_step)


def run_warnings(
    settings: Settings,
    runtime: Runtime,
    memory: Memory,
    data: Dataset | None,
    new_model: bool = True,
    free_bytes: int | None = None,
    out: str | Path | None = None,
) -> list[str]:
    """The warnings of `octavo.estimate` for this dataset and this machine; `free_bytes` is measured by default.

    `out` is the run folder, which need not exist, and by default is below the working directory.
    """
    needed = memory.peak - (resident_memory(runtime.device) or 0)
    free = free_memory(runtime.device) if free_bytes is None else free_bytes
    free_disk = _free_disk(Path(out or "runs"))
    if data is None:
        return estimate.warnings(settings, needed, free, free_disk_bytes=free_disk)
    tokens, documents = data.info["tokens"], data.info["text"].get("documents", 1)
    mean_document_tokens = (tokens["train"] + tokens["val"]) / documents if documents > 1 else None
    return estimate.warnings(settings, needed, free, tokens["train"], mean_document_tokens, new_model, free_disk)


def _free_disk(folder: Path) -> int | None:
    """Free bytes of the disk that a folder is on, or will be; None if the system does not report it."""
    existing = next((path for path in (folder, *folder.absolute().parents) if os.path.exists(path)), None)
    with contextlib.suppress(OSError):
        return None if existing is None else shutil.disk_usage(existing).free
    return None


def _known_vocab_size(settings: Settings) -> int:
    """The vocabulary size, or 0 if the tokenizer takes it from the text."""
    return settings.vocab_size or tokenizers.FIXED_VOCAB_SIZES.get(settings.tokenizer, 0)


@restore_threads()
def measure_timing(
    settings: Settings,
    runtime: Runtime,
    micro_batch: int,
    free_bytes: int | None,
    probe_seconds: float = PROBE_SECONDS,
    max_probe_flops: float = MAX_PROBE_FLOPS,
) -> Timing | None:
    """Measure the time of steps, evaluation and sampling on this machine, with a model of `probe_layers(...)` layers.

    Returns None if even that model does not fit into memory.
    """
    rows = min(micro_batch, settings.batch_size)
    layers = probe_layers(settings, max_probe_flops)
    small = dataclasses.replace(settings, n_layer=layers, batch_size=rows, micro_batch=rows)
    peak = estimate.memory(small, runtime.device.type, runtime.precision, rows).peak
    if free_bytes is not None and peak > free_bytes:
        return None
    trainer = Trainer(GPT(small, torch.Generator().manual_seed(0)).to(runtime.device), small, runtime)
    # The time of an optimizer step is proportional to the number of parameters that it updates. Muon takes most of the
    # time, and its parameters are all in the blocks, so with Muon the time is proportional to n_layer.
    size = estimate.parameters if settings.optimizer == "adamw" else operator.attrgetter("n_layer")
    step_seconds = {}

    def finish_update() -> None:
        trainer.apply_gradients(trainer.clip_gradients())
        trainer.end_step()

    for splits in {1, settings.curriculum_splits}:
        length = settings.block_size // splits
        ids = np.random.default_rng(0).integers(0, small.vocab_size, (rows * splits, length + 1))  # (B, T + 1)
        gradient_seconds, update_seconds = _mean_seconds(
            runtime, probe_seconds / 2, functools.partial(trainer.compute_gradients, ids), finish_update
        )
        scale = estimate.flops_per_token(settings, length) / estimate.flops_per_token(small, length)
        gradient_seconds = gradient_seconds * scale * settings.batch_size / rows
        step_seconds[splits] = gradient_seconds + update_seconds * size(settings) / size(small)
    scale = estimate.flops_per_token(settings) / estimate.flops_per_token(small)
    return Timing(
        step=step_seconds[1],
        short_step=step_seconds[settings.curriculum_splits],
        evaluated_token=scale * _evaluated_token_seconds(trainer.model, runtime, probe_seconds / 8, max_probe_flops),
        sample=scale * _sample_seconds(trainer, runtime, probe_seconds / 16),
    )


def probe_layers(settings: Settings, max_probe_flops: float) -> int:
    """The most layers, at least one, with which one sequence takes at most `max_probe_flops`, forward and backward."""
    flops_1, flops_2 = (estimate.flops_per_token(dataclasses.replace(settings, n_layer=n)) for n in (1, 2))
    affordable = 1 + int((max_probe_flops / settings.block_size - flops_1) / (flops_2 - flops_1))
    return max(1, min(settings.n_layer, affordable))


def _mean_seconds(runtime: Runtime, seconds: float, *functions: Callable[[], object]) -> list[float]:
    """The mean time of each function, called in turn for `seconds`, after one warm-up round.

    If the warm-up round alone takes that long, it is the measurement. With torch.compile or on a GPU it never is:
    its time includes compiling or choosing kernels.
    """

    def measure_round() -> list[float]:
        times = []
        for function in functions:
            start = time.perf_counter()
            function()
            runtime.synchronize()
            times.append(time.perf_counter() - start)
        return times

    rounds = [measure_round()]
    if sum(rounds[0]) < seconds or runtime.compile or runtime.device.type == "cuda":
        rounds = [measure_round()]
        while sum(map(sum, rounds)) < seconds:
            rounds.append(measure_round())
    return [sum(times) / len(rounds) for times in zip(*rounds, strict=True)]


def _evaluated_token_seconds(model: GPT, runtime: Runtime, seconds: float, max_probe_flops: float) -> float:
    """Seconds per token of an evaluation during training, which runs in float32."""
    T = model.settings.block_size
    count = min(1 << 12, int(max_probe_flops / estimate.forward_flops_per_token(model.settings)))
    ids = np.random.default_rng(0).integers(0, model.settings.vocab_size, max(1, count // T) * T + 1)
    with tf32_matmuls(runtime.device):  # as in `Evaluator.evaluate`
        return _mean_seconds(runtime, seconds, lambda: split_loss(model, ids, T))[0] / (len(ids) - 1)


def _sample_seconds(trainer: Trainer, runtime: Runtime, seconds: float) -> float:
    """Seconds per sample. A token up to block_size takes a decode step, a later one a forward over block_size."""
    T = trainer.settings.block_size
    engine = Engine(trainer.model.eval(), 1, use_native=trainer.fused_step is not None)  # as in `Recorder.write_sample`

    def token_seconds(prompt_tokens: int, new_tokens: int) -> float:
        def generate() -> None:
            engine.submit(Request(prompt=[0] * prompt_tokens, max_new_tokens=new_tokens))
            while engine.step():
                pass

        return _mean_seconds(runtime, seconds, generate)[0] / new_tokens

    cached, uncached = min(SAMPLE_TOKENS, T), SAMPLE_TOKENS - T
    return cached * token_seconds(1, min(16, T)) + (uncached * token_seconds(T, 4) if uncached > 0 else 0.0)
