"""The names of the files and folders in a run. `octavo.runs` describes the layout; `octavo.mirror` copies it.

Nothing here reads more than a name or a pointer, so that every component can recognize a run without loading one.
"""

import contextlib
import os
import re
from pathlib import Path

SETTINGS = "settings.toml"  # its presence makes a folder a run
INIT = ".init"  # the path of the checkpoint whose weights the run started from
LOGS = ("metrics", "samples")  # the kinds of log lines
LOG_FILES = tuple(f"{kind}.jsonl" for kind in LOGS)
POINTERS = ("last", "best")  # files with the name of a checkpoint
CHECKPOINTS = "checkpoints"  # the folder of the checkpoints

_CHECKPOINT_NAME = re.compile(r"step-([0-9]{6,15})")


def is_run(folder: str | Path) -> bool:
    """Whether a folder is a run. False if there is no such folder."""
    return os.path.isfile(Path(folder, SETTINGS))  # os.path: False, not an OSError, if the name is too long


def find_runs(parent: Path) -> list[Path]:
    """The runs in a folder, those with the newest settings first."""
    settings = sorted(parent.glob(f"*/{SETTINGS}"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [path.parent for path in settings]


def checkpoint_name(step: int) -> str:
    """The name of the folder of the checkpoint of a training step."""
    return f"step-{step:06d}"


def parse_checkpoint_name(name: str) -> int | None:
    """The training step in the name of a checkpoint; None if it is not such a name."""
    match = _CHECKPOINT_NAME.fullmatch(name)
    return None if match is None else int(match[1])


def find_checkpoints(run: Path) -> dict[int, Path]:
    """The folder of every checkpoint of a run by its step, in ascending order."""
    folders = {parse_checkpoint_name(path.name): path for path in (run / CHECKPOINTS).glob("step-*")}
    return dict(sorted((step, path) for step, path in folders.items() if step is not None))


def parse_pointer(content: bytes) -> str | None:
    """The name of the checkpoint in a pointer; None if it is damaged.

    Checkpoints are removed by these names, so a damaged or forged one must not lead anywhere else.
    """
    name = content.decode("utf-8", errors="replace").strip()
    return None if parse_checkpoint_name(name) is None else name


def read_pointer(path: Path) -> str | None:
    """The name of the checkpoint that a pointer has; None if there is no such file, or it is damaged."""
    if not path.is_file():  # opening a pipe would wait for its other end
        return None
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return parse_pointer(file.read(100))
    return None
