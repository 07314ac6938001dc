"""Copy a run's events to TensorBoard, Weights & Biases or trackio (optional extras: `tensorboard`, `wandb`, `trackio`).

Each logger named in the setting `log` gets the numbers of `metrics.jsonl`, under the same names and at the same steps,
and the samples. `metrics.jsonl` stays the record: nothing is read back from a logger, and one that fails is dropped
with a notice while training continues. A package is imported only if a run names it. Where the data goes is configured
in that package: Octavo passes no server, account or key.
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
from typing import Any, Protocol

from octavo.errors import OctavoError, first_line, install_command
from octavo.settings import TrainingSettings, to_toml
from octavo.training.event import Evaluated, Event, Finished, Notice, Sampled, Started, Step

_PROJECT = "octavo"  # W&B and trackio group runs by project


class Logger(Protocol):
    """Built from a run's `Started`. `is_done` is false if training ended without a `Finished`."""

    def log_numbers(self, step: int, values: dict[str, float]) -> None: ...
    def log_sample(self, step: int, text: str) -> None: ...
    def close(self, is_done: bool) -> None: ...


def check_installed(settings: TrainingSettings) -> None:
    """Raise `OctavoError` if the package of a logger is missing, without importing any."""
    for name in settings.loggers:
        spec = importlib.util.find_spec(name)
        # A spec without origin is a plain folder of that name, such as the `wandb/` that W&B leaves behind.
        if spec is None or spec.origin is None:
            raise OctavoError(f"log={name} needs the package {name}", f"{install_command(name)}, or --log none")


def tee(events: Iterator[Event], names: list[str]) -> Iterator[Event]:
    """Yield the events and copy each to the named loggers, with a notice for a logger that fails."""
    loggers: dict[str, Logger] = {}
    try:
        for event in events:
            notices: list[Event] = []
            # `Started` opens every logger that was named; later events go to those that are still open.
            receivers = names if isinstance(event, Started) else list(loggers)
            for name in receivers:
                try:
                    _send(event, name, loggers)
                except Exception as error:  # a failure of a logger must not end the training run
                    loggers.pop(name, None)
                    notices.append(Notice(f"{name} is off, metrics.jsonl continues: {first_line(error)}"))
            # `Started` stays the first event, and `Finished` the last.
            yield from [*notices, event] if isinstance(event, Finished) else [event, *notices]
    finally:
        for logger in loggers.values():  # those that did not get a `Finished`
            with contextlib.suppress(Exception), contextlib.redirect_stdout(sys.stderr):
                logger.close(is_done=False)


def _send(event: Event, name: str, loggers: dict[str, Logger]) -> None:
    """Send one event to one logger, which `Started` opens and `Finished` closes."""
    with contextlib.redirect_stdout(sys.stderr):  # trackio prints, but `--json` must print one object
        match event:
            case Started():
                loggers[name] = _LOGGERS[name](event)
            case Step() | Evaluated():
                values = dataclasses.asdict(event)
                loggers[name].log_numbers(
                    event.step,
                    {key: value for key, value in values.items() if value is not None and key not in ("step", "best")},
                )
            case Sampled():
                loggers[name].log_sample(event.step, event.text)
            case Finished():
                loggers.pop(name).close(is_done=True)


class _TensorBoard:
    """Event files in `tensorboard/`. When a run is resumed, what was logged after its checkpoint is purged."""

    def __init__(self, started: Started) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge_step = started.step + 1 if started.step else None
        self.writer = SummaryWriter(started.run / "tensorboard", purge_step=purge_step, flush_secs=10)
        self.writer.add_text("settings", _as_code(to_toml(started.settings)), started.step)

    def log_numbers(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def log_sample(self, step: int, text: str) -> None:
        self.writer.add_text("sample", _as_code(text), step)

    def close(self, is_done: bool) -> None:
        self.writer.close()


class _WandB:
    """A run in W&B, with its files in `wandb/`. W&B ignores a step that it already has."""

    def __init__(self, started: Started) -> None:
        import wandb

        folder = started.run.resolve()  # absolute: wandb's process keeps the working directory it was started in
        self.wandb = wandb
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=folder.name,
            id=_run_id(folder / "wandb"),
            resume="allow",
            dir=folder,
            config=dataclasses.asdict(started.settings),
            reinit="create_new",  # or wandb would return the run that a notebook has open
            settings=wandb.Settings(console="off"),  # don't capture the progress line
        )

    def log_numbers(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def log_sample(self, step: int, text: str) -> None:
        self.run.log({"sample": self.wandb.Table(columns=["step", "text"], data=[[step, text]])}, step=step)

    def close(self, is_done: bool) -> None:
        self.run.finish(exit_code=0 if is_done else 1)


class _Trackio:
    """A run in trackio's database.

    trackio keeps both lines of a step that is logged twice, so a resumed run skips the steps that are already there.
    """

    def __init__(self, started: Started) -> None:
        import trackio

        self.trackio = trackio
        name = f"{started.run.resolve().name}-{_run_id(started.run / 'trackio')}"
        self.newest_step = trackio.SQLiteStorage.get_max_step_for_run(_PROJECT, name)  # None for a new run
        self.run = trackio.init(
            project=_PROJECT,
            name=name,
            resume="allow",
            config=dataclasses.asdict(started.settings),
            embed=False,  # otherwise it starts a server in a notebook, and a public one on Colab
        )

    def log_numbers(self, step: int, values: dict[str, float]) -> None:
        self._log(step, values)

    def log_sample(self, step: int, text: str) -> None:
        self._log(step, {"sample": self.trackio.Markdown(_as_code(text))})

    def close(self, is_done: bool) -> None:
        self.trackio.finish()

    def _log(self, step: int, values: dict[str, Any]) -> None:
        if self.newest_step is None or step > self.newest_step:
            self.run.log(values, step=step)


_LOGGERS: dict[str, Callable[[Started], Logger]] = {"tensorboard": _TensorBoard, "wandb": _WandB, "trackio": _Trackio}


def _run_id(folder: Path) -> str:
    """The id of this run in W&B or trackio. Its name is not unique: another folder may have a run of the same name."""
    path = folder / "id"
    if not path.exists():
        folder.mkdir(exist_ok=True)
        path.write_text(uuid.uuid4().hex[:8] + "\n", encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def _as_code(text: str) -> str:
    """Indent text as a Markdown code block: TensorBoard and trackio render Markdown."""
    return textwrap.indent(text, "    ", lambda line: True)
