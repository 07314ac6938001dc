"""Loads the served models, and newer checkpoints of runs that are still training.

A checkpoint is loaded into a new model and a new engine, while the earlier ones answer requests. Then the new model
takes the earlier one's name, in one assignment: a request uses the model that it found, from its first token to its
last. The earlier engine ends when its texts are complete. A prefix cache belongs to an engine, so no cached prompt
outlives the weights that it was computed with.

A checkpoint that cannot be loaded, or is not of the same model, changes nothing but the log. If the machine failed, for
example because its memory is full, the checkpoint is tried again later.
"""

import math
import threading
import time
from collections.abc import Callable, MutableMapping
from pathlib import Path

from octavo import checkpoint, runs
from octavo.checkpoint import Checkpoint
from octavo.device import find_device
from octavo.errors import MachineError, OctavoError, first_line
from octavo.generation.chat import ChatFormat, ChatTemplateError
from octavo.generation.engine import Engine
from octavo.generation.worker import Worker
from octavo.runs import Run, RunLike
from octavo.server import log
from octavo.server.served_model import ServedModel, Version
from octavo.server.settings import ServeSettings

_POLL_SECONDS = 0.25  # a look at the files of a run takes 0.1 ms
_MAX_RETIRED = 2  # engines that still complete texts with earlier weights; each has the memory of a model
# What a client may rely on while a name is served. A run that was deleted and started again can have other values.
_FIXED = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "activation")


def load_model(
    name: str, run: RunLike, settings: ServeSettings, on_notice: Callable[[str], object] = lambda text: None
) -> ServedModel:
    """Load a run's checkpoint and start its worker."""
    found, pointer = find_run_and_pointer(run)
    version = Version.of_run(found, pointer) if found else None  # before loading: a later change is a newer version
    return _start(name, runs.load(run, find_device(settings.device)), found, pointer, version, settings, on_notice)


def find_run_and_pointer(run: RunLike) -> tuple[Run | None, str | None]:
    """The run that is served, and `last` or `best` for `RUN/last` and `RUN/best`, otherwise None.

    (None, None) if `run` names no run.
    """
    return runs.find_pointer(run) or (runs.find_run(run), None)


def _start(
    name: str,
    loaded: Checkpoint,
    run: Run | None,
    pointer: str | None,
    version: Version | None,
    settings: ServeSettings,
    on_notice: Callable[[str], object],
) -> ServedModel:
    created = int(loaded.folder.stat().st_mtime)  # before the engine is made: training may have deleted the folder
    own_template = _read_template(settings.chat_template)
    try:
        ChatFormat(loaded.tokenizer, own_template or loaded.tokenizer.chat_template).check()
    except ChatTemplateError as error:
        if own_template:
            raise
        on_notice(f"{name} answers no chats: {error.message}")
    engine = Engine(
        loaded.model,
        settings.slots,
        vocab_size=loaded.tokenizer.vocab_size,
        quantize=settings.quantize,
        prefix_bytes=settings.prefix_cache << 20,
    )
    for notice in engine.notices:
        on_notice(notice)
    return ServedModel(
        id=name,
        checkpoint=loaded,
        worker=Worker(engine, settings.queue),
        created=created,
        overflow=settings.overflow,
        run=run,
        pointer=pointer,
        version=version,
        own_chat_template=own_template,
    )


