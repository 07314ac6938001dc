"""The values in trainer.json, checked before any is used: a damaged or edited file must not end in a traceback."""

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from octavo.schema import Count, NonNegative, check
from octavo.training.divergence import DivergenceState
from octavo.training.event import Evaluated, Step


class ScalerValues(msgspec.Struct, rename={"growth_tracker": "_growth_tracker"}):
    """The state of `torch.amp.GradScaler`."""

    scale: NonNegative
    growth_factor: NonNegative
    backoff_factor: NonNegative
    growth_interval: Count
    growth_tracker: Count


class TrainerValues(msgspec.Struct):
    """The contents of trainer.json."""

    step: Count
    device: str
    precision: Literal["fp32", "bf16", "fp16"]
    compile: Literal["on", "off"]
    micro_batch: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
    threads: Count
    torch: str  # the version of PyTorch
    scaler: ScalerValues | None
    best_val_loss: NonNegative | None  # None: not evaluated yet
    evaluations_since_best: Count
    newest_evaluation: Evaluated | None
    elapsed_seconds: NonNegative
    update_seconds: NonNegative
    divergence: DivergenceState = msgspec.field(default_factory=DivergenceState)  # older checkpoints have none
    unevaluated_step: Step | None = None  # see `Recorder.unevaluated_step`; older checkpoints have none
    fused: bool | None = None  # whether steps ran in C, see `fused_step`; older checkpoints do not say


def check_trainer_values(values: dict[str, Any], folder: Path) -> TrainerValues:
    """Check the values of a checkpoint's trainer.json. Raises an `OctavoError` that names the first wrong one."""
    if values.get("scaler") == {}:  # the state of a scaler without loss scaling
        values = values | {"scaler": None}
    return check(values, TrainerValues, str(folder / "trainer.json"), "another checkpoint of the run")
