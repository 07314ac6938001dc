"""Every field of trainer.json missing, of another type, negative or not a number: one message, exit code 2."""

import copy
import dataclasses
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from checkpoints import list_in_manifest
from commands import RunCommand, last_checkpoint, snapshot
from octavo import checkpoint
from octavo.errors import OctavoError
from octavo.training.divergence import SPIKE_WINDOW, DivergenceState
from octavo.training.event import Evaluated, Step
from octavo.training.trainer_values import ScalerValues, TrainerValues, check_trainer_values
from reliability.torture import Report

# A value for every field, also for those that are empty in a small run on a CPU.
# Not wrong: an empty `scaler` is that of a run without loss scaling, and an empty `divergence` has defaults.
SCALER = {"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000, "_growth_tracker": 7}
RIGHT: dict[str, Any] = {
    "step": 4,
    "device": "cpu",
    "precision": "fp32",
    "compile": "off",
    "micro_batch": 2,
    "threads": 1,
    "torch": "2.11.0",
    "scaler": SCALER,
    "best_val_loss": 2.5,
    "evaluations_since_best": 0,
    "newest_evaluation": {"step": 4, "train_loss": 2.0, "val_loss": 2.5, "bits_per_byte": 3.0, "best": True},
    "elapsed_seconds": 1.5,
    "update_seconds": 1.0,
    "divergence": {
        "losses": [2.5],
        "spikes": 1,
        "skipped_steps": 1,
        "skips_in_a_row": 1,
        "rollbacks": 1,
        "skipped_batches": 3,
    },
    "unevaluated_step": {
        "step": 4,
        "tokens": 64,
        "seconds": 1.5,
        "loss": 2.5,
        "learning_rate": 1e-3,
        "grad_norm": 0.5,
        "tokens_per_second": 64.0,
        "memory_bytes": 1 << 28,
        "spikes": 1,
        "skipped_steps": 1,
        "rollbacks": 1,
    },
    "fused": True,
}
NOT_FINITE = [math.nan, math.inf, -math.inf]
WRONG: dict[type, list[Any]] = {  # for a right value of that type
    int: [None, "text", [], {}, True, 0.5, -1, 10**30, *NOT_FINITE],
    float: [None, "text", [], {}, True, -1, -0.5, *NOT_FINITE],
    str: [None, 7, [], {}, True],
    bool: [None, 7, "text", [], {}],
    list: [None, 7, "text", {}, [None], ["text"], [-1], *([each] for each in NOT_FINITE), [1.0] * (SPIKE_WINDOW + 1)],
    dict: [None, 7, "text", [], True, [{}]],
}
MAY_BE_NONE = {
    "scaler",
    "best_val_loss",
    "newest_evaluation",
    "unevaluated_step",
    "loss",
    "grad_norm",
    "memory_bytes",
    "fused",
}
MAY_BE_MISSING = {"divergence", "unevaluated_step", "fused"}  # in a checkpoint of an earlier version


def places(values: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in values.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from places(value, (*above, key))


PLACES = {".".join(place): place for place in places(RIGHT)}


def test_the_table_has_every_field() -> None:
    for values, kind in ((RIGHT, TrainerValues), (SCALER, ScalerValues), (RIGHT["divergence"], DivergenceState)):
        assert list(values) == [field.encode_name for field in msgspec.structs.fields(kind)]
    assert list(RIGHT["newest_evaluation"]) == [field.name for field in dataclasses.fields(Evaluated)]
    assert list(RIGHT["unevaluated_step"]) == [field.name for field in dataclasses.fields(Step)]
    assert SCALER.keys() == torch.amp.GradScaler("cpu").state_dict().keys()


def write(folder: Path, values: dict[str, Any]) -> Path:
    """Write a trainer.json that the manifest agrees with."""
    (folder / "trainer.json").write_text(json.dumps(values), encoding="utf-8")
    list_in_manifest(folder / "trainer.json")
    return folder


def error_of(folder: Path) -> OctavoError | None:
    try:
        check_trainer_values(checkpoint.load_trainer(folder).values, folder)
    except OctavoError as error:
        return error
    return None


def replace_value(place: tuple[str, ...], *value: Any) -> dict[str, Any]:
    """The right values with another value at a place, or without it."""
    values = copy.deepcopy(RIGHT)
    parent = values
    for key in place[:-1]:
        parent = parent[key]
    if value:
        [parent[place[-1]]] = value
    else:
        del parent[place[-1]]
    return values


def wrong_values(place: tuple[str, ...]) -> list[dict[str, Any]]:
    right: Any = RIGHT
    for key in place:
        right = right[key]
    may_be_missing = place[-1] in MAY_BE_MISSING or place[0] == "divergence"  # all that is in it has a default
    return [
        *(
            replace_value(place, value)
            for value in WRONG[type(right)]
            if value is not None or place[-1] not in MAY_BE_NONE
        ),
        *([] if may_be_missing else [replace_value(place)]),
    ]


@pytest.mark.parametrize("name", PLACES)
def test_a_wrong_value_is_an_error_that_names_the_file(name: str, run_folder: Path, report: Report) -> None:
    folder = last_checkpoint(run_folder)
    assert error_of(write(folder, RIGHT)) is None
    for values in wrong_values(PLACES[name]):
        error = error_of(write(folder, values))
        assert error is not None, values
        assert error.exit_code == 2
        assert error.hint
        assert "trainer.json" in error.message
        # "malformed": NaN is not JSON.
        assert name.partition(".")[0] in error.message or "malformed" in error.message
    report("a wrong value in trainer.json", len(wrong_values(PLACES[name])), not_detected=0)


@pytest.mark.parametrize("name", RIGHT)
def test_train_resume_ends_with_one_message_and_changes_nothing(
    name: str, run_folder: Path, run_command: RunCommand
) -> None:
    folder = last_checkpoint(run_folder)
    for older in run_folder.glob("checkpoints/step-*"):
        if older != folder:
            shutil.rmtree(older)
    for values in wrong_values((name,))[:: 1 if name == "step" else 5]:
        write(folder, values)
        before = snapshot(run_folder)
        result = run_command("train", "--resume", run_folder, "--max-steps", 6)
        assert result.code == 2, values
        assert result.err.count("error: ") == 1
        assert len(result.err.splitlines()) == 2
        assert snapshot(run_folder) == before
