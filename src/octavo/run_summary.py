"""What `octavo list` and `octavo info` say about runs: settings, losses, checkpoints and sizes. No weights are read."""

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from octavo import checkpoint, estimate
from octavo.errors import OctavoError
from octavo.runs import Run, find_run
from octavo.settings import PRESETS, Settings


@dataclass(frozen=True)
class RunSummary:
    """A run in one line. A loss is in nats per token, and None before the first evaluation."""

    name: str
    run: str  # its folder
    preset: str
    source: str | list[str]
    tokenizer: str
    parameters: int
    step: int  # the newest that is logged
    max_steps: int
    train_loss: float | None  # of the newest logged batch
    val_loss: float | None
    best_val_loss: float | None
    bytes: int  # of all files
    modified: float  # when the run was last written, in seconds since 1970
    running: bool  # whether a process is training it


@dataclass(frozen=True)
class RunDetails(RunSummary):
    """A run with its checkpoints, and the settings that differ from its preset."""

    settings: dict[str, Any]
    resolved: list[str]  # names of settings that training sets for this machine and text unless the user does
    checkpoints: list[int]  # steps
    resumable: list[int]  # those that training can resume from, the newest first
    last: int | None
    best: int | None


def list_runs(folder: str | Path = "runs") -> list[RunSummary]:
    """The runs in a folder, the one that was written last first. A folder that cannot be read as a run is left out."""
    runs = [find_run(path.parent) for path in Path(folder).glob("*/settings.toml")]
    summaries = []
    for run in filter(None, runs):
        try:
            summaries.append(summarize(run))
        except OctavoError:  # its settings are damaged, or another program's
            continue
    return sorted(summaries, key=lambda summary: -summary.modified)


def summarize(run: Run) -> RunSummary:
    settings, lines = run.settings, run.lines("metrics")
    losses = [line["val_loss"] for line in lines if line.get("val_loss") is not None]
    newest = lines[-1] if lines else {}
    statuses = [status for path in run.folder.rglob("*") if (status := _status(path)) is not None]
    return RunSummary(
        name=run.folder.resolve().name,
        run=str(run.folder),
        preset=settings.preset,
        source=settings.source if isinstance(settings.source, str) else list(settings.source),
        tokenizer=settings.tokenizer,
        parameters=estimate.parameters(settings),
        step=newest.get("step", 0),
        max_steps=settings.max_steps,
        train_loss=newest.get("loss"),
        val_loss=losses[-1] if losses else None,
        best_val_loss=min(losses, default=None),
        bytes=sum(status.st_size for status in statuses),
        modified=max((status.st_mtime for status in statuses), default=0.0),
        running=run.is_locked,
    )


def describe(run: Run) -> RunDetails:
    settings = run.settings
    preset = {field.name: field.default for field in fields(Settings)} | PRESETS[settings.preset]
    changed = {name: value for name, value in vars(settings).items() if value != preset.get(name) and name != "preset"}
    checkpoints = run.checkpoints
    resumable = [step for step, folder in checkpoints.items() if checkpoint.has_trainer(folder)]
    step_by_folder = {folder: step for step, folder in checkpoints.items()}
    return RunDetails(
        **vars(summarize(run)),
        settings=changed,
        resolved=_resolved_names(settings, changed, preset),
        checkpoints=list(checkpoints),
        resumable=resumable[::-1],
        last=step_by_folder.get(run.last) if run.last else None,
        best=step_by_folder.get(run.best) if run.best else None,
    )


def _resolved_names(settings: Settings, changed: dict[str, Any], preset: dict[str, Any]) -> list[str]:
    names = {name for name in changed if preset[name] == "auto"} | {"vocab_size"}
    if not settings.max_epochs:
        names.add("max_epochs")  # because `max_steps` is given
    elif settings.max_steps < preset["max_steps"]:
        names |= {"max_steps", "eval_every", "patience"}  # capped for a small text, see `training.setup.cap_steps`
    return [name for name in changed if name in names]


def _status(path: Path) -> os.stat_result | None:
    """The status of a regular file; None for anything else, and for one that training has just removed."""
    try:
        return path.stat() if path.is_file() else None
    except OSError:
        return None
