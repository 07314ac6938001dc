"""Where else the events of training go: TensorBoard, Weights & Biases, trackio (the extras of these names).

`told` passes a run's events on, and on the way tells them to the loggers that the setting `log` names. Each gets the
numbers of `metrics.jsonl` under the names that they have there, at Octavo's steps, and the samples. `metrics.jsonl`
stays the record: nothing is read back from a logger, and one that fails is let go with a notice while training goes on.
A package is imported when a run names it, and where it sends what it gets is its own affair and its user's.
"""

import contextlib
import dataclasses
import importlib.util
import os
import sys
import textwrap
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from octavo.errors import OctavoError
from octavo.settings import TrainingSettings, to_toml
from octavo.training.event import Evaluated, Event, Finished, Notice, Sampled, Started, Step

_PROJECT = "octavo"  # W&B and trackio put runs into projects


class Logger(Protocol):
    """What is opened with a run's `Started`, told its numbers and samples, and closed: `done` or broken off."""

    def numbers(self, step: int, values: dict[str, float]) -> None: ...
    def sample(self, step: int, text: str) -> None: ...
    def close(self, done: bool) -> None: ...


def check(settings: TrainingSettings) -> None:
    """Raise `OctavoError` for a logger whose package is missing. Nothing is imported."""
    for name in settings.loggers:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # the latter: a mere folder of that name, as the tools leave some
            raise OctavoError(f"log={name} needs the package {name}",
                              f"pip install 'octavo[{name}]', or --log none")  # fmt: skip


def told(names: list[str], events: Iterator[Event]) -> Iterator[Event]:
    """The same events, each told to the loggers named; and a notice for each that fails."""
    opened: dict[str, Logger] = {}
    try:
        for event in events:
            notices: list[Event] = []
            for name in names if isinstance(event, Started) else list(opened):
                try:
                    _tell(name, event, opened)
                except Exception as error:  # whatever it is, it is no reason to lose a training
                    opened.pop(name, None)
                    reason = str(error).partition("\n")[0] or type(error).__name__
                    notices.append(Notice(f"{name} is off, metrics.jsonl goes on: {reason}"))
            # `Started` stays the first event, and `Finished` the last.
            yield from [*notices, event] if isinstance(event, Finished) else [event, *notices]
    finally:
        for logger in opened.values():  # those that have not heard of an end
            with contextlib.suppress(Exception), contextlib.redirect_stdout(sys.stderr):
                logger.close(done=False)


def _tell(name: str, event: Event, opened: dict[str, Logger]) -> None:
    with contextlib.redirect_stdout(sys.stderr):  # trackio prints, and `--json` promises one object
        match event:
            case Started():
                opened[name] = _LOGGERS[name](event)
            case Step() | Evaluated():
                values = dataclasses.asdict(event)
                left_out = {"step", "best"} | {key for key, value in values.items() if value is None}
                opened[name].numbers(event.step, {k: v for k, v in values.items() if k not in left_out})
            case Sampled():
                opened[name].sample(event.step, event.text)
            case Finished():
                opened.pop(name).close(done=True)


class _TensorBoard:
    """Event files in `tensorboard/`. What a run that went back to a checkpoint had told after it is purged."""

    def __init__(self, started: Started) -> None:
        from torch.utils.tensorboard import SummaryWriter

        again = started.step + 1 if started.step else None
        self.writer = SummaryWriter(started.run / "tensorboard", purge_step=again, flush_secs=10)
        self.writer.add_text("settings", _verbatim(to_toml(started.settings)), started.step)

    def numbers(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def sample(self, step: int, text: str) -> None:
        self.writer.add_text("sample", _verbatim(text), step)

    def close(self, done: bool) -> None:
        self.writer.close()


class _WandB:
    """A run of W&B, its files in `wandb/`. It drops by itself what it is told again of a step."""

    def __init__(self, started: Started) -> None:
        import wandb

        run = started.run.resolve()  # wandb's process stays in the folder in which it was first started
        self.wandb = wandb
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT), name=run.name, id=_identity(run / "wandb"),
            resume="allow", dir=run, config=dataclasses.asdict(started.settings),
            reinit="create_new",  # else it would give us the run that a notebook has open
            settings=wandb.Settings(console="off"),  # the progress line is no log
        )  # fmt: skip

    def numbers(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def sample(self, step: int, text: str) -> None:
        self.run.log({"sample": self.wandb.Table(columns=["step", "text"], data=[[step, text]])}, step=step)

    def close(self, done: bool) -> None:
        self.run.finish(exit_code=0 if done else 1)


class _Trackio:
    """A run in trackio's own database. It would keep two lines of a step, so it is not told twice."""

    def __init__(self, started: Started) -> None:
        import trackio

        self.trackio = trackio
        name = f"{started.run.resolve().name}-{_identity(started.run / 'trackio')}"
        self.known = trackio.SQLiteStorage.get_max_step_for_run(_PROJECT, name)  # None: it has no such run
        self.run = trackio.init(
            project=_PROJECT, name=name, resume="allow", config=dataclasses.asdict(started.settings),
            embed=False,  # in a notebook it would start a server, on Colab a public one
        )  # fmt: skip

    def numbers(self, step: int, values: dict[str, float]) -> None:
        if self.known is None or step > self.known:
            self.run.log(values, step=step)

    def sample(self, step: int, text: str) -> None:
        if self.known is None or step > self.known:
            self.run.log({"sample": self.trackio.Markdown(_verbatim(text))}, step=step)

    def close(self, done: bool) -> None:
        self.trackio.finish()


_LOGGERS: dict[str, Callable[[Started], Logger]] = {
    "tensorboard": _TensorBoard, "wandb": _WandB, "trackio": _Trackio,
}  # fmt: skip


def _identity(folder: Path) -> str:
    """What a tool knows this run by, kept in the run's folder: elsewhere there may be a run of the same name."""
    path = folder / "id"
    if not path.exists():
        folder.mkdir(exist_ok=True)
        path.write_text(uuid.uuid4().hex[:8] + "\n", encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def _verbatim(text: str) -> str:
    """Text that Markdown, in which TensorBoard and trackio read it, takes as it is."""
    return textwrap.indent(text, "    ", lambda line: True)
