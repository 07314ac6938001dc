"""What a run will cost on this machine: the formulas of `octavo.estimate`, and two seconds of steps for its speed.

Nothing is kept but the prepared text in the cache. A model whose steps take long is tried with fewer layers, and the
rest is reckoned by FLOPs.
"""

import dataclasses
import functools
import math
import operator
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np
import torch

from octavo import estimate, tokenizers
from octavo.data.build import Preparing, result
from octavo.data.dataset import Dataset
from octavo.data.prepare import preparing
from octavo.device import Runtime, free_memory, resident_memory, resolve_runtime
from octavo.errors import OctavoError
from octavo.estimate import SAMPLE_TOKENS, Memory, Timing
from octavo.generation.engine import Engine, Request
from octavo.loss import split_loss
from octavo.model import GPT
from octavo.settings import Settings
from octavo.training.setup import cap_steps, resolve_vocab_size
from octavo.training.step import Trainer, auto_micro_batch

PROBE_SECONDS = 2.0  # seconds of steps
MAX_PROBE_FLOPS = 4e11  # FLOPs of a sequence's forward and backward, a second or two on two cores
_LOADED = 70 << 20  # bytes of kernels and threads that PyTorch has once it trained, evaluated and sampled
_PROGRAM = 250 << 20  # bytes of Python and PyTorch, where the system doesn't tell


@dataclass(frozen=True)
class RunEstimate:
    """What a run would cost here. Bytes, seconds, tokens; what isn't known is None."""

    parameters: int
    parameters_by_part: dict[str, int]
    flops_per_token: int
    flops_by_part: dict[str, int]  # forward and backward; attention is in both
    device: str
    precision: str
    micro_batch: int  # sequences at once
    memory_bytes: int  # at the peak: of the GPU's memory, or of the process, all included
    memory_by_part: dict[str, int]
    available_bytes: int | None
    steps: int
    tokens: int  # of all steps
    train_tokens: int | None
    epochs: float | None
    tokens_per_second: float | None  # of the steps alone
    seconds: float | None  # of the run, as it counts them: from reading the text to the last checkpoint
    seconds_by_part: dict[str, float]
    price: float | None
    warnings: list[str]


def predict(settings: Settings, price_per_hour: float | None = None, read: bool = True) -> RunEstimate:
    """What a run with these settings would cost; the text is left unread, if so said and the vocabulary needs none.

        octavo.training.predict(octavo.training.plan("my.txt", n_layer=6).settings).seconds

    Raises `OctavoError` for a text that can't be had, a device that isn't there, and a price that is none.
    """
    return result(predicting(settings, price_per_hour, read))


def predicting(settings: Settings, price_per_hour: float | None = None,
               read: bool = True) -> Generator[Preparing, None, RunEstimate]:  # fmt: skip
    """`predict`, telling how far the text is prepared."""
    if price_per_hour is not None and not 0 <= price_per_hour < math.inf:
        raise OctavoError(f"a price of {price_per_hour:g} an hour is none", "--price 2.50")
    runtime, began, data = resolve_runtime(settings), time.perf_counter(), None
    if read or not _vocabulary(settings):
        data = yield from preparing(settings)
        settings, _ = cap_steps(resolve_vocab_size(settings, data), data)
    reading = time.perf_counter() - began
    settings = dataclasses.replace(settings, vocab_size=_vocabulary(settings), precision=runtime.precision)
    rows, available = settings.micro_batch or auto_micro_batch(settings, runtime), free_memory(runtime.device)
    memory = estimate_memory(settings, runtime, rows, resident_memory(runtime.device))
    pace = measure_timing(settings, runtime, rows)
    parts: dict[str, float] = {}
    if pace is not None:
        evaluated = estimate.evaluation_tokens(data.info["tokens"]["val"]) if data else 0
        parts = {"reading": reading} | estimate.seconds_by_part(settings, pace, evaluated)
    seconds, tokens = sum(parts.values()), settings.max_steps * settings.batch_size * settings.block_size
    train_tokens = data.info["tokens"]["train"] if data else None
    forward = estimate.forward_flops_per_token(settings)
    attention = 12 * settings.n_layer * settings.block_size * settings.n_embd
    by_part = dataclasses.asdict(memory)
    return RunEstimate(
        parameters=estimate.parameters(settings), parameters_by_part=estimate.parameters_by_part(settings),
        flops_per_token=3 * forward,
        flops_by_part={"forward": forward, "backward": 2 * forward, "attention": attention},
        device=runtime.name, precision=runtime.precision, micro_batch=rows, memory_bytes=by_part.pop("peak"),
        memory_by_part=by_part, available_bytes=available, steps=settings.max_steps, tokens=tokens,
        train_tokens=train_tokens, epochs=tokens / train_tokens if train_tokens else None,
        tokens_per_second=round(tokens / parts["steps"], 1) if parts.get("steps") else None,
        seconds=round(seconds, 1) if pace else None,
        seconds_by_part={what: round(each, 2) for what, each in parts.items()},
        price=seconds / 3600 * price_per_hour if pace and price_per_hour is not None else None,
        warnings=run_warnings(settings, runtime, memory, data),
    )  # fmt: skip


