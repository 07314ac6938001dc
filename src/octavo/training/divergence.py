"""What training does when it diverges: when a loss, gradient or weight is not finite, that is, NaN or infinite.

The setting `on_divergence` is the policy:

    stop       training ends with an error; the last checkpoint is good
    skip       the update is not applied
    rollback   training returns to the last checkpoint, leaves out the batches since then and halves the learning rate

A finite loss far above those before it, a spike, is reported. With `skip_spikes` its update is not applied.

Decisions depend on nothing but the losses, the gradient norms and the `DivergenceState`, which every checkpoint has. So
the same run makes the same decisions again, also after a kill and `--resume`.
"""

import math
from pathlib import Path
from typing import Annotated

import msgspec
import torch
from torch import Tensor

from octavo.errors import DivergenceError
from octavo.schema import Count, NonNegative
from octavo.training.step import Trainer

# A loss is a spike if it is more than `_SPIKE_DEVIATIONS` standard deviations above the mean of the `SPIKE_WINDOW`
# losses before it. The numbers are those of OLMo 2 (OLMo-core's SkipStepOptimizer). The window contains earlier spikes,
# so a loss that stays high stops being a spike after four steps.
SPIKE_WINDOW = 128
_SPIKE_DEVIATIONS = 6

# If more steps than this in a row diverge, the weights are the cause, and skipping does not change them.
MAX_SKIPS_IN_A_ROW = 10
# If a step diverges after this many skipped updates (those of spikes count too), a few bad batches are not the cause.
MAX_SKIPS = 100
# After five rollbacks the learning rate is 1/32 of its original value: something else is the cause.
MAX_ROLLBACKS = 5
_ROLLBACK_FACTOR = 0.5

# Gradients that overflow in fp16 at this scale are not finite without it either. The value is fairseq's.
_MIN_LOSS_SCALE = 1e-4


class DivergenceState(msgspec.Struct):
    """What decisions depend on, and what has happened so far. Part of trainer.json."""

    losses: Annotated[list[NonNegative], msgspec.Meta(max_length=SPIKE_WINDOW)] = msgspec.field(default_factory=list)
    spikes: Count = 0
    skipped_steps: Count = 0  # whose update was not applied
    skips_in_a_row: Count = 0  # how many steps in a row diverged, up to the newest one
    rollbacks: Annotated[int, msgspec.Meta(ge=0, le=MAX_ROLLBACKS)] = 0
    skipped_batches: Annotated[int, msgspec.Meta(ge=0, le=10**12)] = 0  # by rollbacks


