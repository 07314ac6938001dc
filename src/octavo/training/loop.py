"""The loop: settings in, a stream of events out, and a run folder that holds whatever happens.

`events` trains and tells, `train` does it to the end. The loop decides what is due after a step; the update,
the evaluation, the sampling and the saving live in their own rooms.
"""

import contextlib
import dataclasses
import itertools
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from octavo import estimate, runs
from octavo.checkpoint import TrainerState
from octavo.data.sampler import batches
from octavo.device import find_device, resident_memory, resolve_runtime
from octavo.errors import OctavoError
from octavo.evaluation import count_bytes
from octavo.generation.engine import Engine, Request
from octavo.generation.stream import Continuation, start
from octavo.loss import split_loss
from octavo.runs import Run
from octavo.training import loggers, run_estimate
from octavo.training.event import Evaluated, Event, Finished, Notice, Sampled, Saved, Started, Step, TimeEstimate
from octavo.training.plan import Plan, plan
from octavo.training.setup import TrainingSetup, set_up
from octavo.training.step import Trainer


def train(
    source: str | Path | None = None,
    *,
    preset: str | None = None,
    config: str | Path | None = None,
    resume: str | Path | None = None,
    init: str | Path | None = None,
    out: str | Path | None = None,
    name: str | None = None,
    **settings: Any,
) -> Run:
    """Train a GPT on a source and return its run.

        run = octavo.train("my.txt", max_steps=500, n_layer=6)

    The settings are those of `octavo.Settings`, over a `preset` and a TOML file `config`. `resume` continues a run,
    `init` starts a new one from a run's weights. Ctrl-C ends it after the current step, with a checkpoint. Raises
    `OctavoError` for what the user can fix.
    """
    planned = plan(source, preset=preset, config=config, resume=resume, init=init, out=out, name=name, **settings)
    with interruptible() as stop:
        *_, last = events(planned, stop=stop)
    assert isinstance(last, Finished)
    return Run(last.run)


