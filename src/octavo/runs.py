"""The run folder, and finding a RUN.

    runs/NAME/settings.toml        all settings, resolved
              metrics.jsonl        one line a logged step
              samples.jsonl        what the model wrote along the way
              checkpoints/step-NNNNNN/
              last, best           each the name of one of them

One process at a time writes to a run. Training can go on from `last`; of all others only the weights are
kept: `best`, and the log-spaced ones that show how the model came to be.
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
    """A run folder that exists. `create` makes one, `Run(folder)` opens one."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / "settings.toml").is_file():
            raise OctavoError(f"{self.folder} is not a run: it has no settings.toml", _known_runs(self.folder.parent))

    @classmethod
    def create(cls, settings: Settings, corpus: str, out: str | Path | None = None, name: str | None = None) -> "Run":
        """Make a run folder: at `out`, at runs/`name`, or at runs/`corpus` with the next free number."""
        if out is None and name is not None and (not re.fullmatch(r"[\w.+-]+", name) or name.startswith(".")):
            raise OctavoError(f"{name!r} can't be a run's name", "letters, digits, - and _; --out for a path")
        folder = Path(out or Path("runs") / (name or _next_free(corpus)))
        # os.path's, for pathlib's raises where a name is too long
        if os.path.exists(folder) and (not folder.is_dir() or any(folder.iterdir())):
            raise OctavoError(f"{folder} already holds something",
                              f"another name, or --resume {folder} if it is a run to go on with")  # fmt: skip
        with files.translate_disk_errors(folder):
            (folder / "checkpoints").mkdir(parents=True)
        try:
            files.write_atomic(folder / "settings.toml", to_toml(settings))
        except BaseException:  # half a run would hold its name
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return cls(folder)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @property
    def settings(self) -> Settings:
        """All settings of the run, as they were resolved when it began or was last resumed."""
        return from_toml(self.folder / "settings.toml")

    def write_settings(self, settings: Settings) -> None:
        """Put down what the run goes on with."""
        files.write_atomic(self.folder / "settings.toml", to_toml(settings))

    @property
    def last(self) -> Path | None:
        """The newest checkpoint, from which training may go on."""
        return self._named("last")

    @property
    def best(self) -> Path | None:
        """The checkpoint with the lowest validation loss."""
        return self._named("best")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for writing. Raises `OctavoError` while another process does; a dead one doesn't."""
        lock = filelock.FileLock(self.folder / ".lock", timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise OctavoError(f"{self.folder} is in use: another process trains it",
                              "wait for it, or start a run of another name") from None  # fmt: skip
        try:
            files.sweep(self.folder)
            files.sweep(self.folder / "checkpoints")
            yield
        finally:
            lock.release()

    @property
    def in_use(self) -> bool:
        """Whether a process holds the run for writing. Asked without writing anything."""
        try:
            with open(self.folder / ".lock", "rb") as lock:
                if os.name == "nt":
                    lock.read(1)  # refused, where another process has locked it
                else:
                    import fcntl

                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # let go with the file, microseconds later
        except FileNotFoundError:
            return False
        except (BlockingIOError, PermissionError):
            return True
        return False

    def log(self, kind: str, line: dict[str, Any]) -> None:
        """Append a line to `metrics` or `samples`."""
        with files.translate_disk_errors(self.folder), open(self._jsonl(kind), "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def lines(self, kind: str) -> list[dict[str, Any]]:
        """The lines of `metrics` or `samples` that were written to their end."""
        path = self._jsonl(kind)
        if not path.exists():
            return []
        # Bytes: a line may end within a character, and `str.splitlines` would also cut at U+2028 and the like.
        return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]

    def rewind(self, step: int) -> None:
        """Forget the lines after a step, which training is about to write again."""
        for kind in ("metrics", "samples"):
            kept = [line for line in self.lines(kind) if line["step"] <= step]
            files.write_atomic(self._jsonl(kind), "".join(json.dumps(k, ensure_ascii=False) + "\n" for k in kept))

    def save(self, step: int, model: GPT, tokenizer: Tokenizer, settings: Settings, info: dict[str, Any],
             trainer: TrainerState | None = None, best: bool = False) -> Path:  # fmt: skip
        """Write the checkpoint of a step and let go of those that are no longer kept.

        With a trainer's state it becomes `last`, and `best` if so said; without, it is one along the way.
        """
        folder = self._step(step)
        checkpoint.save(folder, model, tokenizer, settings, info, trainer)
        if trainer is None:
            return folder
        former = {self.last, self.best}
        if best:
            files.write_atomic(self.folder / "best", folder.name + "\n")
        files.write_atomic(self.folder / "last", folder.name + "\n")
        along = {self._step(each) for each in log_spaced(settings)}
        for old in former - {None, folder}:
            assert old is not None
            if old not in along | {self.best} and old.exists():
                files.remove_folder(old)
            elif old.exists():
                checkpoint.strip(old)
        return folder

    def checkpoints(self) -> list[Path]:
        """All checkpoints of the run, by step."""
        found = [p for p in (self.folder / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d+", p.name)]
        return sorted(found, key=lambda path: int(path.name[5:]))

    def _step(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"step-{step:06d}"

    def _jsonl(self, kind: str) -> Path:
        return self.folder / f"{kind}.jsonl"

    def _named(self, pointer: str) -> Path | None:
        path = self.folder / pointer
        if not path.is_file():
            return None
        return self.folder / "checkpoints" / path.read_text(encoding="utf-8", errors="replace").strip()


def log_spaced(settings: Settings) -> set[int]:
    """The steps whose weights are kept so that the lens can show them along training."""
    if settings.keep == 0 or settings.max_steps == 0:
        return set()
    last = max(settings.keep - 1, 1)
    return {round(settings.max_steps ** (i / last)) for i in range(settings.keep)}


def named(run: str | Path) -> Run | None:
    """The run that a RUN names, if it is one: a folder, or the name of one in runs/."""
    for folder in (Path(run), Path("runs") / run):
        if os.path.isfile(folder / "settings.toml"):
            return Run(folder)
        if os.path.exists(folder):
            break
    return None


def find(run: str | Path) -> Path:
    """The checkpoint folder that a RUN names: a run's best (else its last), or a checkpoint folder itself."""
    folder, opened = Path(run), named(run)
    if opened is not None:
        found = opened.best or opened.last
        if found is None:
            raise OctavoError(f"{opened.folder} has no checkpoint yet", "train it for longer")
        return found
    if os.path.isfile(folder / "config.json"):
        return folder
    what = "is neither a run nor a checkpoint" if os.path.exists(folder) else "does not exist"
    raise OctavoError(f"{folder} {what}", _known_runs(Path("runs")))


def load(run: str | Path, device: "torch.device | str" = "cpu") -> Checkpoint:
    """The model, tokenizer and settings of a RUN: a run folder (its best checkpoint), a checkpoint folder,
    or a Hugging Face GPT-2 folder. Raises `OctavoError` if there is none, or it is damaged.
    """
    return checkpoint.load(find(run), device)


def _next_free(corpus: str) -> str:
    """The corpus's name with the number after the highest that is taken."""
    found = (re.fullmatch(re.escape(corpus) + r"-(\d+)", path.name) for path in Path("runs").glob("*"))
    return f"{corpus}-{max((int(each[1]) for each in found if each), default=0) + 1}"


def _known_runs(parent: Path) -> str:
    found = sorted((p.parent for p in parent.glob("*/settings.toml")), key=lambda p: p.stat().st_mtime, reverse=True)
    return "one of: " + ", ".join(str(p) for p in found[:5]) if found else "octavo train, which makes a run"
