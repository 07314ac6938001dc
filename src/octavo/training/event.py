"""The events of a training run. The command line displays them, a notebook plots them, a test asserts on them.

Units: nats, tokens, seconds, bytes. A step's number counts the steps so far, also those whose update was skipped.
"""

from dataclasses import dataclass
from pathlib import Path

from octavo.progress import PreparationProgress
from octavo.schema import Count, NonNegative
from octavo.settings import Settings


@dataclass(frozen=True)
class Started:
    """Training is about to start, or to resume after `step`."""

    run: Path
    settings: Settings
    step: int
    parameters: int
    device: str
    precision: str
    tokenizer: str
    vocab_size: int
    train_tokens: int
    val_tokens: int
    epochs: float  # passes over the training split that all steps make
    flops_per_token: int
    peak_flops: float | None
    memory_bytes: int  # estimated peak, comparable with `Step.memory_bytes`
    example_word: str  # of the text; a prompt to begin with. Empty if no word was found


@dataclass(frozen=True)
class Notice:
    """A warning, or the reason for a change of settings, speed or results that the user did not ask for."""

    text: str


@dataclass(frozen=True)
class Step:
    """Metrics of an update: loss of its batch, and throughput since the last `Step` event."""

    step: Count  # these types are checked when it is read from a checkpoint
    tokens: Count  # trained on so far
    seconds: NonNegative  # since the run began
    loss: NonNegative | None  # None if it is not finite, in a step whose update was skipped
    learning_rate: NonNegative
    grad_norm: NonNegative | None  # before clipping; None if it is not finite
    tokens_per_second: NonNegative
    memory_bytes: Count | None  # peak so far, or None if the system does not report it
    spikes: Count  # so far: losses far above those before them
    skipped_steps: Count  # so far: steps whose update was not applied, because of `on_divergence` or `skip_spikes`
    rollbacks: Count  # so far: returns to an earlier checkpoint


@dataclass(frozen=True)
class TimeEstimate:
    """How long the whole run will take. Yielded once, after `estimate_after` seconds of steps."""

    seconds: float
    tokens_per_second: float


@dataclass(frozen=True)
class Evaluated:
    """Exact losses over the whole validation split and over the start of the training split."""

    step: Count  # these types are checked when it is read from a checkpoint
    train_loss: NonNegative
    val_loss: NonNegative
    bits_per_byte: NonNegative
    best: bool


@dataclass(frozen=True)
class Sampled:
    """The model generated a few lines."""

    step: int
    text: str


@dataclass(frozen=True)
class Saved:
    """A checkpoint was saved from which training can resume."""

    step: int
    folder: Path


@dataclass(frozen=True)
class Finished:
    """The run ended. `reason` is "done" after all steps, "stopped" by the user, or "patience" if it stopped early."""

    run: Path
    checkpoint: Path
    step: int
    tokens: int
    train_loss: float | None
    val_loss: float | None
    best_val_loss: float | None
    seconds: float
    tokens_per_second: float
    parameters: int
    reason: str


Event = PreparationProgress | Started | Notice | Step | TimeEstimate | Evaluated | Sampled | Saved | Finished
