"""`octavo list`: the runs in a folder."""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.cli.parser import add_verb, finish_verb
from octavo.settings import Settings, expand_home, name_source
from octavo.units import format_bytes

if TYPE_CHECKING:
    from octavo.run_summary import RunSummary


def add_parser(verbs: Any, defaults: Settings) -> None:
    verb = add_verb(verbs, "list", "[DIR]", run, help="list the runs in a folder", example="octavo list runs")
    verb.add_argument("folder", type=expand_home, nargs="?", default="runs", metavar="DIR", help="the folder (runs)")
    finish_verb(verb)


def run(arguments: argparse.Namespace) -> int:
    from octavo.run_summary import list_runs

    runs = list_runs(arguments.folder)
    if arguments.json:
        print(json.dumps({"runs": [asdict(run) for run in runs]}, ensure_ascii=False))
    elif not runs:
        print(f"there are no runs in {arguments.folder}: octavo train creates one")
    else:
        print(_format_table(runs))
    return 0


def _format_table(runs: "list[RunSummary]") -> str:
    rows = [["run", "preset", "text", "steps", "val loss", "best", "size", "age"]]
    for run in runs:
        losses = ["" if loss is None else f"{loss:.4f}" for loss in (run.val_loss, run.best_val_loss)]
        steps = f"{run.step:,}/{run.max_steps:,}"
        age = "training" if run.running else format_age(time.time() - run.modified)
        rows.append([run.run, run.preset, _shorten(name_text(run)), steps, *losses, format_bytes(run.bytes), age])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    align = [str.ljust] * 3 + [str.rjust] * 5
    return "\n".join(
        "  ".join(fill(cell, width) for fill, cell, width in zip(align, row, widths, strict=True)).rstrip()
        for row in rows
    )


def name_text(run: "RunSummary") -> str:
    """The sources of a run. A folder that is named by dots only, as in `octavo train .`, gets the name that it has."""
    sources = [run.source] if isinstance(run.source, str) else run.source
    names = tuple(_name_dots(source, Path(run.run)) for source in sources)
    return name_source(names[0] if len(names) == 1 else names)


def _name_dots(source: str, run: Path) -> str:
    folder = run.resolve().parent
    if folder.name != "runs" or set(Path(source).parts) - {".."}:  # Path(".").parts is empty
        return source
    return (folder.parent / source).resolve().name or source  # training was started beside the folder `runs`


def format_age(seconds: float) -> str:
    """The largest unit of a duration: 5 min, 3 h, 2 days."""
    if seconds < 90:
        return f"{max(0, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    return f"{round(seconds / 3600)} h" if seconds < 48 * 3600 else f"{round(seconds / 86400):,} days"


def _shorten(text: str) -> str:
    return text if len(text) <= 30 else f"...{text[-27:]}"
