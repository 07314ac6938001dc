"""The server's log on stderr, as text for people or as one JSON object in each line for programs."""

import contextlib
import datetime
import json
import logging
import os
import queue
import sys
import threading
from collections.abc import Iterator

from octavo.errors import OctavoError

LOGGER = logging.getLogger("octavo.server")
FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")
_NAMES = ("octavo.server", "uvicorn.error")  # uvicorn logs the tracebacks of requests that fail


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"time": _time(record), "level": record.levelname.lower(), "message": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)  # in ASCII: no line of the log can be forged


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = [f"{name}={value}" for name, value in getattr(record, "fields", {}).items() if value not in (None, "")]
        line = " ".join([_time(record), record.levelname.lower(), record.getMessage(), *fields])
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _time(record: logging.LogRecord) -> str:
    moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _QueuedWriter(logging.Handler):
    """Writes lines in a thread. If stderr is a pipe that nobody reads, lines are dropped, and the server continues."""

    def __init__(self, formatter: logging.Formatter, max_lines: int = 10_000) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._stderr = sys.stderr
        self._lines: queue.Queue[str | None] = queue.Queue(max_lines)
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        if self._stderr is None:  # the process was started without it
            return
        try:
            line = self.format(record)
        except (TypeError, ValueError, LookupError):  # the arguments of a library's record don't fit its message
            record.args = None
            line = self.format(record)
        with contextlib.suppress(queue.Full):  # lines take a quarter of the memory of records
            self._lines.put_nowait(line + "\n")

    def stop(self, seconds: float = 0.5) -> None:
        """Write what is queued; drop it if that is not possible within `seconds`."""
        try:
            self._lines.put(None, timeout=seconds)
        except queue.Full:
            with self._lines.mutex:
                self._lines.queue.clear()
            self._lines.put(None)
        self._thread.join(timeout=seconds)

    def _write(self) -> None:
        try:
            descriptor = self._stderr.fileno()
        except (AttributeError, OSError, ValueError):  # None, closed, or a stream of a notebook or a test
            descriptor = None
        while (line := self._lines.get()) is not None:
            with contextlib.suppress(OSError, ValueError):
                if descriptor is None:
                    self._stderr.write(line)
                    continue
                # Not through the stream: Python would wait for its lock when the process ends.
                content = line.encode(errors="backslashreplace")
                while content:
                    content = content[os.write(descriptor, content) :]


@contextlib.contextmanager
def logging_to_stderr(format: str, level: str) -> Iterator[None]:
    """Write what the server logs at `level` and above, and what libraries log.

    The root logger has the writer too: without it, Python writes the warnings of asyncio to stderr in the thread that
    serves, which would stop if stderr is a pipe that nobody reads.
    """
    handler = _QueuedWriter(_JsonFormatter() if format == "json" else _TextFormatter())
    loggers = [logging.getLogger(name) for name in _NAMES]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(level.upper())
        logger.propagate = False
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        for logger, (old_level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(old_level)
            logger.propagate = propagate
        handler.stop()


def check(format: str, level: str) -> None:
    """Raise `OctavoError` for a format or level that does not exist."""
    for name, value, allowed in (("log_format", format, FORMATS), ("log_level", level, LEVELS)):
        if value not in allowed:
            raise OctavoError(
                f"{name}={value!r} is not one of {', '.join(allowed)}", f"--{name.replace('_', '-')} {allowed[0]}"
            )
