"""What training tells, as it goes: the command line draws these, a notebook plots them, a test asserts on them.

Units: nats, tokens, seconds. A step's number is the count of updates made.
"""

from dataclasses import dataclass
from pathlib import Path

from octavo.data.build import Preparing
from octavo.settings import Settings


@dataclass(frozen=True)
class Started:
    """A run is about to train (or to go on after `step`)."""

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
    epochs: float  # passes over the training text that all the steps are
    flops_per_token: int
    peak_flops: float | None
    memory_bytes: int  # that training is expected to hold at its peak, as `Step` counts


@dataclass(frozen=True)
class Notice:
    """Something that changes speed or numbers without having been asked for; said once."""

    text: str


@dataclass(frozen=True)
class Step:
    """An update was made: its own batch's loss, and how fast the steps since the last such line were."""

    step: int
    tokens: int
    seconds: float
    loss: float
    learning_rate: float
    grad_norm: float
    tokens_per_second: float
    memory_bytes: int | None  # the most that was held so far, where the system tells


@dataclass(frozen=True)
class TimeEstimate:
    """How long the run will take in all, not only its steps; told once, after two seconds of them."""

    seconds: float
    tokens_per_second: float


@dataclass(frozen=True)
class Evaluated:
    """Exact losses over the whole validation split, and over the beginning of the training split."""

    step: int
    train_loss: float
    val_loss: float
    bits_per_byte: float
    best: bool


@dataclass(frozen=True)
class Sampled:
    """A few lines that the model wrote."""

    step: int
    text: str


@dataclass(frozen=True)
class Saved:
    """A checkpoint from which training may go on lies at `folder`."""

    step: int
    folder: Path


@dataclass(frozen=True)
class Finished:
    """The run ended: all steps `done`, `stopped` by its user, or out of `patience`."""

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


Event = Preparing | Started | Notice | Step | TimeEstimate | Evaluated | Sampled | Saved | Finished
