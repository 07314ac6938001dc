"""Send a process a signal at a chosen moment: at the Nth Python call inside a function. Runs in forked processes.

SIGNAL_PHASE     a key of `PHASES`
SIGNAL_CALL      N
SIGNAL_NUMBER    the signal
SIGNAL_COUNTS    instead, a JSON file to which the number of calls in each phase is written when the process ends
"""

import atexit
import importlib
import inspect
import json
import operator
import os
import sys
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

# Phases of commands, and the function that runs each.
PHASES = {
    "preparation": ("octavo.data.build", "build_dataset"),
    "step": ("octavo.training.step", "Trainer.compute_gradients"),
    "evaluation": ("octavo.training.evaluator", "Evaluator.evaluate"),
    "save": ("octavo.training.recorder", "Recorder.save_checkpoint"),
    "sample": ("octavo.cli.sample", "run"),
}


def arm() -> None:
    """Watch the calls of this process, as the environment says."""
    codes = {_code(module, name): phase for phase, (module, name) in PHASES.items()}
    depths, counts = dict.fromkeys(PHASES, 0), dict.fromkeys(PHASES, 0)
    chosen, number = os.environ.get("SIGNAL_PHASE"), int(os.environ.get("SIGNAL_CALL", "0"))

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        phase = codes.get(frame.f_code)
        if phase is not None:
            depths[phase] += {"call": 1, "return": -1}.get(event, 0)
        elif event == "call":
            for phase, depth in depths.items():
                if depth:
                    counts[phase] += 1
                    if phase == chosen and counts[phase] == number:
                        sys.setprofile(None)
                        os.kill(os.getpid(), int(os.environ["SIGNAL_NUMBER"]))

    if file := os.environ.get("SIGNAL_COUNTS"):
        atexit.register(lambda: Path(file).write_text(json.dumps(counts), encoding="utf-8"))
    sys.setprofile(watch)


def _code(module: str, name: str) -> CodeType:
    function = operator.attrgetter(name)(importlib.import_module(module))
    code: CodeType = inspect.unwrap(function).__code__
    return code
