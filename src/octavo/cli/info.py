"""`octavo info`: one run, its settings, losses and checkpoints."""

import argparse
import time
from typing import TYPE_CHECKING, Any

from octavo.cli.list_runs import format_age, name_text
from octavo.cli.parser import add_verb, finish_verb, print_report
from octavo.errors import OctavoError
from octavo.settings import Settings, expand_home
from octavo.units import format_bytes

if TYPE_CHECKING:
    from octavo.run_summary import RunDetails


def add_parser(verbs: Any, defaults: Settings) -> None:
    verb = add_verb(
        verbs,
        "info",
        "RUN",
        run,
        help="show a run: its settings, losses and checkpoints",
        example="octavo info runs/pydocs-1",
    )
    verb.add_argument("run", type=expand_home, metavar="RUN", help="a run, or one of its checkpoints")
    finish_verb(verb)


def run(arguments: argparse.Namespace) -> int:
    from octavo import run_summary, runs

    name = runs.resolve_name(arguments.run)
    found = runs.find_run(name) or runs.Run.of_checkpoint(str(name))
    if found is None:
        folder = runs.find_checkpoint(name)  # raises if there is no such model
        raise OctavoError(f"{folder} is a model and not a run of Octavo", f"octavo inspect {arguments.run} shapes")
    result = run_summary.describe(found)
    return print_report(arguments, result, _format_report(result))


def _format_report(r: "RunDetails") -> str:
    losses = {"loss of the last batch": r.train_loss, "val loss": r.val_loss, "best val loss": r.best_val_loss}
    known = ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items() if loss is not None)
    marks = {r.last: " (last)", r.best: " (best)"} | ({r.last: " (last, best)"} if r.last == r.best else {})
    checkpoints = ", ".join(f"{step:,}{marks.get(step, '')}" for step in r.checkpoints)
    shown = {name: f"{name}={value}" for name, value in r.settings.items() if name not in ("source", "tokenizer")}
    chosen = ", ".join(text for name, text in shown.items() if name not in r.resolved)
    resolved = ", ".join(text for name, text in shown.items() if name in r.resolved)
    return (
        f"{r.run}{', in training' if r.running else ''}\n"
        f"  text         {name_text(r)}, tokenizer {r.tokenizer}\n"
        f"  model        {r.parameters:,} parameters\n"
        f"  steps        {r.step:,} of {r.max_steps:,}\n"
        f"  losses       {known or 'none yet'}\n"
        f"  checkpoints  {checkpoints or 'none yet'}\n"
        f"  size         {format_bytes(r.bytes)}, last written {format_age(time.time() - r.modified)} ago\n"
        f"  preset       {r.preset}{f', with {chosen}' if chosen else ''}"
        + (f"\n  resolved     {resolved}" if resolved else "")
    )
