"""The run folder: its layout, its lock, which checkpoints it keeps, and how a run is found.

    runs/NAME/settings.toml        all settings, resolved
              metrics.jsonl        one line per logged step
              samples.jsonl        texts that the model generated during training
              checkpoints/step-NNNNNN/
              last, best           text files, each with the name of one of the checkpoints

Only this module knows the layout. One process at a time writes to a run. Training resumes from `last`; every other
checkpoint holds only weights: `best`, and `keep_checkpoints` log-spaced ones that show how the model developed.
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import torch

from octavo import checkpoint, files
from octavo.checkpoint import Checkpoint, TrainerState
from octavo.errors import OctavoError
from octavo.model import GPT
from octavo.settings import Settings, from_toml, to_toml
from octavo.tokenizers import Tokenizer


class Run:
    """An existing run folder. `Run.create` makes a new one, `Run(folder)` opens one."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not _is_run(self.folder):
            raise OctavoError(f"{self.folder} is not a run: it has no settings.toml", _list_runs(self.folder.parent))

    @classmethod
    def create(cls, settings: Settings, corpus: str, out: str | Path | None = None, name: str | None = None) -> "Run":
        """Create a run folder: `out`, or runs/`name`, or runs/`corpus`-N with the next free number."""
        if out is None and name is not None and (not re.fullmatch(r"[\w.+-]+", name) or name.startswith(".")):
            raise OctavoError(
                f"{name!r} is not a valid run name", "a name of letters, digits, - and _, or --out for a path"
            )
        folder = Path(out or Path("runs") / (name or _next_free_name(corpus)))
        # os.path.exists, because Path.exists raises an OSError if the name is too long
        if os.path.exists(folder) and (not folder.is_dir() or any(folder.iterdir())):
            raise OctavoError(f"{folder} already exists and is not empty", f"another name, or --resume {folder}")
        with files.translate_disk_errors(folder):
            (folder / "checkpoints").mkdir(parents=True)
        try:
            files.write_atomic(folder / "settings.toml", to_toml(settings))
        except BaseException:  # an unfinished run folder would block its name
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return cls(folder)

    @classmethod
    def of_checkpoint(cls, folder: str | Path) -> "Run | None":
        """The run that owns a checkpoint folder, or None if the folder is not inside a run."""
        checkpoints = Path(folder).parent
        if checkpoints.name == "checkpoints" and _is_run(checkpoints.parent):
            return cls(checkpoints.parent)
        return None

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @property
    def settings(self) -> Settings:
        """All settings, as resolved when the run started or was last resumed."""
        return from_toml(self.folder / "settings.toml")

    def write_settings(self, settings: Settings) -> None:
        """Replace settings.toml, when a run is resumed with changed settings."""
        files.write_atomic(self.folder / "settings.toml", to_toml(settings))

    @property
    def last(self) -> Path | None:
        """The newest checkpoint, from which training can resume."""
        return self._read_pointer("last")

    @property
    def best(self) -> Path | None:
        """The checkpoint with the lowest validation loss."""
        return self._read_pointer("best")

    @property
    def steps(self) -> dict[int, Path]:
        """The folder of every checkpoint by its step, in ascending order."""
        folders = (p for p in (self.folder / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d+", p.name))
        return dict(sorted((step_of(folder), folder) for folder in folders))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the run for writing. Raises `OctavoError` if another live process has locked it."""
        lock = filelock.FileLock(self.folder / ".lock", timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise OctavoError(
                f"{self.folder} is in use: another process is training it",
                "wait until it ends, or start a run with another name",
            ) from None
        try:
            files.remove_leftovers(self.folder)
            files.remove_leftovers(self.folder / "checkpoints")
            yield
        finally:
            lock.release()

    @property
    def is_locked(self) -> bool:
        """Whether a process has locked the run for writing. Writes nothing itself.

        Acquiring a `filelock.FileLock` would create the file, and fail on a read-only folder. A shared lock on the
        existing file does neither. A trainer that starts in the microseconds while it is held cannot lock the run.
        """
        try:
            with open(self.folder / ".lock", "rb") as lock:
                if os.name == "nt":
                    lock.read(1)  # fails if another process has locked it
                else:
                    import fcntl

                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # released when the file is closed
        except FileNotFoundError:
            return False
        except (BlockingIOError, PermissionError):
            return True
        return False

    def log(self, kind: str, line: dict[str, Any]) -> None:
        """Append a line to `kind`.jsonl; `kind` is `metrics` or `samples`."""
        with files.translate_disk_errors(self.folder), open(self._jsonl(kind), "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def lines(self, kind: str) -> list[dict[str, Any]]:
        """The complete lines of `kind`.jsonl; a line that is still being written is left out."""
        path = self._jsonl(kind)
        if not path.exists():
            return []
        # Split bytes: a line may end within a character, and `str.splitlines` would also split at U+2028.
        return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]

    def truncate_logs(self, step: int) -> None:
        """Remove the lines of later steps than `step`. Training that resumes there writes them again."""
        for kind in ("metrics", "samples"):
            lines = [line for line in self.lines(kind) if line["step"] <= step]
            content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            files.write_atomic(self._jsonl(kind), content)

    def save(
        self,
        step: int,
        model: GPT,
        tokenizer: Tokenizer,
        settings: Settings,
        info: dict[str, Any],
        trainer: TrainerState | None = None,
        is_best: bool = False,
    ) -> Path:
        """Write the checkpoint of a step, then remove checkpoints that are no longer needed.

        A checkpoint with a trainer state becomes `last`, and also `best` if `is_best`. A checkpoint without a trainer
        state is one of the log-spaced ones.
        """
        folder = self._step_folder(step)
        checkpoint.save(folder, model, tokenizer, settings, info, trainer)
        if trainer is None:
            return folder
        previous = {self.last, self.best} - {None, folder}
        if is_best:
            files.write_atomic(self.folder / "best", folder.name + "\n")
        files.write_atomic(self.folder / "last", folder.name + "\n")
        keep = {self.best} | {self._step_folder(spaced) for spaced in log_spaced_steps(settings)}
        for old in previous:
            assert old is not None
            if old not in keep and old.exists():
                files.remove_folder(old)
            elif old.exists():
                checkpoint.strip_trainer(old)
        return folder

    def _step_folder(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"step-{step:06d}"

    def _jsonl(self, kind: str) -> Path:
        return self.folder / f"{kind}.jsonl"

    def _read_pointer(self, pointer: str) -> Path | None:
        path = self.folder / pointer
        if not path.is_file():
            return None
        return self.folder / "checkpoints" / path.read_text(encoding="utf-8", errors="replace").strip()


# What functions take as a run: a path or name, a `Run`, or a loaded checkpoint.
RunLike = str | Path | Run | Checkpoint


def load(run: RunLike, device: "torch.device | str" = "cpu") -> Checkpoint:
    """Load a model with its tokenizer and settings.

    `run` is a run (its best checkpoint is loaded), a checkpoint folder, or a Hugging Face GPT-2 folder. A `Checkpoint`
    is returned as it is. Raises `OctavoError` if there is no checkpoint, or it is damaged.
    """
    return run if isinstance(run, Checkpoint) else checkpoint.load(find_checkpoint(run), device)


def find_checkpoint(run: RunLike) -> Path:
    """The checkpoint folder that `run` means: the best of a run, else its last; or a checkpoint folder itself."""
    if isinstance(run, Checkpoint):
        return run.folder
    opened = find_run(run)
    if opened is not None:
        folder = opened.best or opened.last
        if folder is None:
            raise OctavoError(f"{opened.folder} has no checkpoint yet", "train it for longer")
        return folder
    assert not isinstance(run, Run)
    folder = Path(run)
    if os.path.isfile(folder / "config.json"):
        return folder
    problem = "is neither a run nor a checkpoint" if os.path.exists(folder) else "does not exist"
    raise OctavoError(f"{folder} {problem}", _list_runs(Path("runs")))


def find_run(run: RunLike) -> Run | None:
    """The run that `run` names: a folder, or a name in runs/. None if it is a checkpoint or does not exist."""
    if isinstance(run, Run):
        return run
    if isinstance(run, Checkpoint):
        return None
    for folder in (Path(run), Path("runs") / run):
        if _is_run(folder):
            return Run(folder)
        if os.path.exists(folder):
            break
    return None


def step_of(folder: Path) -> int:
    """The training step of a checkpoint folder in a run, from its name."""
    return int(folder.name.removeprefix("step-"))


def log_spaced_steps(settings: Settings) -> set[int]:
    """The `keep_checkpoints` steps, evenly spaced in log(step), whose weights are kept for the lens."""
    if settings.keep_checkpoints == 0 or settings.max_steps == 0:
        return set()
    last = max(settings.keep_checkpoints - 1, 1)
    return {round(settings.max_steps ** (i / last)) for i in range(settings.keep_checkpoints)}


def _is_run(folder: Path) -> bool:
    return os.path.isfile(folder / "settings.toml")  # os.path: False, not an OSError, if the name is too long


def _next_free_name(corpus: str) -> str:
    """`corpus`-N, where N is one more than the highest number in use."""
    matches = (re.fullmatch(re.escape(corpus) + r"-(\d+)", path.name) for path in Path("runs").glob("*"))
    return f"{corpus}-{max((int(match[1]) for match in matches if match), default=0) + 1}"


def _list_runs(parent: Path) -> str:
    """A hint that lists the newest five runs in `parent`."""
    runs = sorted((p.parent for p in parent.glob("*/settings.toml")), key=lambda p: p.stat().st_mtime, reverse=True)
    return "one of: " + ", ".join(str(run) for run in runs[:5]) if runs else "octavo train, which creates a run"
