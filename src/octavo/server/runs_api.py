"""`/runs`: how training goes, read from the folders of the runs that are served while another process writes there.

Nothing is written, and nothing but `settings.toml`, `metrics.jsonl` and `samples.jsonl` is read.
"""

import array
import bisect
import contextlib
import io
import json
import math
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import numpy as np
from fastapi import APIRouter, Query
from fastapi.responses import Response

from octavo import estimate
from octavo.errors import OctavoError
from octavo.runs import Run
from octavo.server import responses
from octavo.server.limits import Limits
from octavo.server.protocol import ApiError

Kind = Literal["metrics", "samples"]
_PIECE = 1 << 20  # bytes that are read at once


def routes(runs: Mapping[str, Run]) -> APIRouter:
    """The runs' part of the API."""
    router = APIRouter()
    logs = {
        (name, kind): Log(run.folder / f"{kind}.jsonl") for name, run in runs.items() for kind in ("metrics", "samples")
    }

    @router.get("/runs")
    def list_runs() -> responses.Runs:
        """The runs that are served, and how far they are."""
        known = [_described(name, run, logs[name, "metrics"]) for name, run in runs.items()]
        return responses.Runs(runs=[each for each in known if each])

    @router.get("/runs/{name}/{kind}", responses=responses.refusals(404) | {200: {"model": responses.Lines}})
    def lines(name: str, kind: Kind, after: Annotated[int, Query(ge=0, lt=2**53)] = 0) -> Response:
        """What was logged after so many lines: at most 5,000, so ask again from `next`."""
        if name not in runs:
            raise ApiError(404, f"there is no run {name[:80]!r} here", param="name")
        found, end, restarted = logs[name, kind].after(after)
        # In ASCII: a line may hold half a surrogate pair, which has no UTF-8.
        content = json.dumps({"lines": found, "next": end, "restarted": restarted}, separators=(",", ":"))
        return Response(content, media_type="application/json")

    return router


def _described(name: str, run: Run, metrics: "Log") -> responses.Run | None:
    try:
        settings = run.settings
    except OctavoError:  # its folder is gone
        return None
    known = {each: getattr(settings, each) for each in responses.RunSettings.model_fields}
    return responses.Run(
        name=name, settings=responses.RunSettings(**known), parameters=estimate.parameters(settings),
        tokens_per_step=settings.batch_size * settings.block_size, last_step=metrics.last_step, running=run.is_locked,
    )  # fmt: skip


class Log:
    """Lines of a file that another process appends to, or rewrites shorter, by their number.

    Where each line ends is remembered, so asking again reads only what is new. A line half written isn't there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: tuple[int, int] | None = None
        self._ends = array.array("Q", [0])  # of no line, and of each
        self._lock = threading.Lock()

    def after(self, count: int) -> tuple[list[dict[str, Any]], int, bool]:
        """The lines after so many, up to which they go, and whether there were fewer, so that these are the first."""
        with self._opened() as file:
            restarted = count >= len(self._ends)
            first = 0 if restarted else count
            # As many as may be: lines, and bytes, but one at least.
            fitting = bisect.bisect_right(self._ends, self._ends[first] + Limits.lines_bytes) - 1
            end = min(len(self._ends) - 1, first + Limits.lines, max(fitting, first + 1))
            return self._read(file, first, end), end, restarted

    @property
    def last_step(self) -> int:
        """The step that the last line is of; 0 where there is none."""
        with self._opened() as file:
            found = self._read(file, max(0, len(self._ends) - 2), len(self._ends) - 1)
        step = found[-1].get("step") if found else 0
        return step if type(step) is int else 0

    @contextlib.contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        """The file, the ends of all its lines known; an empty one, where there is none yet."""
        with self._lock:
            try:
                file = open(self._path, "rb")  # noqa: SIM115
            except FileNotFoundError:
                self._ends = array.array("Q", [0])
                yield io.BytesIO()
                return
            with file:
                self._look_on(file)
                yield file

    def _look_on(self, file: BinaryIO) -> None:
        """Find the ends of lines that are new; of all, where the file was rewritten."""
        status = os.fstat(file.fileno())
        if (status.st_dev, status.st_ino) != self._file or status.st_size < self._ends[-1]:
            self._file, self._ends = (status.st_dev, status.st_ino), array.array("Q", [0])
        at = self._ends[-1]
        file.seek(at)
        while piece := file.read(_PIECE):
            ends = np.flatnonzero(np.frombuffer(piece, np.uint8) == ord("\n")) + at + 1
            self._ends.extend(ends.tolist())
            at += len(piece)

    def _read(self, file: BinaryIO, first: int, end: int) -> list[dict[str, Any]]:
        start, size = self._ends[first], self._ends[end] - self._ends[first]
        if size > Limits.lines_bytes:  # one line, that is no line of ours
            return []
        file.seek(start)
        lines = (_parsed(line) for line in file.read(size).split(b"\n"))
        return [line for line in lines if line is not None]


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A line, or None where it is no JSON object. Numbers that JSON has no word for become null."""
    try:
        value = json.loads(line, parse_constant=lambda name: None, parse_float=_finite)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None
