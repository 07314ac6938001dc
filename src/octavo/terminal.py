"""Show the progress of preparing a text and of training: a live display on a terminal, otherwise plain lines."""

import contextlib
import io
import os
import shlex
import shutil
import sys
from types import TracebackType
from typing import IO, TypeVar, cast

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from octavo.data.progress import Preparation, PreparationProgress
from octavo.training import Evaluated, Event, Finished, Notice, Sampled, Saved, Started, Step, TimeEstimate
from octavo.units import escape_control_characters, format_bytes, format_duration


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


_MIN_WIDTH = 40  # columns

T = TypeVar("T")
_PLAIN_INTERVAL = 10  # seconds between plain lines about a preparation


def run_preparation(preparation: Preparation[T], stream: IO[str]) -> T:
    """Run a preparation, drawing its progress, and return its result."""
    with Progress(stream) as progress:
        for event in preparation:
            progress.show(event)
    return preparation.result


class Progress:
    """Shows events as they arrive. A context manager, because the live display must be removed at the end."""

    def __init__(self, stream: IO[str]) -> None:
        self.console = Console(file=cast(IO[str], _Output(stream)), highlight=False, soft_wrap=True)
        if self.console.width < _MIN_WIDTH:  # with COLUMNS=0, rich prints nothing
            self.console.width = _MIN_WIDTH
        self.finished: Finished | None = None
        self.started: Started | None = None
        self._live = Live(console=self.console, transient=True, refresh_per_second=8)
        self._last_sample = ""
        self._val_loss: float | None = None  # of the newest evaluation
        self._interval_start = 0.0  # `seconds` of the preparation event that started the current _PLAIN_INTERVAL

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def show(self, event: Event) -> None:
        """Draw one event."""
        match event:
            case PreparationProgress():
                self._show_preparation(event)
            case Started():
                self._show_start(event)
            case Notice():
                self.console.print(f"[yellow]note:[/] {escape(event.text)}")
            case Step() if self.console.is_terminal:
                self._live.update(self._live_display(event))
            case Step():
                self.console.print(" · ".join(self._step_fields(event)))
            case TimeEstimate():
                self.console.print(
                    f"estimated time {format_duration(event.seconds)}, at {event.tokens_per_second:,.0f} tokens/s"
                )
            case Evaluated():
                mark = " (best)" if event.best else ""
                self._val_loss = event.val_loss
                self.console.print(
                    f"[bold]step {event.step:,}[/] · val loss [bold]{event.val_loss:.4f}[/]{mark} · train loss "
                    f"{event.train_loss:.4f} · {event.bits_per_byte:.3f} bits per byte"
                )
            case Sampled():
                self._last_sample = event.text
                if self.started is not None and event.step == self.started.settings.max_steps:
                    return  # Finished shows all of it
                lines = [line for line in event.text.splitlines() if line.strip()][:4]
                self.console.print(
                    "\n".join(f"[dim]  │ {escape(escape_control_characters(_shorten(line)))}[/]" for line in lines)
                )
            case Saved():
                pass  # too frequent; Finished names the run
            case Finished():
                self._show_end(event)

    def _show_preparation(self, event: PreparationProgress) -> None:
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

    def _show_start(self, event: Started) -> None:
        self.started = event
        s = event.settings
        embeddings = s.n_embd * (s.vocab_size + s.block_size)
        self.console.print(
            f"[bold]{escape(event.run.name)}[/] · {escape(s.source_name)}: {event.train_tokens:,} training tokens, "
            f"{event.val_tokens:,} validation tokens · "
            f"tokenizer {escape(event.tokenizer)}, {event.vocab_size:,} tokens\n"
            f"{event.parameters:,} parameters, {embeddings:,} of them in embeddings · {_count(s.n_layer, 'layer')}, "
            f"{_count(s.n_head, 'head')}, width {s.n_embd}, context {s.block_size} · "
            f"{_format_large(event.flops_per_token)} FLOPs per token\n"
            f"{s.max_steps:,} steps of {s.batch_size * s.block_size:,} tokens, {event.epochs:,.1f} epochs · "
            f"{escape(event.device)}, {event.precision} · about {format_bytes(event.memory_bytes)} of memory"
        )
        if event.step:
            self.console.print(f"resuming after step {event.step:,}")
        if self.console.is_terminal:
            self._live.start()

    def _step_fields(self, event: Step) -> list[str]:
        """Progress first, remaining and elapsed time last."""
        assert self.started is not None
        steps, throughput, peak = self.started.settings.max_steps, event.tokens_per_second, self.started.peak_flops
        mfu = f"{throughput * self.started.flops_per_token / peak:.1%}" if peak else "n/a"
        steps_left = steps - event.step
        if self._val_loss is None:
            tokens_left = steps_left * (event.tokens / event.step)
            seconds_left = tokens_left / max(throughput, 1e-9)
        else:  # more accurate after an evaluation: the elapsed time includes evaluations and checkpoints
            seconds_left = steps_left * event.seconds / event.step
        return [
            f"step {event.step:,}/{steps:,} {event.step / steps:.0%}",
            f"loss {_format_number(event.loss, '.4f')}",
            "val n/a" if self._val_loss is None else f"val {self._val_loss:.4f}",
            f"lr {event.learning_rate:.1e}",
            f"grad {_format_number(event.grad_norm, '.2f')}",
            f"{throughput:,.0f} tokens/s",
            f"MFU {mfu}",
            f"left {format_duration(seconds_left)}",
            f"elapsed {format_duration(event.seconds)}",
        ]

    def _live_display(self, event: Step) -> Table:
        assert self.started is not None
        progress, *fields = self._step_fields(event)
        table = Table.grid(padding=(0, 1))
        table.add_row(progress, ProgressBar(self.started.settings.max_steps, event.step, width=24), *fields[-2:])
        outer = Table.grid()
        outer.add_row(table)
        outer.add_row(" · ".join(fields[:-2]))
        return outer

    def _prompt_flag(self) -> str:
        """--prompt with a word from the last sample: all characters of the word are in the vocabulary."""
        word = next((word for word in self._last_sample.split() if word.isalpha() and len(word) > 1), None)
        return f" --prompt {word}" if word else ""

    def _show_end(self, event: Finished) -> None:
        self.finished = event
        if self.console.is_terminal:
            self._live.stop()
        if self._last_sample and event.reason == "done":
            self.console.print("\n[bold]Sample[/]\n")
            self.console.print(escape(escape_control_characters(self._last_sample.strip("\n"))), "\n")
        reasons = {"done": "done", "stopped": "stopped", "patience": "stopped early, without improvement,"}
        loss = "" if event.val_loss is None else f" · val loss {event.val_loss:.4f}, best {event.best_val_loss:.4f}"
        run = escape(str(event.run))
        self.console.print(
            f"[bold]{reasons[event.reason]}[/] after {_count(event.step, 'step')}, {event.tokens:,} tokens, "
            f"{format_duration(event.seconds)}{loss}\n"
            f"run:     [bold]{run}[/]"
        )
        program = os.path.relpath(sys.argv[0])
        # `make train` runs octavo without activating its environment, so the commands need the path of the program.
        needs_path = os.path.basename(program) == "octavo" and shutil.which("octavo") is None
        octavo = escape(shlex.quote(program)) if needs_path else "octavo"
        run = escape(shlex.quote(str(event.run)))
        resume = f"{octavo} train --resume {run}"
        if event.reason == "stopped":
            self.console.print(f"resume:  {resume}")
        else:
            assert self.started is not None
            self.console.print(
                f"next:    {octavo} sample {run}{self._prompt_flag()}\n"
                f"         {octavo} eval {run}\n"
                f"         {resume} --max-steps {2 * max(1, event.step)}"
            )


def _format_preparation(event: PreparationProgress) -> str:
    rate = event.done / max(event.seconds, 1e-9)
    parts = [event.stage]
    if event.total:
        parts.append(f"{event.done / event.total:.0%} of {event.total / 1e6:,.1f} million characters")
    elif event.done:
        parts.append(f"{event.done / 1e6:,.1f} million characters")
    if event.done:
        parts.append(f"{rate / 1e6:,.1f} million per second")
        if event.total:
            parts.append(f"left {format_duration((event.total - event.done) / rate)}")
    return " · ".join(parts)


def _format_number(number: float | None, form: str) -> str:
    return "not finite" if number is None else format(number, form)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _shorten(line: str) -> str:
    return line if len(line) <= 100 else line[:99] + "…"


def _format_large(number: float) -> str:
    """5.2 million."""
    for large, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if number >= large:
            return f"{number / large:.1f} {name}"
    return f"{number:,.0f}"
