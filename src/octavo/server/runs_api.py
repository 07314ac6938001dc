"""`/runs`: the progress of training, read from the run folders while another process writes to them.

Nothing is written, and no file but `settings.toml`, `metrics.jsonl` and `samples.jsonl` is read.
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
from octavo.server.api_error import ApiError
from octavo.server.limits import Limits

LogName = Literal["metrics", "samples"]
_BLOCK = 1 << 20  # bytes read at once


def routes(runs: Mapping[str, Run]) -> APIRouter:
    router = APIRouter()
    logs = {
        (name, log): JsonLines(run.folder / f"{log}.jsonl")
        for name, run in runs.items()
        for log in ("metrics", "samples")
    }

    @router.get("/runs")
    def list_runs() -> responses.Runs:
        """The served runs and their progress."""
        described = [_describe_run(name, run, logs[name, "metrics"]) for name, run in runs.items()]
        return responses.Runs(runs=[run for run in described if run])

    @router.get("/runs/{name}/{kind}", responses=responses.errors(404) | {200: {"model": responses.Lines}})
    def lines(name: str, kind: LogName, after: Annotated[int, Query(ge=0, lt=2**53)] = 0) -> Response:
        """Skip `after` lines and return the following ones, at most 5,000. Continue with `after=next`."""
        if name not in runs:
            raise ApiError(404, f"no run {name[:80]!r} is served", param="name")
        lines, end, was_replaced = logs[name, kind].read(after)
        # In ASCII: a line may have unpaired surrogates, which UTF-8, and so orjson, cannot encode.
        content = json.dumps({"lines": lines, "next": end, "restarted": was_replaced}, separators=(",", ":"))
        return Response(content, media_type="application/json")

    return router


def _describe_run(name: str, run: Run, metrics: "JsonLines") -> responses.Run | None:
    """A run and its progress; None if its folder is gone."""
    try:
        settings = run.settings
    except OctavoError:
        return None
    fields = {field: getattr(settings, field) for field in responses.RunSettings.model_fields}
    return responses.Run(
        name=name,
        settings=responses.RunSettings(**fields),
        parameters=estimate.parameters(settings),
        tokens_per_step=settings.batch_size * settings.block_size,
        last_step=metrics.last_step,
        running=run.is_locked,
    )


class JsonLines:
    """Reads a JSON Lines file by line number while another process appends to it, or replaces it by a shorter one.

    The end of every line is remembered, so that only new data is read. An incomplete last line does not count.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: tuple[int, int] | None = None  # device and inode
        self._ends = array.array("Q", [0])  # byte offsets: 0, then the end of each line
        self._lock = threading.Lock()

    def read(self, skip: int) -> tuple[list[dict[str, Any]], int, bool]:
        """Skip `skip` lines; return the following ones, the number of the last one, and whether the file was replaced.

        A file with fewer than `skip` lines was truncated or replaced; then the lines from the first on are returned.
        """
        with self._open() as file:
            was_replaced = skip >= len(self._ends)
            first = 0 if was_replaced else skip
            # As many lines as the limits of lines and of bytes allow, but at least one.
            end_by_bytes = bisect.bisect_right(self._ends, self._ends[first] + Limits.lines_bytes) - 1
            end = min(len(self._ends) - 1, first + Limits.lines, max(end_by_bytes, first + 1))
            return self._parse(file, first, end), end, was_replaced

    @property
    def last_step(self) -> int:
        """The step of the last line; 0 without lines."""
        with self._open() as file:
            lines = self._parse(file, max(0, len(self._ends) - 2), len(self._ends) - 1)
        step = lines[-1].get("step") if lines else 0
        return step if type(step) is int else 0

    @contextlib.contextmanager
    def _open(self) -> Iterator[BinaryIO]:
        """The file, with its lines indexed; a missing file is an empty one."""
        with self._lock:
            try:
                file = open(self._path, "rb")  # noqa: SIM115
            except FileNotFoundError:
                self._ends = array.array("Q", [0])
                yield io.BytesIO()
                return
            with file:
                self._index(file)
                yield file

    def _index(self, file: BinaryIO) -> None:
        """Find the ends of new lines; of all lines if the file was replaced."""
        status = os.fstat(file.fileno())
        if (status.st_dev, status.st_ino) != self._file or status.st_size < self._ends[-1]:
            self._file, self._ends = (status.st_dev, status.st_ino), array.array("Q", [0])
        start = self._ends[-1]
        file.seek(start)
        while block := file.read(_BLOCK):
            ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + start + 1
            self._ends.extend(ends.tolist())
            start += len(block)

    def _parse(self, file: BinaryIO, first: int, end: int) -> list[dict[str, Any]]:
        start, size = self._ends[first], self._ends[end] - self._ends[first]
        if size > Limits.lines_bytes:  # a single line, too long for a run's log
            return []
        file.seek(start)
        lines = (_parse_line(line) for line in file.read(size).split(b"\n"))
        return [line for line in lines if line is not None]


def _parse_line(line: bytes) -> dict[str, Any] | None:
    """A JSON object, or None for anything else. Numbers that are not finite become null."""
    try:
        value = json.loads(line, parse_constant=lambda name: None, parse_float=_finite_or_none)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _finite_or_none(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None
