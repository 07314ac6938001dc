"""Divide work among processes that share nothing but a folder: each unit of it is done by the process that claims it.

    helpers/HOST-PID-XXXX    a file for each process, rewritten while it lives, with what it is doing
    claims/UNIT              the name of the process that does this unit; created exclusively

Creating a file exclusively works on every file system, also where locks do not (NFS, Lustre). A process whose file is
no longer rewritten counts as dead, and its claims are free. That may be wrong, if it was only suspended. So two
processes may do the same unit: both must write the same bytes, atomically.

Times are those that the file system gives to files, so the clocks of the machines need not agree.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from octavo import files, schema
from octavo.errors import OctavoError

STALE_SECONDS = 60.0
_BEATS = 6  # heartbeats in `STALE_SECONDS`: a process writes its file at each


@dataclass(frozen=True)
class Activity:
    """What a process is doing: the unit, and how many characters of it are done."""

    unit: str = ""
    done: int = 0


class Claims:
    """The claims of this process, and what the others do. A context manager: at its end the claims are given up."""

    def __init__(self, folder: Path, stale_seconds: float = STALE_SECONDS) -> None:
        self.activity = Activity()  # of this process; assign another one to show it to the others
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        self._helpers, self._claims, self._stale_seconds = folder / "helpers", folder / "claims", stale_seconds
        self._own: set[str] = set()
        self._is_ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Claims":
        for folder in (self._helpers, self._claims):
            with files.translate_disk_errors(folder):
                files.make_folder(folder)
        self._beat()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            for unit in self._own:
                (self._claims / unit).unlink(missing_ok=True)
            (self._helpers / self.name).unlink(missing_ok=True)

    def take(self, unit: str) -> bool:
        """Claim a unit. False if another process that seems alive has claimed it."""
        path = self._claims / unit
        if not self._create(path):
            if not self._is_stale(path):
                return False
            path.unlink(missing_ok=True)
            if not self._create(path):
                return False
        self._own.add(unit)
        return True

    def release(self, unit: str) -> None:
        """Give up a claim, after the unit is done."""
        self._own.discard(unit)
        (self._claims / unit).unlink(missing_ok=True)

    def other_activities(self) -> list[Activity]:
        """What the other processes that seem alive are doing."""
        now, found = self._modified(self._helpers / self.name), []
        for path in self._helpers.glob("[!.]*"):
            with contextlib.suppress(OSError, OctavoError):
                if path.name != self.name and now - self._modified(path) <= self._stale_seconds:
                    found.append(schema.read_json(path, Activity, hint=""))
        return found

    def _create(self, path: Path) -> bool:
        with files.translate_disk_errors(path):
            try:
                with open(path, "x", encoding="utf-8") as file:
                    file.write(self.name)
            except FileExistsError:
                return False
        return True

    def _is_stale(self, claim: Path) -> bool:
        """Whether the process that made a claim seems to be dead."""
        try:
            owner = claim.read_text(encoding="utf-8")
            modified = self._modified(claim)  # the owner's own file does not exist if the process has ended
        except OSError:  # the claim was given up
            return False
        with contextlib.suppress(OSError):
            if owner:  # a process was perhaps killed before it wrote its name
                modified = max(modified, self._modified(self._helpers / owner))
        return self._modified(self._helpers / self.name) - modified > self._stale_seconds

    @staticmethod
    def _modified(path: Path) -> float:
        with open(path, "rb") as file:  # NFS asks the server only when a file is opened
            return os.fstat(file.fileno()).st_mtime

    def _run(self) -> None:
        while not self._is_ended.wait(self._stale_seconds / _BEATS):
            with contextlib.suppress(OSError):  # the folder is removed when all is done
                self._beat()

    def _beat(self) -> None:
        path = self._helpers / self.name
        partial = path.with_name(f".{path.name}")
        partial.write_text(json.dumps({"unit": self.activity.unit, "done": self.activity.done}), encoding="utf-8")
        os.replace(partial, path)
