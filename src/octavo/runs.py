"""The run folder: its layout, its lock, which checkpoints it keeps, and how a run is found.

    runs/NAME/settings.toml        all settings, resolved
              metrics.jsonl        one line per logged step
              samples.jsonl        texts that the model generated during training
              checkpoints/step-NNNNNN/
              last, best           text files, each with the name of one of the checkpoints
              .init                the path of the checkpoint whose weights the run started from (`--init`)

One process at a time writes to a run. Training resumes from the checkpoint that `last` names or, if that checkpoint is
damaged, from the one before. Every other checkpoint holds only weights: `best`, and `keep_checkpoints` log-spaced ones
that show how the model developed. `octavo.mirror` copies this layout to other storage.
"""

import contextlib
import errno
import json
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from octavo import checkpoint, files, mirror, remote, run_layout, schema
from octavo.checkpoint import Checkpoint, TrainerState
from octavo.errors import OctavoError, OctavoWarning
from octavo.interop import hub
from octavo.run_layout import CHECKPOINTS, INIT, LOGS, POINTERS, SETTINGS, find_runs, is_run
from octavo.schema import Count
from octavo.settings import Settings, from_toml, to_toml
from octavo.tokenizers import Tokenizer

if TYPE_CHECKING:  # `octavo list` does not load PyTorch
    import torch

    from octavo.model import GPT


