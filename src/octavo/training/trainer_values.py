"""The values in trainer.json, checked before any is used: a damaged or edited file must not end in a traceback."""

from pathlib import Path
from typing import Annotated, Any

import msgspec

from octavo.schema import Count, Seconds, check
from octavo.training.event import Evaluated


class TrainerValues(msgspec.Struct):
    """The contents of trainer.json."""

    step: Count
    device: str
    precision: str
    compile: str
    micro_batch: Annotated[int, msgspec.Meta(ge=1)]
    threads: Count
    torch: str  # the version of PyTorch
    scaler: dict[str, float]
    best_val_loss: float | None  # None: not evaluated yet
    evaluations_since_best: Count
    newest_evaluation: Evaluated | None
    elapsed_seconds: Seconds
    update_seconds: Seconds


def check_trainer_values(values: dict[str, Any], folder: Path) -> TrainerValues:
    """Check the values of a checkpoint's trainer.json. Raises `OctavoError` that names the first wrong one."""
    return check(values, TrainerValues, str(folder / "trainer.json"), "another checkpoint of the run")
