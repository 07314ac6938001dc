"""Copies a run to other storage while it is trained: `octavo train --mirror URL`. `octavo.mirror` has the rules.

A thread makes the copy equal to the run after each checkpoint. Training never waits for it before the end of the run,
and nothing that fails there ends training: a notice says what could not be copied, and the next checkpoint tries again.
If checkpoints come faster than they can be copied, some are left out.
"""

import contextlib
import threading
import tomllib
import warnings
from collections.abc import Iterator, Sequence
from types import TracebackType

from octavo import mirror
from octavo.distributed import World
from octavo.errors import OctavoError, OctavoWarning
from octavo.remote import Storage
from octavo.run_layout import SETTINGS
from octavo.runs import Run
from octavo.settings import Settings
from octavo.training.event import Event, Finished, Notice, Saved
from octavo.training.fixed_settings import settings_of_run

DELAYS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each further attempt to copy a file


def open_mirror(url: str, settings: Settings, is_resumed: bool, delays: Sequence[float] = DELAYS) -> Storage:
    """The storage that a run is copied to. Raises `OctavoError` if there is another run, which would be replaced."""
    storage = Storage(url, delays)
    if not storage.exists(SETTINGS):
        return storage
    if not is_resumed:
        raise OctavoError(f"{url} has a run already", f"another --mirror, or --resume {url}")
    try:
        sections = tomllib.loads(storage.read(SETTINGS).decode())
    except ValueError:  # half-written
        return storage
    mirrored = {
        name: value for section in sections.values() if isinstance(section, dict) for name, value in section.items()
    }
    for name, value in (settings_of_run(settings) | {"seed": settings.seed}).items():
        if mirrored.get(name, value) != value:
            raise OctavoError(
                f"{url} has another run: its {name} is {mirrored[name]!r}, not {value!r}", "another --mirror"
            )
    return storage


def upload(events: Iterator[Event], run: Run, storage: Storage | None, world: World) -> Iterator[Event]:
    """Pass on the events of a run, copy the run after each checkpoint, and yield notices.

    `Finished` comes after the last copy. Only rank 0 has the storage; before `Finished`, the others wait for rank 0.
    """
    with Uploader(run, storage) if storage is not None else contextlib.nullcontext() as uploader:
        for event in events:
            if uploader is not None:
                if isinstance(event, Saved | Finished):
                    uploader.start_copy()
                if isinstance(event, Finished):
                    uploader.close()
                yield from map(Notice, uploader.take_notices())
            if isinstance(event, Finished):
                world.wait_for_first()
            yield event


class Uploader:
    """Copies the run in a thread. As a context manager, it waits at the end until the newest checkpoint is copied."""

    def __init__(self, run: Run, storage: Storage) -> None:
        self._run, self._storage = run, storage
        self._condition = threading.Condition()
        self._is_due = self._is_closed = False
        self._failure: str | None = None  # why the last attempt failed; None if it succeeded
        self._notices: list[str] = []
        self._thread = threading.Thread(target=self._work, daemon=True)  # Ctrl-C can end the process if storage hangs

    def __enter__(self) -> "Uploader":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and not issubclass(kind, Exception):
            return  # Ctrl-C again: stop at once
        self.close()
        for notice in self.take_notices():
            warnings.warn(notice, OctavoWarning, stacklevel=2)

    def start_copy(self) -> None:
        """Copy the run, once the copy that is being made is complete."""
        with self._condition:
            self._is_due = True
            self._condition.notify()

    def take_notices(self) -> list[str]:
        """What could not be copied since the last call."""
        with self._condition:  # the thread adds to the list
            notices, self._notices = self._notices, []
        return notices

    def close(self) -> None:
        """Wait until the run is copied, or cannot be."""
        with self._condition:
            self._is_closed = True
            self._condition.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._is_due or self._is_closed)
                if not self._is_due:
                    return
                self._is_due = False
            failure = None
            try:
                mirror.push(self._run.folder, self._storage)
            except (OctavoError, OSError) as error:
                failure = error.message if isinstance(error, OctavoError) else str(error)
            with self._condition:
                if failure is not None and (self._failure is None or self._is_closed):
                    again = "" if self._is_closed else ". The next checkpoint tries again"
                    self._notices.append(f"the run was not copied to {self._storage.url}: {failure}{again}")
                self._failure = failure
