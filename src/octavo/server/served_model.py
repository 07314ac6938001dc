"""A served model: a checkpoint, the worker that generates from it, and the run that it belongs to."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from octavo.checkpoint import TRAINER_FILES, Checkpoint
from octavo.generation.worker import Worker
from octavo.runs import Run, step_of


@dataclass(frozen=True)
class ServedModel:
    """A model and the worker that runs it."""

    id: str  # the name that clients use
    checkpoint: Checkpoint
    worker: Worker
    created: int  # when the checkpoint was written, Unix time
    overflow: str = "stop"
    run: Run | None = None  # the run that the checkpoint belongs to; None if it belongs to none
    pointer: str | None = None  # `last` or `best`, if the served checkpoint is always that one
    version: "Version | None" = None  # what the run offered when this was loaded; None without a run
    own_chat_template: str | None = None  # in place of the checkpoint's

    @property
    def steps(self) -> dict[int, Path]:
        """The run's checkpoints by step, as they are now."""
        return self.run.checkpoints if self.run else {}

    @property
    def step(self) -> int | None:
        """The step of the served checkpoint; None if it belongs to no run."""
        return step_of(self.checkpoint.folder) if self.run else None

    @property
    def chat_template(self) -> str | None:
        """The Jinja2 template by which conversations are written; None: as plain transcripts."""
        return self.own_chat_template or self.checkpoint.tokenizer.chat_template


class Version(NamedTuple):
    """Which weights a run offers: a checkpoint, and the state of its files."""

    folder: Path
    files: frozenset[tuple[str, int, int, int]]  # name, size, modification time, inode

    @classmethod
    def of_run(cls, run: Run, pointer: str | None = None) -> "Version | None":
        """The best checkpoint, else the last; or that of `pointer`. None without one, or while it is being replaced."""
        folder = {None: run.best or run.last, "best": run.best, "last": run.last}[pointer]
        try:
            entries = [(entry.name, entry.stat()) for entry in os.scandir(folder)] if folder else []
        except OSError:
            return None
        files = frozenset((name, state.st_size, state.st_mtime_ns, state.st_ino) for name, state in entries)
        return cls(folder, files) if folder else None

    @property
    def weights(self) -> "Version":
        """Without the trainer's state and the manifest, which change when training strips a checkpoint."""
        kept = (file for file in self.files if file[0] not in (*TRAINER_FILES, "manifest.json"))
        return Version(self.folder, frozenset(kept))
