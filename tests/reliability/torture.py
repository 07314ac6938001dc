"""What the tests of this folder share: the small run that they disturb, and what must not depend on the disturbance.

`make torture` sets OCTAVO_TORTURE=1: many more trials than in CI. Its result is in docs/reliability.md.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import octavo
from octavo import checkpoint
from octavo.checkpoint import Checkpoint, TrainerState
from octavo.errors import OctavoError

IS_TORTURE = os.environ.get("OCTAVO_TORTURE") == "1"
TEXT = "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs!\n" * 60
SAVE_INTERVAL = 10  # steps
SMALL = dict(n_layer=1, n_head=2, n_embd=16, block_size=16, batch_size=4, device="cpu")
_SETTINGS = SMALL | dict(
    max_steps=60,
    warmup_steps=4,
    eval_every=SAVE_INTERVAL,
    log_every=1,
    sample_every=20,
    keep_checkpoints=4,
    dropout=0.1,
    compile="off",
)
SETTINGS = [f"--{name.replace('_', '-')}={value}" for name, value in _SETTINGS.items()]
VARIANTS = {
    "adamw-fp32": ["--optimizer", "adamw", "--precision", "fp32"],
    "muon-bf16": ["--optimizer", "muon", "--precision", "bf16"],
    "adamw-bf16": ["--optimizer", "adamw", "--precision", "bf16"],
    "muon-fp32": ["--optimizer", "muon", "--precision", "fp32"],
}
# A run of four steps, with two evaluations, samples and checkpoints, and log-spaced weights at step 1.
SHORT = [
    *[*SETTINGS, *VARIANTS["adamw-fp32"], "--max-steps=4", "--eval-every=2", "--sample-every=2"],
    "--keep-checkpoints=2",
]


def start(words: list[object], folder: Path, **environment: str) -> subprocess.Popen[str]:
    """Start `octavo` with these words in `folder`, in a new interpreter; `forked` is faster."""
    return subprocess.Popen(
        [sys.executable, "-m", "octavo", *map(str, words)],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OCTAVO_CACHE": str(folder / "cache")} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class Report(Protocol):
    """Records what a test has found. docs/reliability.md has it as a table; see the fixture `report`."""

    def __call__(self, fault: str, count: int, **results: int) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """What must not depend on what happened to a run."""

    weights: bytes
    metrics: list[tuple[Any, ...]]
    samples: list[dict[str, Any]]
    checkpoints: list[int]

    @classmethod
    def of(cls, folder: Path) -> "Outcome":
        run = octavo.Run(folder)
        assert run.last is not None
        for path in run.checkpoints.values():
            checkpoint.check_manifest(path, foreign=False)
        weights = (run.last / "model.safetensors").read_bytes()
        return cls(weights, metrics(run), run.lines("samples"), list(run.checkpoints))


def metrics(run: octavo.Run) -> list[tuple[Any, ...]]:
    """The lines of metrics.jsonl without times and memory."""
    names = ("step", "loss", "grad_norm", "learning_rate", "val_loss", "train_loss")
    return [tuple(line.get(name) for name in names) for line in run.lines("metrics")]


def leftovers(folder: Path) -> list[Path]:
    """Temporary files and folders that should have been removed."""
    return [path for path in folder.rglob(".*") if path.name.endswith((".partial", ".removed"))]


def newest_intact(run: octavo.Run) -> tuple[Checkpoint, TrainerState] | None:
    """The checkpoint that training would resume from, or None before the first. Raises if all are damaged."""
    errors = []
    for folder in run.resumable:
        try:
            return checkpoint.load(folder, foreign=False), checkpoint.load_trainer(folder)
        except OctavoError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return None


def train_words(folder: Path, new_run: list[object]) -> list[object]:
    """The command that a user gives after a crash: resume, if the run folder has become a run."""
    return ["train", "--resume", folder] if (folder / "settings.toml").exists() else new_run