class Run:
    """An existing run folder. `Run.create` makes a new one, `Run(folder)` opens one."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not is_run(self.folder):
            raise OctavoError(f"{self.folder} is not a run: it has no settings.toml", _list_runs(self.folder.parent))

    @classmethod
    def create(
        cls,
        settings: Settings,
        corpus: str,
        out: str | Path | None = None,
        name: str | None = None,
        init: Path | None = None,
    ) -> "Run":
        """Create a run folder: `out`, or runs/`name`, or runs/`corpus`-N with the next free number.

        `init` is the checkpoint whose weights the run starts from. The folder of a run that was killed before its first
        checkpoint is used again.
        """
        if out is None and name is not None and (not re.fullmatch(r"[\w.+-]+", name) or name.startswith(".")):
            raise OctavoError(
                f"{name!r} is not a valid run name", "a name of letters, digits, - and _, or --out for a path"
            )
        if out is not None:
            folder = Path(out)
        elif name is not None:
            folder = Path("runs", name)
        else:
            folder = _make_numbered_folder(corpus)
        with files.translate_disk_errors(folder):
            # os.path, because Path.exists raises an OSError if the name is too long
            is_in_use = os.path.exists(folder) and (not folder.is_dir() or not all(map(_is_leftover, folder.iterdir())))
            if is_in_use and not (is_run(folder) and cls(folder).is_unstarted):
                hint = f", or --resume {folder}" if is_run(folder) and cls(folder).resumable else ""
                raise OctavoError(f"{folder} already exists and is not empty", f"another name{hint}")
        # Nothing else is written before the run is locked: a killed process leaves an empty folder or an unstarted run.
        try:
            with files.translate_disk_errors(folder):
                files.make_folder(folder)
            files.flush(folder)
            _write_start(folder, settings, init)
        except BaseException:
            with contextlib.suppress(OSError):
                folder.rmdir()  # fails if it is not empty
            raise
        return cls(folder)

    @classmethod
    def of_checkpoint(cls, folder: str | Path) -> "Run | None":
        """The run that owns a checkpoint folder, or None if the folder is not inside a run."""
        checkpoints = Path(folder).parent
        if not checkpoints.name:  # "." or "step-000010"
            checkpoints = Path(os.path.abspath(folder)).parent
        if checkpoints.name == CHECKPOINTS and is_run(checkpoints.parent):
            return cls(checkpoints.parent)
        return None

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @property
    def settings(self) -> Settings:
        """All settings, as resolved when the run started or was last resumed."""
        return from_toml(self.folder / SETTINGS)

    @property
    def init(self) -> Path | None:
        """The checkpoint whose weights the run started from; None if it started from new weights."""
        path = self.folder / INIT
        return Path(os.fsdecode(path.read_bytes()).strip("\n\0")) if path.is_file() else None

    def write_settings(self, settings: Settings) -> None:
        """Replace settings.toml, when a run is resumed with changed settings."""
        files.write_atomic(self.folder / SETTINGS, to_toml(settings))

    @property
    def last(self) -> Path | None:
        """The newest checkpoint; training resumes from it. None before the first one, or if the pointer is damaged."""
        return self._read_pointer("last")

    @property
    def best(self) -> Path | None:
        """The checkpoint with the lowest validation loss. None before the first one, or if the pointer is damaged."""
        return self._read_pointer("best")

    @property
    def resumable(self) -> list[Path]:
        """The checkpoints that training can resume from, newest first. `last` is one even if its files are missing."""
        folders = {folder for folder in self.checkpoints.values() if checkpoint.has_trainer(folder)}
        return sorted(folders | ({self.last} if self.last else set()), key=step_of, reverse=True)

    @property
    def is_unstarted(self) -> bool:
        """Whether the run was killed before its first checkpoint, so that starting it again loses nothing.

        False if the folder holds anything that such a run has not written.
        """
        own_files = {SETTINGS, INIT, CHECKPOINTS, ".lock", *run_layout.LOG_FILES}
        has_only_own_files = all(path.name in own_files or _is_leftover(path) for path in self.folder.iterdir())
        return has_only_own_files and not self.resumable and not self.is_locked

    def start_again(self, settings: Settings, init: Path | None = None) -> None:
        """Remove the log lines and weights that a process wrote before it was killed without a checkpoint.

        The settings and `init` are written again, since another process may have created the same run before this one
        locked it.
        """
        if self.resumable:  # another process has trained it since this one created it
            raise OctavoError(f"{self.folder} already exists and is not empty", "another name")
        self.truncate_logs(0)
        for folder in self.checkpoints.values():
            files.remove_folder(folder)
        _write_start(self.folder, settings, init)

    def rewind(self, step: int, is_best: bool = False, keep_line: bool = True) -> None:
        """Make the checkpoint of `step` the last one, and with `is_best` the best one. Remove everything later.

        Without `keep_line`, the log lines of the step itself are removed too: they are written again.

        A process may have been killed before it wrote the pointers, or before it removed what that checkpoint replaces.
        Checkpoints are removed before log lines, so that after a crash the logs still have every line up to the newest
        checkpoint.
        """
        folder = self.checkpoint_folder(step)
        if is_best and self.best != folder:
            files.write_atomic(self.folder / "best", folder.name + "\n")
        if self.last != folder:
            files.write_atomic(self.folder / "last", folder.name + "\n")
        if self.best is not None and step_of(self.best) > step:
            files.remove_file(self.folder / "best")
        for later, later_folder in self.checkpoints.items():
            if later > step:
                files.remove_folder(later_folder)
        self._remove_old(folder, None, self.settings.log_spaced_steps)
        self.truncate_logs(step if keep_line else step - 1)

    @property
    def checkpoints(self) -> dict[int, Path]:
        """The folder of every checkpoint by its step, in ascending order."""
        return run_layout.find_checkpoints(self.folder)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the run for writing. Raises `OctavoError` if another live process has locked it."""
        lock = files.acquire_lock(self.folder / ".lock")
        if lock is None:
            raise OctavoError(
                f"{self.folder} is in use: another process is training it",
                "wait until it ends, or start a run with another name",
            )
        try:
            files.remove_leftovers(self.folder)
            files.remove_leftovers(self.folder / CHECKPOINTS, {path.name for path in (self.last, self.best) if path})
            yield
        finally:
            lock.release()

    @property
    def is_locked(self) -> bool:
        """Whether a process has locked the run for writing. Writes nothing itself.

        Acquiring a `filelock.FileLock` would create the file, and fail on a read-only folder. A shared lock on the
        existing file does neither. A trainer that starts in the microseconds while it is held cannot lock the run.
        False if it can't be known: this user may not read the lock file, or the file system cannot lock.
        """
        try:
            # O_NONBLOCK: opening a pipe would wait for its other end.
            descriptor = os.open(self.folder / ".lock", os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        except OSError:
            return False
        try:
            if os.name == "nt":
                os.read(descriptor, 1)  # fails if another process has locked it
            else:
                import fcntl

                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # released when the file is closed
        except (BlockingIOError, PermissionError):
            return True
        except OSError:
            return False
        finally:
            os.close(descriptor)
        return False

    def require_folder(self) -> None:
        """Raise `OctavoError` if the run folder was removed or moved since it was opened."""
        if not is_run(self.folder):
            raise OctavoError(f"the run folder {self.folder} was removed or moved", "keep it in place during training")

    def log(self, kind: str, line: dict[str, Any]) -> None:
        """Append a line to `kind`.jsonl; `kind` is `metrics` or `samples`. On an error the file is unchanged."""
        content = (json.dumps(line, ensure_ascii=False) + "\n").encode()
        with files.translate_disk_errors(self.folder), open(self._jsonl(kind), "ab", buffering=0) as file:
            start = file.tell()
            try:
                written = file.write(content)
                if written != len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except BaseException:
                with contextlib.suppress(OSError):
                    file.truncate(start)
                raise

    def lines(self, kind: str) -> list[dict[str, Any]]:
        """The complete lines of `kind`.jsonl: JSON objects with a step. Damaged and half-written lines are left out."""
        path = self._jsonl(kind)
        if not path.exists():
            return []
        # Split bytes: a line may end within a character, and `str.splitlines` would also split at U+2028.
        lines = map(_parse_line, path.read_bytes().split(b"\n")[:-1])
        return [line for line in lines if line is not None]

    def truncate_logs(self, step: int) -> None:
        """Remove the lines of the steps after `step`. Training that resumes there writes them again."""
        for kind in LOGS:
            if not self._jsonl(kind).exists():
                continue
            lines = [line for line in self.lines(kind) if line["step"] <= step]
            content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            files.write_atomic(self._jsonl(kind), content)

    def save(
        self,
        step: int,
        model: "GPT",
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
        self.require_folder()
        folder = self.checkpoint_folder(step)
        for kind in LOGS:  # first, so that after a power loss no line is missing before the step of a checkpoint
            files.flush(self._jsonl(kind))
        checkpoint.save(folder, model, tokenizer, settings, info, trainer)
        if trainer is None:
            return folder
        earlier_best = self.best
        if is_best:
            files.write_atomic(self.folder / "best", folder.name + "\n")
        files.write_atomic(self.folder / "last", folder.name + "\n")
        self._remove_old(folder, earlier_best, settings.log_spaced_steps)
        return folder

    def _remove_old(self, last: Path, earlier_best: Path | None, log_spaced: frozenset[int]) -> None:
        """Remove what the new `last` replaces. Only `last` and the checkpoint before it keep the trainer state.

        All other checkpoints with a trainer state are stripped or removed. There may be several, because a process may
        have been killed before it removed them. Checkpoints without a trainer state are kept, with one exception:
        `earlier_best`, the best until now, is removed if it is neither the best any more nor log-spaced.
        """
        with_trainer = [step for step, folder in self.checkpoints.items() if checkpoint.has_trainer(folder)]
        steps_to_resume_from = {step_of(last), *[step for step in with_trainer if step < step_of(last)][-1:]}
        for step, folder in self.checkpoints.items():
            if step in steps_to_resume_from or (step not in with_trainer and folder != earlier_best):
                continue
            with contextlib.suppress(OctavoError):  # the new checkpoint is saved; the next save tries this again
                if step in log_spaced or folder == self.best:
                    checkpoint.strip_trainer(folder)
                else:
                    files.remove_folder(folder)

    def checkpoint_folder(self, step: int) -> Path:
        """The folder of the checkpoint of a step, whether or not it exists."""
        return self.folder / CHECKPOINTS / run_layout.checkpoint_name(step)

    def _jsonl(self, kind: str) -> Path:
        return self.folder / f"{kind}.jsonl"

    def _read_pointer(self, pointer: str) -> Path | None:
        name = run_layout.read_pointer(self.folder / pointer)
        return self.folder / CHECKPOINTS / name if name else None


_MODEL_FILES = (".pt", ".pth", ".bin", ".safetensors", ".gguf")  # the hub has no model with such a name

# What functions take as a run: a path or name, a `Run`, or a loaded checkpoint.
RunLike = str | Path | Run | Checkpoint


def load(run: RunLike, device: "torch.device | str" = "cpu") -> Checkpoint:
    """Load a model with its tokenizer and settings.

    `run` is a run (its best checkpoint is loaded), a checkpoint folder, `RUN/last` or `RUN/best`, a Hugging Face GPT-2
    folder, the URL of one of these, `hf:NAME` for a model of the Hugging Face hub, or a ckpt.pt of nanoGPT. A
    `Checkpoint` is returned as it is. If the best checkpoint of a run is damaged, the newest intact one is loaded, with
    an `OctavoWarning`.
    Raises `OctavoError` if there is no checkpoint, or all are damaged.
    """
    if isinstance(run, Checkpoint):
        return run
    run = resolve_name(run)
    opened = find_run(run)
    if opened is None:
        given = find_checkpoint(run)
        if given.is_file():
            from octavo.interop import nanogpt

            return nanogpt.load(given, device)
        return checkpoint.load(given, device, foreign=Run.of_checkpoint(given) is None)
    errors: dict[Path, OctavoError] = {}
    # The candidates are looked up again after an error: training may have replaced and removed a checkpoint meanwhile.
    while (folder := next((folder for folder in _loadable(opened) if folder not in errors), None)) is not None:
        try:
            loaded = checkpoint.load(folder, device, foreign=False)
        except OctavoError as error:
            errors[folder] = error
            continue
        for damaged, reason in errors.items():
            # A checkpoint that training has removed meanwhile was not damaged, and needs no warning.
            if damaged.exists() or damaged in (opened.best, opened.last):
                warnings.warn(f"{reason.message}; using {folder}", OctavoWarning, stacklevel=2)
        return loaded
    raise next(iter(errors.values()))


def _loadable(run: Run) -> list[Path]:
    """The checkpoints of a run in the order in which `load` tries them: best, last, then the others, newest first."""
    preferred = find_checkpoint(run)
    return list(dict.fromkeys([preferred, *filter(None, [run.last]), *reversed(run.checkpoints.values())]))


def find_checkpoint(run: RunLike) -> Path:
    """The checkpoint folder that `run` means: the best of a run, else its last; or a checkpoint folder itself.

    The checkpoint of nanoGPT is a file, ckpt.pt; `run` may be its folder. `hf:NAME` is a model of the Hugging Face hub,
    which is downloaded once. Without `hf:`, the name of such a model counts only if the hub's client has it in its
    cache.
    """
    if isinstance(run, Checkpoint):
        return run.folder
    run = resolve_name(run)
    opened = find_run(run)
    if opened is not None:
        folder = opened.best or opened.last or next(reversed(opened.checkpoints.values()), None)
        if folder is None:
            raise OctavoError(f"{opened.folder} has no checkpoint yet", "train it for longer")
        return folder
    from octavo.interop import nanogpt

    assert not isinstance(run, Run)
    folder = Path(run)
    if os.path.isfile(folder / "config.json"):
        return folder
    nanogpt_file = nanogpt.find_file(folder)
    if nanogpt_file is not None:
        return nanogpt_file
    if os.path.exists(folder):
        if find_runs(folder):
            raise OctavoError(f"{folder} is a folder of runs: name one of them", _list_runs(folder))
        raise OctavoError(f"{folder} is neither a run nor a checkpoint", _list_runs(Path("runs")))
    name = str(run)
    if name.startswith(hub.PREFIX):
        return hub.download(name.removeprefix(hub.PREFIX))
    if (cached := hub.find_cached(name)) is not None:
        return cached
    hint = _list_runs(Path("runs"))
    if hub.is_name(name) and folder.parts[0] != "runs" and folder.suffix not in _MODEL_FILES:
        hint += f"; or {hub.PREFIX}{name}, if you mean a model of the Hugging Face hub"
    raise OctavoError(f"{folder} does not exist", hint)


def find_run(run: RunLike) -> Run | None:
    """The run that `run` names: a folder, a name in runs/, or a URL. None if it is a checkpoint or does not exist."""
    if isinstance(run, Run):
        return run
    if isinstance(run, Checkpoint):
        return None
    run = resolve_name(run)
    assert not isinstance(run, Run)
    for folder in (Path(run), Path("runs") / run):
        if is_run(folder):
            return Run(folder)
        if os.path.exists(folder):  # `run` means this path, so a run of that name in runs/ is not meant
            return None
    return None


def resolve_name(run: str | Path | Run) -> str | Path | Run:
    """The folder in the cache for a URL, and the checkpoint for `RUN/last` and `RUN/best`. Others stay as they are."""
    if isinstance(run, Run):
        return run
    if isinstance(run, str) and remote.is_url(run):
        return mirror.fetch_weights(run)
    if (pointer := find_pointer(run)) is not None:
        owner, name = pointer
        checkpoint_folder = owner.last if name == "last" else owner.best
        if checkpoint_folder is None:
            path, hint = owner.folder / name, f"one of {owner.folder / CHECKPOINTS}"
            raise OctavoError(f"{path} is damaged: it names no checkpoint", hint)
        return checkpoint_folder
    return run


def find_pointer(run: RunLike) -> tuple[Run, str] | None:
    """The run, and `last` or `best`, if `run` is `RUN/last` or `RUN/best`."""
    if isinstance(run, (Run, Checkpoint)) or Path(run).name not in POINTERS or not os.path.isfile(run):
        return None
    owner = find_run(Path(run).parent)
    return None if owner is None else (owner, Path(run).name)


def step_of(folder: Path) -> int:
    """The training step of a checkpoint folder in a run, from its name."""
    step = run_layout.parse_checkpoint_name(folder.name)
    if step is None:
        raise ValueError(f"{folder} is not the folder of a checkpoint in a run")
    return step


class _LogLine(msgspec.Struct):
    """The values of a log line that Octavo uses when it reads one. A line has more."""

    step: Count
    loss: float | None = None
    val_loss: float | None = None


def _parse_line(line: bytes) -> dict[str, Any] | None:
    try:
        value: dict[str, Any] = json.loads(line)  # not msgspec, because a loss may be NaN
        schema.check(value, _LogLine, "a line", hint="")
    except (ValueError, RecursionError, OctavoError):
        return None
    return value


_WRITTEN_FILES = (SETTINGS, INIT, *run_layout.LOG_FILES, *POINTERS)
_LEFTOVER_NAME = re.compile(rf"\.({'|'.join(map(re.escape, _WRITTEN_FILES))})\.\w+\.partial")


def _write_start(folder: Path, settings: Settings, init: Path | None) -> None:
    """Write what a run starts from. The settings come last: they make the folder a run."""
    if init is None:
        files.remove_file(folder / INIT)
    else:
        files.write_atomic(folder / INIT, os.fsencode(os.path.abspath(init)) + b"\n")
    files.write_atomic(folder / SETTINGS, to_toml(settings))


def _is_leftover(path: Path) -> bool:
    """Whether this is a file of a process that was killed while it created a run, or wrote a file of it."""
    return path.name == INIT or _LEFTOVER_NAME.fullmatch(path.name) is not None


def _make_numbered_folder(corpus: str) -> Path:
    """Make runs/`corpus`-N, where N is one more than the highest number in use. Safe if many processes call it."""
    while True:
        matches = (re.fullmatch(re.escape(corpus) + r"-(\d+)", path.name) for path in Path("runs").glob("*"))
        number = max((int(match[1]) for match in matches if match), default=0) + 1
        folder = Path("runs", f"{corpus}-{number}")
        with files.translate_disk_errors(folder):
            files.make_folder(folder.parent)
            try:
                folder.mkdir()
            except FileExistsError:  # another process took the number
                continue
            return folder


def _list_runs(parent: Path) -> str:
    """A hint that lists the newest five runs in `parent`."""
    runs = find_runs(parent)
    return "one of: " + ", ".join(str(run) for run in runs[:5]) if runs else "octavo train, which creates a run"