class DivergencePolicy:
    """Decides which updates are applied, from their losses and gradient norms."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.settings = trainer, trainer.settings
        self.state = DivergenceState()
        # Reading a number from a GPU waits for it. So the losses are read before the next line of metrics or the next
        # checkpoint, unless updates may have to be skipped.
        self.reads_every_step = (
            trainer.runtime.device.type == "cpu" or self.settings.on_divergence == "skip" or self.settings.skip_spikes
        )
        self._unread: list[tuple[int, Tensor, Tensor]] = []
        self._notices: list[str] = []

    @property
    def learning_rate_scale(self) -> float:
        """What the learning rate is multiplied by after the rollbacks so far."""
        return _ROLLBACK_FACTOR**self.state.rollbacks

    def approves(self, step: int, loss: Tensor, grad_norm: Tensor) -> bool:
        """Whether to apply the update of a step. Raises `DivergenceError` if training cannot continue."""
        self._unread.append((step, loss, grad_norm))
        if self.reads_every_step or len(self._unread) == SPIKE_WINDOW:
            return self.read_losses()
        return True

    def read_losses(self) -> bool:
        """Read the losses and gradient norms that are still on the device. Return whether to apply the newest update.

        Raises `DivergenceError` at the first step that has diverged, unless it can be skipped.
        """
        unread, self._unread = self._unread, []
        if not unread:
            return True
        steps, losses, norms = zip(*unread, strict=True)
        pairs = torch.stack([torch.stack(losses), torch.stack(norms)]).T.tolist()  # one transfer from the device
        decisions = [self._decide(step, *pair) for step, pair in zip(steps, pairs, strict=True)]
        return decisions[-1]

    def take_notices(self) -> list[str]:
        """Return the notices since the last call: of spikes, skipped updates and rollbacks."""
        notices, self._notices = self._notices, []
        return notices

    def roll_back(self, error: DivergenceError, step: int, earlier: DivergenceState) -> None:
        """Continue after an error, from the checkpoint of step `step`, whose state is `earlier`."""
        skipped_batches = self.state.skipped_batches + error.step - step
        rollbacks = self.state.rollbacks + 1
        self.state = msgspec.structs.replace(earlier, rollbacks=rollbacks, skipped_batches=skipped_batches)
        self._unread.clear()
        self._notices.append(
            f"{error.message}. Rollback {rollbacks} of at most {MAX_ROLLBACKS}: training continues at step {step}, "
            f"without the {error.step - step} batches since then, at {self.learning_rate_scale:g} times the learning "
            "rate"
        )

    def final_error(self, error: DivergenceError, last_checkpoint: Path | None) -> DivergenceError:
        """The error with which training ends: what was tried, where the last checkpoint is and what to try next."""
        rollbacks = self.state.rollbacks
        tried = f", after {rollbacks} rollbacks" if rollbacks == MAX_ROLLBACKS else ""
        place = f"the last good checkpoint is {last_checkpoint}" if last_checkpoint else "there is no checkpoint yet"
        hint = f"--learning-rate {min(self.settings.learning_rate / 3, 1e-3):.1g}"
        if self.settings.optimizer == "muon":  # its learning rate does not follow --learning-rate
            hint += f" --muon-learning-rate {min(self.settings.muon_learning_rate / 3, 0.02):.1g}"
        if self.settings.on_divergence != "rollback":
            hint += ", or --on-divergence rollback"
        return DivergenceError(error.step, f"{error.reason}{tried}; {place}", hint)

    @property
    def can_roll_back(self) -> bool:
        return self.settings.on_divergence == "rollback" and self.state.rollbacks < MAX_ROLLBACKS

    def _decide(self, step: int, loss: float, grad_norm: float) -> bool:
        """Whether to apply an update. Counts what happened."""
        reason = self._divergence(loss, grad_norm)
        if reason is not None:
            self._skip_or_raise(DivergenceError(step, reason))
            return False
        self.state.skips_in_a_row = 0
        window = self.state.losses
        has_spike = is_spike(loss, window)
        if has_spike:
            self.state.spikes += 1
            self.state.skipped_steps += self.settings.skip_spikes
            self._notices.append(
                f"loss spike at step {step}: {loss:.4g}, after a mean of {_mean(window):.4g} in "
                f"{SPIKE_WINDOW} steps{'; its update is skipped' if self.settings.skip_spikes else ''}"
            )
        self.state.losses = [*window, loss][-SPIKE_WINDOW:]
        return not (has_spike and self.settings.skip_spikes)

    def _divergence(self, loss: float, grad_norm: float) -> str | None:
        """Why a step has diverged, or None if it has not."""
        if not math.isfinite(loss):
            return f"the loss is {loss:g}"
        if math.isfinite(grad_norm):
            return None
        if not self.trainer.scaler.is_enabled():
            return f"the gradient norm is {grad_norm:g}"
        # Gradients that overflow in fp16 are normal: loss scaling skips the update and lowers the scale.
        scale = self.trainer.scaler.get_scale()
        return f"the loss scale is {scale:g}, and gradients still overflow" if scale < _MIN_LOSS_SCALE else None

    def _skip_or_raise(self, error: DivergenceError) -> None:
        state = self.state
        if self.settings.on_divergence != "skip":
            raise error
        if state.skips_in_a_row == MAX_SKIPS_IN_A_ROW:
            raise DivergenceError(error.step, f"{error.reason}, after {MAX_SKIPS_IN_A_ROW} skipped updates in a row")
        if state.skipped_steps >= MAX_SKIPS:
            raise DivergenceError(error.step, f"{error.reason}, after {state.skipped_steps} skipped updates")
        state.skips_in_a_row += 1
        state.skipped_steps += 1
        self._notices.append(f"the update of step {error.step} is skipped: {error.reason}")


def is_spike(loss: float, window: list[float]) -> bool:
    """Whether a loss is a spike after the losses in `window`. Without a full window, nothing is."""
    if len(window) < SPIKE_WINDOW:
        return False
    mean = _mean(window)
    deviation = math.sqrt(_mean([(value - mean) ** 2 for value in window]))
    return loss > mean + _SPIKE_DEVIATIONS * deviation


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)