def events(plan: Plan, *, stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
    """Carry out a plan and yield what happens; ends with `Finished`.

    `stop` is called after every step; once it returns true, the run ends with a checkpoint. No run folder is created
    before the text is read and the model built.
    """
    clock = time.perf_counter()
    loggers.check(plan.settings)
    program = resident_memory(find_device(plan.settings.device))
    origin = yield from set_up(plan)
    settings = origin.settings
    place = resolve_runtime(settings)
    settings = dataclasses.replace(
        settings, device=str(place.device), precision=place.precision, compile="on" if place.compile else "off",
        tokenizer=origin.data.info["tokenizer"],
    )  # fmt: skip
    batch = batches(origin.data.tokens("train"), settings)
    trainer = Trainer(origin.model.to(place.device), settings, place)
    run = origin.run or Run.create(settings, origin.data.name, plan.out, plan.name)
    with run.lock():
        if origin.run is not None:
            run.write_settings(settings)
        loop = _Loop(run, origin, trainer, clock)
        tokens = origin.data.info["tokens"]
        memory = run_estimate.estimate_memory(settings, place, trainer.micro_batch, program)
        started = Started(
            run=run.folder, settings=settings, step=trainer.step, parameters=estimate.parameters(settings),
            device=place.name, precision=place.precision, tokenizer=origin.data.info["tokenizer"],
            vocab_size=settings.vocab_size, train_tokens=tokens["train"], val_tokens=tokens["val"],
            epochs=loop.tokens(settings.max_steps) / tokens["train"],
            flops_per_token=estimate.flops_per_token(settings), peak_flops=place.peak_flops, memory_bytes=memory.peak,
        )  # fmt: skip
        told = (
            []
            if plan.resume is not None
            else run_estimate.run_warnings(settings, place, memory, origin.data, fresh=plan.init is None)
        )
        notices = map(Notice, [*place.notes, *origin.notices, *told])
        yield from loggers.told(settings.loggers, itertools.chain([started], notices, loop.steps(batch, stop)))


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Once steps are made, Ctrl-C and SIGTERM ask for an end instead of making one; a second Ctrl-C makes it."""
    asked, stepping = threading.Event(), threading.Event()

    def stop() -> bool:
        stepping.set()  # whoever asks has made a step, and so has something to save
        return asked.is_set()

    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may handle signals
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: object) -> None:
        if not stepping.is_set():
            raise KeyboardInterrupt
        asked.set()
        signal.signal(signal.SIGINT, before[signal.SIGINT])
        print("\nending after this step, with a checkpoint (Ctrl-C again: at once)", file=sys.stderr)

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Loop:
    """Counters, clocks and losses; what is due after a step, and doing it."""

    def __init__(self, run: Run, origin: TrainingSetup, trainer: Trainer, clock: float) -> None:
        self.run, self.settings, self.data, self.trainer = run, trainer.settings, origin.data, trainer
        self.model, self.tokenizer, self.clock = trainer.model, origin.data.tokenizer, clock
        self.val = self.data.tokens("val")
        self.train = self.data.tokens("train")[: estimate.evaluation_tokens(len(self.val)) - len(self.val)]
        self.bytes_per_token = count_bytes(self.tokenizer, self.val[1:]) / (len(self.val) - 1)
        self.along = runs.log_spaced_steps(self.settings)
        self.losses: Evaluated | None = None  # of the newest evaluation
        self.best = math.inf
        self.without_gain = 0  # evaluations since the best
        self.training_seconds = 0.0  # in updates alone, for tokens per second
        self.warm: tuple[int, float] | None = None  # after the first line: the step, and the seconds in updates
        self.told = False  # how long all will take
        self.checkpoint = run.last
        if origin.state is not None:
            self.restore(origin.state)

    def restore(self, state: TrainerState) -> None:
        """Go on from a checkpoint: the trainer, the counters and clocks, and the run's lines up to there."""
        values = state.values
        self.trainer.restore(state)
        self.run.rewind(self.trainer.step)
        self.best = math.inf if values["best"] is None else values["best"]
        self.without_gain = values["without_gain"]
        self.training_seconds = values["training_seconds"]
        self.clock -= values["seconds"]
        self.losses = Evaluated(**values["losses"]) if values["losses"] else None

    def steps(self, batch: Callable[[int], np.ndarray], stop: Callable[[], bool]) -> Iterator[Event]:
        """Every step that is left, what is due after each, and the end."""
        settings, trainer, reason = self.settings, self.trainer, "done"
        logged, spent, mark = trainer.step, 0.0, time.perf_counter()  # since the last line: steps, seconds in them
        while trainer.step < settings.max_steps and reason == "done":
            loss, norm = trainer.update(batch(trainer.step))
            step = trainer.step
            while trainer.notices:
                yield Notice(trainer.notices.pop(0))
            if stop():
                reason = "stopped"
            due = self.due(step, stopped=reason == "stopped")
            if not due:
                continue
            self.trainer.runtime.synchronize()
            now = time.perf_counter()
            spent, mark = spent + now - mark, now
            if due & {"log", "evaluate", "save"}:
                line = self.line(loss, norm, spent, step - logged)
                yield line
                yield from self.expected()
                if "evaluate" in due:
                    self.losses = self.evaluate()
                    yield self.losses
                    if settings.patience and self.without_gain >= settings.patience and step < settings.max_steps:
                        reason = "patience"
                    if self.losses.best or reason == "patience" or not settings.save_every:
                        due.add("save")
                self.run.log("metrics", self.entry(line))
                logged, spent = step, 0.0
            if "save" in due:
                yield self.save()
            elif "keep" in due:
                self.run.save(step, self.model, self.tokenizer, settings, self.info())
            if "sample" in due:
                yield self.sample()
            if due != {"log"}:  # a line of log is part of a step; evaluating, saving and sampling are not
                mark = time.perf_counter()
        if self.checkpoint is None:  # max_steps = 0: the weights as they start are a model too
            yield self.save()
        yield self.finished(reason)

    def due(self, step: int, stopped: bool) -> set[str]:
        """What to do after this step besides training on. A run that is stopped leaves out nothing that was due."""
        settings = self.settings
        final = step == settings.max_steps

        def every(steps: int) -> bool:
            return steps > 0 and step % steps == 0

        due = {
            "log": step == 1 or every(settings.log_every),
            "evaluate": every(settings.eval_every) or final,
            "save": every(settings.save_every) or final or stopped,
            "sample": settings.sample_every > 0 and (every(settings.sample_every) or final),
            "keep": step in self.along,
        }
        return {what for what, now in due.items() if now}

    def line(self, loss: torch.Tensor, norm: torch.Tensor, seconds: float, steps: int) -> Step:
        """The numbers of the newest step. Raises `OctavoError` if one of them isn't finite."""
        value, length = loss.item(), norm.item()
        scaled = self.trainer.scaler.is_enabled()  # then a step whose gradient overflows is skipped
        if not math.isfinite(value) or not (math.isfinite(length) or scaled):
            raise self.broken(f"the loss is {value:g} and the gradient's norm {length:g}")
        self.training_seconds += seconds
        return Step(
            step=self.trainer.step, tokens=self.tokens(self.trainer.step), seconds=self.seconds, loss=value,
            learning_rate=self.trainer.learning_rate, grad_norm=length,
            tokens_per_second=round(self.tokens(steps) / max(seconds, 1e-9), 1),
            memory_bytes=self.trainer.runtime.peak_memory(),
        )  # fmt: skip

    def expected(self) -> Iterator[TimeEstimate]:
        """How long the run will take in all, once two seconds of steps, the first ones left out, have told."""
        step, settings = self.trainer.step, self.settings
        if self.warm is None:
            self.warm = step, self.training_seconds
        steps, seconds = step - self.warm[0], self.training_seconds - self.warm[1]
        if self.told or not steps or seconds < run_estimate.PROBE_SECONDS or step == settings.max_steps:
            return
        self.told = True
        short = step <= settings.curriculum_fraction * settings.max_steps
        window = settings.block_size // (settings.curriculum_splits if short else 1)
        pace = estimate.timing_from_step(settings, seconds / steps, window)
        whole = sum(estimate.seconds_by_part(settings, pace, len(self.val) + len(self.train)).values())
        left = whole * (1 - step / settings.max_steps)
        yield TimeEstimate(round(self.seconds + left, 1), round(self.tokens(steps) / seconds, 1))

    def entry(self, line: Step) -> dict[str, Any]:
        """A line of `metrics.jsonl`."""
        entry = dataclasses.asdict(line)
        if self.losses is not None and self.losses.step == line.step:
            entry |= {key: getattr(self.losses, key) for key in ("train_loss", "val_loss", "bits_per_byte")}
        return entry

    def evaluate(self) -> Evaluated:
        """The validation split, exactly, and the other's beginning. Raises `OctavoError` if the weights are broken."""
        train_loss, val_loss = (
            split_loss(self.model, part, self.settings.block_size) for part in (self.train, self.val)
        )
        if not math.isfinite(val_loss + train_loss):
            raise self.broken(f"the validation loss is {val_loss:g}")
        best = val_loss < self.best
        self.without_gain = 0 if best else self.without_gain + 1
        self.best = min(self.best, val_loss)
        bits_per_byte = val_loss / math.log(2) / self.bytes_per_token
        return Evaluated(self.trainer.step, train_loss, val_loss, bits_per_byte, best)

    def broken(self, what: str) -> OctavoError:
        kept = f"the last good checkpoint is {self.checkpoint}" if self.checkpoint else "no checkpoint was due yet"
        return OctavoError(f"training broke at step {self.trainer.step}: {what}; {kept}",
                           f"--learning-rate {min(self.settings.learning_rate / 3, 1e-3):.1g}")  # fmt: skip

    def sample(self) -> Sampled:
        """A few lines, drawn from the same numbers whether or not the run was resumed."""
        step = self.trainer.step
        generator = torch.Generator().manual_seed(self.settings.seed + step)
        self.model.eval()
        engine = Engine(
            self.model, 1, known=self.tokenizer.vocab_size, use_native=False
        )  # a few lines: nothing to build for
        request = Request(prompt=start(self.tokenizer, ""), max_new_tokens=estimate.SAMPLE_TOKENS, generator=generator)
        text = "".join(Continuation(engine, self.tokenizer, request))
        self.run.log("samples", {"step": step, "text": text})
        return Sampled(step, text)

    def save(self) -> Saved:
        """The checkpoint of this step, from which training may go on."""
        step = self.trainer.step
        if self.losses is None or self.losses.step != step:  # the loss so far is that of the weights before this step
            loss = split_loss(self.model, self.val[: self.settings.block_size + 1], self.settings.block_size)
            if not math.isfinite(loss):
                raise self.broken(f"the validation loss is {loss:g}")
        state = self.trainer.state()
        state.values.update(
            best=None if math.isinf(self.best) else self.best,
            without_gain=self.without_gain,
            seconds=self.seconds,
            training_seconds=self.training_seconds,
            losses=dataclasses.asdict(self.losses) if self.losses else None,
        )
        best = self.losses is not None and self.losses.step == step and self.losses.best
        self.checkpoint = self.run.save(step, self.model, self.tokenizer, self.settings, self.info(), state, best)
        return Saved(step, self.checkpoint)

    def info(self) -> dict[str, Any]:
        """What `octavo.json` says beside the settings; losses where they were measured at this very step."""
        step = self.trainer.step
        current = self.losses if self.losses is not None and self.losses.step == step else None
        return {
            "step": step,
            "tokens": self.tokens(step),
            "train_loss": current.train_loss if current else None,
            "val_loss": current.val_loss if current else None,
            "bits_per_byte": current.bits_per_byte if current else None,
            "data": self.data.origin | {"source": self.settings.source},
        }

    def finished(self, reason: str) -> Finished:
        assert self.checkpoint is not None
        step, losses = self.trainer.step, self.losses
        return Finished(
            run=self.run.folder, checkpoint=self.checkpoint, step=step, tokens=self.tokens(step),
            train_loss=losses.train_loss if losses else None, val_loss=losses.val_loss if losses else None,
            best_val_loss=None if math.isinf(self.best) else self.best, seconds=self.seconds,
            tokens_per_second=round(self.tokens(step) / max(self.training_seconds, 1e-9), 1),
            parameters=estimate.parameters(self.settings), reason=reason,
        )  # fmt: skip

    @property
    def seconds(self) -> float:
        """Since the run began, the time between two resumed parts left out."""
        return round(time.perf_counter() - self.clock, 3)

    def tokens(self, steps: int) -> int:
        return steps * self.settings.batch_size * self.settings.block_size
