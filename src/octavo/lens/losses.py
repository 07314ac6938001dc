"""A run's losses along training, from its `metrics.jsonl`."""

from dataclasses import dataclass

import numpy as np

from octavo.errors import OctavoError
from octavo.lens.tokens import RUN
from octavo.lens.view import Table, View
from octavo.runs import Run, find_checkpoint

_MOST = 2000  # points


@dataclass(frozen=True, eq=False)
class Losses(View):
    """The training loss of steps, as logged, and the whole validation split's, wherever it was evaluated; in nats."""

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
        return [Table(f"{self.run}: loss in nats a token", ("step", "training", "validation"), rows)]


def losses(run: RUN) -> Losses:
    """A run's losses, thinned to 2,000 points where there are more. Raises `OctavoError` if it has none."""
    owner = _run_of(run)
    folder, lines = owner.folder, owner.lines("metrics")
    logged = [(line["step"], line["loss"]) for line in lines if line.get("loss") is not None]
    evaluated = [(line["step"], line["val_loss"]) for line in lines if line.get("val_loss") is not None]
    if not logged and not evaluated:
        raise OctavoError(f"{folder} has no losses yet", "train it for longer")
    steps, train = _columns(logged)
    val_steps, val = _columns(evaluated)
    return Losses(folder.name, steps, train, val_steps, val)


def _run_of(run: RUN) -> Run:
    """The run itself, or the one that owns the checkpoint."""
    if isinstance(run, Run):
        return run
    folder = find_checkpoint(run)
    owner = Run.of_checkpoint(folder)
    if owner is None:
        raise OctavoError(f"{folder} belongs to no run, so nothing tells of its training", "a run's folder")
    return owner


def _columns(points: list[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    every = max(1, -(-len(points) // (_MOST - 1)))
    thin = points[::every] + points[-1:] * ((len(points) - 1) % every > 0)  # the last one too
    return np.array([step for step, _ in thin], dtype=np.int64), np.array([loss for _, loss in thin], dtype=np.float64)
