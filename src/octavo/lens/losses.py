"""The view `losses`: the losses of a run during training, from its `metrics.jsonl`."""

from dataclasses import dataclass

import numpy as np

from octavo.errors import OctavoError
from octavo.lens.view import Table, View
from octavo.runs import Run, RunLike, find_checkpoint

_MAX_POINTS = 2000  # of a curve


@dataclass(frozen=True, eq=False)
class Losses(View):
    """Losses in nats per token: of training at the logged `steps`, and of the whole validation split at `val_steps`."""

    run: str
    steps: np.ndarray
    train: np.ndarray
    val_steps: np.ndarray
    val: np.ndarray

    def tables(self) -> list[Table]:
        logged = dict(zip(self.steps.tolist(), self.train.tolist(), strict=True))
        rows = [
            (step, logged.get(step), loss)
            for step, loss in zip(self.val_steps.tolist(), self.val.tolist(), strict=True)
        ]
        return [Table(f"{self.run}: loss in nats per token", ("step", "training", "validation"), rows)]


def losses(run: RunLike) -> Losses:
    """A run's losses, thinned to at most 2,000 points. Raises `OctavoError` if it has none."""
    folder = find_checkpoint(run)
    owning_run = Run.of_checkpoint(folder)
    if owning_run is None:
        raise OctavoError(f"{folder} belongs to no run, so it has no record of its training", "a run's folder")
    lines = owning_run.lines("metrics")
    logged = [(line["step"], line["loss"]) for line in lines if line.get("loss") is not None]
    evaluated = [(line["step"], line["val_loss"]) for line in lines if line.get("val_loss") is not None]
    if not logged and not evaluated:
        raise OctavoError(f"{owning_run.folder} has no losses yet", "train it for longer")
    return Losses(owning_run.folder.name, *_thin(logged), *_thin(evaluated))


def _thin(points: list[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    """The steps and losses of every nth point, and of the last point."""
    every = max(1, -(-len(points) // (_MAX_POINTS - 1)))
    kept = points[::every]
    if (len(points) - 1) % every > 0:  # the last point is not yet in it
        kept = [*kept, points[-1]]
    return np.array([step for step, _ in kept], dtype=np.int64), np.array([loss for _, loss in kept], dtype=np.float64)
