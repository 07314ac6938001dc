"""Writes the metrics, samples and checkpoints of a run. `octavo.runs` defines the layout of the run folder."""

import dataclasses
import math
from pathlib import Path

from octavo import estimate
from octavo.checkpoint import TrainerState
from octavo.data.dataset import Dataset
from octavo.errors import OctavoError
from octavo.generation.engine import Engine
from octavo.generation.prompt import encode_prompt
from octavo.generation.stream import TextRequest, TextStream
from octavo.loss import split_loss
from octavo.runs import Run
from octavo.training.clock import Clock
from octavo.training.evaluator import Evaluator
from octavo.training.event import Evaluated, Finished, Sampled, Saved, Step
from octavo.training.step import Trainer


class Recorder:
    """Writes the state and the metrics of training into a run, and restores the state when the run is resumed."""

    def __init__(self, run: Run, data: Dataset, trainer: Trainer, evaluator: Evaluator, clock: Clock) -> None:
        self.run, self.data, self.trainer, self.evaluator, self.clock = run, data, trainer, evaluator, clock
        self.last_checkpoint = run.last

    def restore(self, state: TrainerState) -> None:
        """Restore trainer, evaluator and clock. Remove the metrics and samples of steps after the checkpoint."""
        values = state.values
        self.trainer.restore(state)
        self.run.truncate_logs(self.trainer.step)
        best_val_loss, newest = values["best_val_loss"], values["newest_evaluation"]
        self.evaluator.best_val_loss = math.inf if best_val_loss is None else best_val_loss
        self.evaluator.evaluations_since_best = values["evaluations_since_best"]
        self.evaluator.newest_evaluation = Evaluated(**newest) if newest else None
        self.clock.restore(values["elapsed_seconds"], values["update_seconds"])

    def write_metrics(self, step: Step) -> None:
        """Append a line to metrics.jsonl, with the losses if this step was evaluated."""
        evaluated = self._current_evaluation()
        losses = _losses(evaluated) if evaluated else {}
        self.run.log("metrics", dataclasses.asdict(step) | losses)

    def write_sample(self) -> Sampled:
        """Generate a few lines. The seed is the run's plus the step, so a resumed run generates the same."""
        step, settings = self.trainer.step, self.trainer.settings
        self.trainer.model.eval()
        # Building the native engine would take longer than these tokens.
        engine = Engine(self.trainer.model, 1, vocab_size=self.data.tokenizer.vocab_size, use_native=False)
        request = TextRequest(
            prompt=encode_prompt(self.data.tokenizer, ""),
            max_new_tokens=estimate.SAMPLE_TOKENS,
            seed=(settings.seed + step) % 2**63,
        )
        text = "".join(TextStream(request, self.data.tokenizer).start(engine))
        self.run.log("samples", {"step": step, "text": text})
        return Sampled(step, text)

    def save_checkpoint(self) -> Saved:
        """Save a checkpoint from which training can resume. Raises `OctavoError` if the loss is not finite."""
        step, settings, evaluator = self.trainer.step, self.trainer.settings, self.evaluator
        evaluated = self._current_evaluation()
        if evaluated is None:  # the loss of the step was computed before its update: check the updated weights too
            T = settings.block_size
            self.require_finite("the validation loss", split_loss(self.trainer.model, evaluator.val[: T + 1], T))
        state = self.trainer.state()
        state.values.update(
            best_val_loss=None if math.isinf(evaluator.best_val_loss) else evaluator.best_val_loss,
            evaluations_since_best=evaluator.evaluations_since_best,
            newest_evaluation=dataclasses.asdict(evaluator.newest_evaluation) if evaluator.newest_evaluation else None,
            elapsed_seconds=self.clock.elapsed,
            update_seconds=self.clock.update_seconds,
        )
        is_best = evaluated is not None and evaluated.best
        self.last_checkpoint = self._save(state, is_best)
        return Saved(step, self.last_checkpoint)

    def save_weights(self) -> None:
        """Save a checkpoint without the trainer's state: one of the log-spaced ones for the lens."""
        self._save(None, best=False)

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
        """Raise `OctavoError` if the value shows that training diverged. The error names the last good checkpoint."""
        if math.isfinite(value):
            return
        rate = min(self.trainer.settings.learning_rate / 3, 1e-3)
        last = self.last_checkpoint
        checkpoint = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
        raise OctavoError(
            f"training diverged at step {self.trainer.step}: {name} is {value:g}; {checkpoint}",
            f"--learning-rate {rate:.1g}",
        )

    def _current_evaluation(self) -> Evaluated | None:
        """The newest evaluation, if it is of the current weights."""
        newest = self.evaluator.newest_evaluation
        return newest if newest is not None and newest.step == self.trainer.step else None

    def _save(self, state: TrainerState | None, best: bool) -> Path:
        evaluated = self._current_evaluation()
        info = {
            "step": self.trainer.step,
            "tokens": self.trainer.tokens,
            **(_losses(evaluated) if evaluated else dict.fromkeys(_LOSSES)),
            "data": self.data.origin | {"source": self.trainer.settings.source},
        }
        return self.run.save(
            self.trainer.step, self.trainer.model, self.data.tokenizer, self.trainer.settings, info, state, best
        )


_LOSSES = ("train_loss", "val_loss", "bits_per_byte")


def _losses(evaluated: Evaluated) -> dict[str, float]:
    return {name: getattr(evaluated, name) for name in _LOSSES}
