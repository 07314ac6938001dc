"""Start `octavo` in separate processes, which the tests of this folder kill and starve.

`make torture` sets OCTAVO_TORTURE=1: many more trials than in CI. Its result is in docs/reliability.md.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import octavo
from octavo import checkpoint

IS_TORTURE = os.environ.get("OCTAVO_TORTURE") == "1"
TEXT = "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs!\n" * 60
_SETTINGS = dict(
    n_layer=1,
    n_head=2,
    n_embd=16,
    block_size=16,
    batch_size=4,
    max_steps=60,
    warmup_steps=4,
    eval_every=10,
    log_every=1,
    sample_every=20,
    keep_checkpoints=4,
    dropout=0.1,
    device="cpu",
    compile="off",
)
SETTINGS = [f"--{name.replace('_', '-')}={value}" for name, value in _SETTINGS.items()]
VARIANTS = {
    "adamw": ["--optimizer", "adamw", "--precision", "fp32"],
    "muon": ["--optimizer", "muon", "--precision", "bf16"],
}


def start(words: list[object], folder: Path, **environment: str) -> subprocess.Popen[str]:
    """Start `octavo` with these words in `folder`."""
    return subprocess.Popen(
        [sys.executable, "-m", "octavo", *map(str, words)],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OCTAVO_CACHE": str(folder / "cache")} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


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
        for path in run.steps.values():
            checkpoint.check_manifest(path, foreign=False)
        names = ("step", "loss", "grad_norm", "learning_rate", "val_loss", "train_loss")
        metrics = [tuple(line.get(name) for name in names) for line in run.lines("metrics")]
        weights = (run.last / "model.safetensors").read_bytes()
        return cls(weights, metrics, run.lines("samples"), list(run.steps))


def leftovers(folder: Path) -> list[Path]:
    """Temporary files and folders that should have been removed."""
    return [path for path in folder.rglob(".*") if path.name.endswith((".partial", ".removed"))]