def _read_template(path: str | Path | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise OctavoError(
            f"the chat template {path} cannot be read: {reason}", "a file with a Jinja2 template"
        ) from None


class ModelUpdater:
    """Keeps `models` up to date with their runs, and moves models from `pending` when they have a checkpoint."""

    def __init__(
        self,
        models: MutableMapping[str, ServedModel],
        pending: MutableMapping[str, Run],
        settings: ServeSettings,
        *,
        on_notice: Callable[[str], object] = lambda text: None,
        on_change: Callable[[str], object] = lambda text: None,
        retry_seconds: float = 30,
    ) -> None:
        """`on_notice` is called for each fallback of an engine and each chat template that cannot be used.

        `on_change` is called with a line about each newer checkpoint. If the machine fails, the checkpoint is tried
        again after `retry_seconds`.
        """
        self._models, self._pending, self._settings = models, pending, settings
        self._on_notice, self._on_change = on_notice, on_change
        self._retry_seconds = retry_seconds
        # By model: the version that could not be served, and when it is tried again.
        self._rejected: dict[str, tuple[Version, float]] = {}
        self._retired: list[Worker] = []

    def run(self, stopped: threading.Event) -> None:
        """Look for checkpoints until `stopped` is set."""
        while not stopped.wait(_POLL_SECONDS):
            self.poll()

    def poll(self) -> None:
        """Load the checkpoints that are new since the last call. A failure concerns one model only."""
        for name, run in list(self._pending.items()):
            self._update(name, run, None)
        self._retired = [worker for worker in self._retired if not worker.has_ended]
        if self._settings.follow:
            for name, model in list(self._models.items()):
                if model.run is not None and len(self._retired) < _MAX_RETIRED:
                    self._update(name, model.run, model)

    def close(self) -> None:
        """End the workers of earlier checkpoints."""
        for worker in self._retired:
            worker.close()

    def _update(self, name: str, run: Run, served: ServedModel | None) -> None:
        """Serve the checkpoint that a run offers, unless it is served already or was rejected."""
        version = Version.of_run(run, served.pointer if served else None)
        rejected, retry_time = self._rejected.get(name, (None, 0.0))
        if version is None or (version == rejected and time.monotonic() < retry_time):
            return
        if served and served.version is not None and version.weights == served.version.weights:
            return
        try:
            if served:
                self._replace(name, run, served, version)
            else:
                self._models[name] = load_model(name, run, self._settings, self._on_notice)
                del self._pending[name]
        except Exception as error:  # also a bug, or too little memory: the thread has to follow the other models
            if version.folder in (run.best, run.last):  # otherwise training has replaced it meanwhile
                self._reject(name, served, version, error)

    def _replace(self, name: str, run: Run, served: ServedModel, version: Version) -> None:
        """Serve a newer checkpoint. Raises `OctavoError` if it can't be loaded, or is not of the same model."""
        loaded = checkpoint.load(version.folder, find_device(self._settings.device), foreign=False)
        _require_same_interface(served.checkpoint, loaded)
        newer = _start(name, loaded, run, served.pointer, version, self._settings, self._on_notice)
        self._models[name] = newer
        served.worker.retire()
        self._retired.append(served.worker)
        self._on_change(f"{name}: step {newer.step} is served, in place of step {served.step}")

    def _reject(self, name: str, served: ServedModel | None, version: Version, error: Exception) -> None:
        """Log why a version can't be served; try it again if the reason may pass."""
        # Without a served model, the next attempt may load another checkpoint of the run.
        is_final = served is not None and isinstance(error, OctavoError) and not isinstance(error, MachineError)
        self._rejected[name] = version, math.inf if is_final else time.monotonic() + self._retry_seconds
        state = f"step {served.step} is still served" if served else "no checkpoint is served yet"
        line = f"{name}: {state}: {error.message if isinstance(error, OctavoError) else first_line(error)}"
        if isinstance(error, (OctavoError, OSError)):
            self._on_change(line)
        else:
            log.LOGGER.error(line, exc_info=error)


def _require_same_interface(served: Checkpoint, newer: Checkpoint) -> None:
    """Raise `OctavoError` if a checkpoint is not of the same model: the run was deleted and started again."""
    for field in _FIXED:
        before, after = getattr(served.model.settings, field), getattr(newer.model.settings, field)
        if before != after:
            raise OctavoError(f"{newer.folder} has {field}={after}, not {before}; start the server again to serve it")
    if served.tokenizer.fingerprint != newer.tokenizer.fingerprint:
        raise OctavoError(f"{newer.folder} has another tokenizer; start the server again to serve it")
