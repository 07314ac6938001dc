"""Writes the metrics, samples and checkpoints of a run. `octavo.runs` defines the layout of the run folder."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from octavo import estimate
from octavo.checkpoint import TrainerState
from octavo.data.dataset import Dataset
from octavo.device import is_out_of_memory
from octavo.errors import DivergenceError, MachineError, OctavoError
from octavo.generation.engine import Engine
from octavo.generation.prompt import encode_prompt
from octavo.generation.stream import TextRequest, TextStream
from octavo.loss import split_loss
from octavo.model import GPT
from octavo.runs import Run
from octavo.settings import SAMPLE_TOKENS
from octavo.training.checkpoint_writer import CheckpointWriter
from octavo.training.clock import Clock
from octavo.training.divergence import DivergencePolicy
from octavo.training.evaluator import Evaluator
from octavo.training.event import Evaluated, Finished, Notice, Sampled, Saved, Step
from octavo.training.setup import ResumePoint, load_first_intact
from octavo.training.step import Trainer


class Recorder:
    """Writes the state and the metrics of training into a run, and restores the state when the run is resumed."""

    def __init__(
        self,
        run: Run,
        data: Dataset,
        trainer: Trainer,
        evaluator: Evaluator,
        policy: DivergencePolicy,
        clock: Clock,
        writer: CheckpointWriter,
    ) -> None:
        self.run, self.data, self.trainer, self.evaluator, self.clock = run, data, trainer, evaluator, clock
        self.policy = policy
        self._writer, self._has_memory_for_copy = writer, True
        self.last_checkpoint: Path | None = None  # the newest from which training can resume
        # The metrics of the newest step, if training was stopped during its evaluation. A resumed run evaluates it.
        self.unevaluated_step: Step | None = None
        self._unwritten: list[tuple[str, dict[str, Any]]] = []  # lines that could not be written yet
        self._notices: list[str] = []
        self._resumed_from: ResumePoint | None = None  # until `commit_resume`

    def restore(self, resumed_from: ResumePoint) -> None:
        """Restore all state from a checkpoint. Nothing is written before `commit_resume`."""
        values = resumed_from.values
        self._restore(resumed_from)
        self.policy.state = values.divergence
        self.clock.restore(values.elapsed_seconds, values.update_seconds)
        self._resumed_from = resumed_from

    def roll_back(self, error: DivergenceError) -> list[str]:
        """Return to the newest checkpoint that is not damaged, after training diverged. Returns notices.

        Requires that no checkpoint is being written.
        """
        self.commit_resume()  # before the lookup: a run may be resumed from a checkpoint that is not its newest
        self.trainer.world.barrier()  # until rank 0 has removed the newer ones
        loaded, resumed_from, notices = load_first_intact(tuple(self.run.resumable))
        step, earlier = resumed_from.values.step, resumed_from.values.divergence
        self.trainer.load_weights(loaded.model)
        self._restore(resumed_from)
        self._rewind(resumed_from)
        self._unwritten.clear()  # lines of later steps
        self.policy.roll_back(error, step, earlier)
        self.clock.roll_back()
        return notices + self.policy.take_notices()

    def commit_resume(self) -> None:
        """Write a resumed run's settings, and remove what it had after the checkpoint. Later calls do nothing.

        It is called when the first step has succeeded, or is rolled back: settings with which training fails must not
        change the run.
        """
        if self._resumed_from is not None:
            self._rewind(self._resumed_from)
            self.run.write_settings(self.trainer.settings)
        self._resumed_from = None

    def take_notices(self) -> list[str]:
        """Return notices about lines that could not be written, since the last call."""
        notices, self._notices = self._notices, []
        return notices

    def write_metrics(self, step: Step) -> None:
        """Append a line to metrics.jsonl, with the losses if this step was evaluated."""
        evaluated = self._current_evaluation()
        losses = _losses(evaluated) if evaluated else {}
        self._write_line("metrics", dataclasses.asdict(step) | losses)

    def write_sample(self) -> Iterator[Sampled]:
        """Generate a few lines. The seed is the run's plus the step, so a resumed run generates the same."""
        step, settings = self.trainer.step, self.trainer.settings
        model = self.trainer.whole_model().eval()
        # The C code generates many times as fast, but compiling it would take longer than these tokens. Where steps are
        # fused, it is loaded already.
        use_native = self.trainer.fused_step is not None
        engine = Engine(model, 1, vocab_size=self.data.tokenizer.vocab_size, use_native=use_native)
        request = TextRequest(
            prompt=encode_prompt(self.data.tokenizer, ""),
            max_new_tokens=SAMPLE_TOKENS,
            seed=(settings.seed + step) % 2**63,
        )
        text = "".join(TextStream(request, self.data.tokenizer).start(engine))
        self._write_line("samples", {"step": step, "text": text})
        yield Sampled(step, text)

    def save_checkpoint(self, is_required: bool) -> Iterator[Saved | Notice]:
        """Save a checkpoint from which training can resume.

        Raises `DivergenceError` if the loss or a weight is not finite.

        The checkpoint is written while training continues, after the previous one is on disk; `take_saved` yields
        `Saved` when it is complete. A checkpoint that `is_required` is on disk when the iterator ends.

        If the disk is full or fails, training continues, with a `Notice`; with `is_required`, a `MachineError` is
        raised. The previous checkpoint is unchanged either way.
        """
        settings, evaluator = self.trainer.settings, self.evaluator
        self._require_finite_weights()
        evaluated = self._current_evaluation()
        if evaluated is None:  # the loss of the step was computed before its update: check the updated weights too
            T = settings.block_size
            loss = split_loss(self.trainer.model, evaluator.val[: T + 1], T, world=self.trainer.world)
            self.require_finite("the validation loss", loss)
        state = self.trainer.state()
        state.values.update(
            best_val_loss=None if math.isinf(evaluator.best_val_loss) else evaluator.best_val_loss,
            evaluations_since_best=evaluator.evaluations_since_best,
            newest_evaluation=dataclasses.asdict(evaluator.newest_evaluation) if evaluator.newest_evaluation else None,
            elapsed_seconds=self.clock.elapsed,
            update_seconds=self.clock.update_seconds,
            divergence=msgspec.to_builtins(self.policy.state),
            unevaluated_step=dataclasses.asdict(self.unevaluated_step) if self.unevaluated_step else None,
        )
        yield from self._save(state, evaluated is not None and evaluated.best, is_required)

    def save_weights(self) -> Iterator[Saved | Notice]:
        """Save a checkpoint without the trainer's state: one of the log-spaced ones for the lens."""
        self._require_finite_weights()
        yield from self._save(None, is_best=False, is_required=False)

    def take_saved(self, wait: bool = False) -> Iterator[Saved | Notice]:
        """Yield `Saved` for a checkpoint that was completed since the last call, or a `Notice` if writing it failed.

        With `wait`, wait for the checkpoint that is being written now.
        """
        yield from self._note_result(self._writer.wait_result() if wait else self._writer.take_result())

    def finish(self, reason: str) -> Finished:
        """Summarize the run."""
        assert self.last_checkpoint is not None
        evaluator, newest = self.evaluator, self.evaluator.newest_evaluation
        return Finished(
            run=self.run.folder,
            checkpoint=self.last_checkpoint,
            step=self.trainer.step,
            tokens=self.trainer.tokens,
            train_loss=newest.train_loss if newest else None,
            val_loss=newest.val_loss if newest else None,
            best_val_loss=None if math.isinf(evaluator.best_val_loss) else evaluator.best_val_loss,
            seconds=self.clock.elapsed,
            tokens_per_second=round(self.trainer.tokens / max(self.clock.update_seconds, 1e-9), 1),
            parameters=estimate.parameters(self.trainer.settings),
            reason=reason,
        )

    def require_finite(self, name: str, value: float) -> None:
        """Raise `DivergenceError` if the value is not finite."""
        if not math.isfinite(value):
            raise DivergenceError(self.trainer.step, f"{name} is {value:g}")

    def _require_finite_weights(self) -> None:
        parameters = self.trainer.layout.parameters.items()
        broken = next((name for name, parameter in parameters if not parameter.isfinite().all()), None)
        for name in self.trainer.world.all_gather_object(broken):  # a sharded weight may be broken in another process
            if name is not None:
                self.require_finite(f"a weight of {name}", math.nan)

    def _restore(self, resumed_from: ResumePoint) -> None:
        """Restore trainer and evaluator."""
        values = resumed_from.values
        self.trainer.restore(resumed_from.state)
        self.last_checkpoint = resumed_from.folder
        self.evaluator.best_val_loss = math.inf if values.best_val_loss is None else values.best_val_loss
        self.evaluator.evaluations_since_best = values.evaluations_since_best
        self.evaluator.newest_evaluation = values.newest_evaluation
        self.unevaluated_step = values.unevaluated_step

    def _rewind(self, point: ResumePoint) -> None:
        """Remove what the run has after a checkpoint."""
        self.run.rewind(point.values.step, point.is_best, keep_line=point.values.unevaluated_step is None)

    def _write_line(self, kind: str, line: dict[str, Any]) -> None:
        """Append a line. If the disk fails, keep it, and write it with the next one."""
        was_failing = bool(self._unwritten)
        self._unwritten.append((kind, line))
        try:
            self._write_lines()
        except MachineError as error:
            if not was_failing:
                self._notices.append(
                    f"{error.message}. Training continues, and writes the missing lines of {kind}.jsonl when it can"
                )

    def _write_lines(self) -> None:
        self.run.require_folder()
        while self._unwritten:
            self.run.log(*self._unwritten[0])
            del self._unwritten[0]

    def _current_evaluation(self) -> Evaluated | None:
        """The newest evaluation, if it is of the current weights."""
        newest = self.evaluator.newest_evaluation
        return newest if newest is not None and newest.step == self.trainer.step else None

    def _save(self, state: TrainerState | None, is_best: bool, is_required: bool) -> Iterator[Saved | Notice]:
        yield from self.take_saved(wait=True)  # one checkpoint is written at a time
        step, settings = self.trainer.step, self.trainer.settings
        evaluated = self._current_evaluation()
        info = {
            "step": step,
            "tokens": self.trainer.tokens,
            **(_losses(evaluated) if evaluated else dict.fromkeys(_LOSSES)),
            "data": self.data.origin | {"source": settings.source},
        }

        def write(model: GPT, state: TrainerState | None) -> Saved | Notice | None:
            try:
                folder = self.run.save(step, model, self.data.tokenizer, settings, info, state, is_best)
            except OctavoError as error:
                self.run.require_folder()  # if it is gone, that is the reason
                if is_required or not isinstance(error, MachineError):
                    raise
                return _explain_failure(step, state, error)
            return None if state is None else Saved(step, folder)

        # A sharded model must be copied, since only rank 0 writes it.
        copies = self.trainer.is_sharded or (not is_required and self._has_memory_for_copy)
        if copies:
            try:
                with self.trainer.gathering():
                    self._writer.copy(self.trainer.tensors(state))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                copies = self._has_memory_for_copy = False
                yield Notice("too little memory to copy a checkpoint, so training waits while one is written")
        try:
            self._write_lines()  # first, so that metrics.jsonl has every step up to the checkpoint
        except MachineError as error:
            if is_required:
                raise
            yield _explain_failure(step, state, error)
            return
        if not copies:
            yield from self._note_result(write(self.trainer.model, state))
            return
        self._writer.start(settings, state, write)
        if is_required:
            yield from self.take_saved(wait=True)

    def _note_result(self, event: Saved | Notice | None) -> Iterator[Saved | Notice]:
        if isinstance(event, Saved):
            self.last_checkpoint = event.folder
        if event is not None:
            yield event


def _explain_failure(step: int, state: TrainerState | None, error: MachineError) -> Notice:
    if state is None:
        return Notice(f"no copy of the weights at step {step}: {error.message}")
    return Notice(f"no checkpoint at step {step}: {error.message}. Training continues, and saves the next one when due")


_LOSSES = ("train_loss", "val_loss", "bits_per_byte")


def _losses(evaluated: Evaluated) -> dict[str, float]:
    return {name: getattr(evaluated, name) for name in _LOSSES}
