"""Show the progress of long work, such as preparing a text: a live line on a terminal, otherwise plain lines."""

import contextlib
import io
from types import TracebackType
from typing import IO, Self, cast

from rich.console import Console
from rich.live import Live

from octavo.progress import PreparationProgress, listen
from octavo.units import format_bytes, format_duration

_MIN_WIDTH = 40  # columns
_PLAIN_INTERVAL = 10  # seconds between plain lines


class Progress:
    """Shows the progress of the work in a `with` block, as the listener of its thread (see `octavo.progress`).

    The live display is removed at the end of the block.
    """

    def __init__(self, stream: IO[str]) -> None:
        output = cast(IO[str], _Output(stream))
        # On a terminal, lines are wrapped between words; a file or a pipe gets them whole.
        self.console = Console(file=output, highlight=False, soft_wrap=not output.isatty())
        if self.console.width < _MIN_WIDTH:  # with COLUMNS=0, rich prints nothing
            self.console.width = _MIN_WIDTH
        self._live = Live(console=self.console, transient=True, refresh_per_second=8)
        self._listening = contextlib.ExitStack()
        self._interval_start = 0.0  # `seconds` of the event that started the current _PLAIN_INTERVAL

    def __enter__(self) -> Self:
        self._listening.enter_context(listen(self.show))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listening.close()
        if self.console.is_terminal:
            self._live.stop()

    def show(self, event: PreparationProgress) -> None:
        """Draw the progress of a stage."""
        line = _format_preparation(event)
        if self.console.is_terminal:
            self._live.start()
            self._live.update(line)
            return
        is_new_stage = event.seconds < self._interval_start  # seconds start at 0 again
        if is_new_stage or event.seconds - self._interval_start >= _PLAIN_INTERVAL:
            self._interval_start = event.seconds
            if event.seconds >= _PLAIN_INTERVAL:  # a short preparation prints nothing
                self.console.print(line)


def _format_preparation(event: PreparationProgress) -> str:
    rate = event.done / max(event.seconds, 1e-9)
    parts = [event.stage]
    if event.total:
        parts.append(f"{event.done / event.total:.0%} of {_format_amount(event.total, event.unit)}")
    elif event.done:
        parts.append(_format_amount(event.done, event.unit))
    if event.done:
        parts.append(f"{_format_amount(rate, event.unit).removesuffix(f' {event.unit}')} per second")
        if event.total:
            parts.append(f"left {format_duration((event.total - event.done) / rate)}")
    return " · ".join(parts)


def _format_amount(count: float, unit: str) -> str:
    if unit == "bytes":
        return format_bytes(count)
    if count >= 1e5:
        return f"{count / 1e6:,.1f} million {unit}"
    return f"{count:,.0f} {unit}" if count >= 10 or count == int(count) else f"{count:,.1f} {unit}"


class _Output(io.TextIOBase):
    """A stream that never raises: a closed pipe (`| head`) or a full disk must not end the training."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return str(getattr(self._stream, "encoding", None) or "utf-8")

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()