def estimate_memory(settings: Settings, runtime: Runtime, rows: int, program: int | None) -> Memory:
    """What training will hold here at its peak, where the program held so much before there was a model."""
    on_gpu = runtime.device.type == "cuda"  # whose memory the program takes nothing of that is counted
    program = 0 if on_gpu else (program or _PROGRAM) + _LOADED
    return estimate.memory(settings, runtime.device.type, runtime.precision, rows, program)


def run_warnings(
    settings: Settings, runtime: Runtime, memory: Memory, data: Dataset | None, fresh: bool = True
) -> list[str]:
    """What had better be known before a run here, with a new model or one that is fine-tuned."""
    needed, available = memory.peak - (resident_memory(runtime.device) or 0), free_memory(runtime.device)
    if data is None:
        return estimate.warnings(settings, needed, available)
    tokens, documents = data.info["tokens"], data.info["text"].get("documents", 1)
    mean = (tokens["train"] + tokens["val"]) / documents if documents > 1 else None
    return estimate.warnings(settings, needed, available, tokens["train"], mean, fresh)


def _vocabulary(settings: Settings) -> int:
    """How many tokens there are, or 0 where only a text tells."""
    return settings.vocab_size or tokenizers.FIXED.get(settings.tokenizer, 0)


def measure_timing(settings: Settings, runtime: Runtime, rows: int) -> Timing | None:
    """Time steps, evaluation and sampling here, on a model with as few layers as the probe can afford.

    None where not even that fits into memory.
    """
    rows = min(rows, settings.batch_size)
    part = dataclasses.replace(settings, n_layer=_layers(settings), batch_size=rows, micro_batch=rows)
    free = free_memory(runtime.device)
    if free is not None and estimate.memory(part, runtime.device.type, runtime.precision, rows).peak > free:
        return None
    trainer = Trainer(GPT(part, torch.Generator().manual_seed(0)).to(runtime.device), part, runtime)
    # The optimizer's work grows with its matrices: Muon's are in the layers.
    size = estimate.parameters if settings.optimizer == "adamw" else operator.attrgetter("n_layer")
    steps = {}
    for parts in {1, settings.curriculum_splits}:
        window = settings.block_size // parts
        ids = np.random.default_rng(0).integers(0, part.vocab_size, (rows * parts, window + 1))
        gradients, update = _timed(
            runtime, PROBE_SECONDS / 2, functools.partial(trainer.compute_gradients, ids), trainer.apply_gradients
        )
        larger = estimate.flops_per_token(settings, window) / estimate.flops_per_token(part, window)
        steps[parts] = gradients * larger * settings.batch_size / rows + update * size(settings) / size(part)
    scale = estimate.flops_per_token(settings) / estimate.flops_per_token(part)
    return Timing(
        step=steps[1],
        short_step=steps[settings.curriculum_splits],
        evaluated_token=scale * _evaluated_token(trainer.model, runtime),
        sample=scale * _sample(trainer.model, runtime),
    )


def _layers(settings: Settings) -> int:
    """As many layers as a sequence's forward and backward bears, at least one."""
    one, two = (estimate.flops_per_token(dataclasses.replace(settings, n_layer=n)) for n in (1, 2))
    return max(1, min(settings.n_layer, 1 + int((MAX_PROBE_FLOPS / settings.block_size - one) / (two - one))))


def _timed(runtime: Runtime, seconds: float, *things: Callable[[], object]) -> list[float]:
    """The mean time of each, done in turn for so long. What was done once is warm; if that took as long, it counts."""

    def once() -> list[float]:
        spent = []
        for thing in things:
            start = time.perf_counter()
            thing()
            runtime.synchronize()
            spent.append(time.perf_counter() - start)
        return spent

    rounds = [once()]
    if sum(rounds[0]) < seconds:
        rounds = [once()]
        while sum(map(sum, rounds)) < seconds:
            rounds.append(once())
    return [sum(each) / len(rounds) for each in zip(*rounds, strict=True)]


def _evaluated_token(model: GPT, runtime: Runtime) -> float:
    """Seconds to score a token, exactly and in float32 as evaluation does."""
    T = model.settings.block_size
    bearable = min(1 << 12, int(MAX_PROBE_FLOPS / estimate.forward_flops_per_token(model.settings)))
    ids = np.random.default_rng(0).integers(0, model.settings.vocab_size, max(1, bearable // T) * T + 1)
    return _timed(runtime, PROBE_SECONDS / 8, lambda: split_loss(model, ids, T))[0] / (len(ids) - 1)


def _sample(model: GPT, runtime: Runtime) -> float:
    """Seconds for a sample: its first block a token at a time on a cache, the rest with the whole block each."""
    T = model.settings.block_size
    model.eval()
    engine = Engine(model, 1, use_native=False)

    def token(prompt: int, count: int) -> float:
        def write() -> None:
            engine.submit(Request(prompt=[0] * prompt, max_new_tokens=count))
            while engine.step():
                pass

        return _timed(runtime, PROBE_SECONDS / 16, write)[0] / count

    beyond = SAMPLE_TOKENS - T
    return min(SAMPLE_TOKENS, T) * token(1, min(16, T)) + (beyond * token(T, 4) if beyond > 0 else 0.0)
