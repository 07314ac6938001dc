"""Drawing the events of preparing a text and of training for a person: a live line on a terminal, else plain lines."""

import os
import shutil
import sys
from types import TracebackType
from typing import IO, TypeVar

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from octavo.data.progress import Preparation, PreparationProgress
from octavo.training import Evaluated, Event, Finished, Notice, Sampled, Saved, Started, Step, TimeEstimate
from octavo.units import format_bytes


class _Console(Console):
    """rich's console, but a reader that has gone away (`octavo train | head`) doesn't end the training."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


T = TypeVar("T")
_SELDOM = 10  # seconds between plain lines


def run_preparation(preparation: Preparation[T], stream: IO[str]) -> T:
    """Run a preparation, drawing its progress, and return its result."""
    with Progress(stream) as progress:
        for event in preparation:
            progress.show(event)
    return preparation.result


class Progress:
    """Shows events as they come; a context manager, since a live line must be put away at the end."""

    def __init__(self, stream: IO[str]) -> None:
        self.console = _Console(file=stream, highlight=False, soft_wrap=True)
        self.finished: Finished | None = None
        self.started: Started | None = None
        self._live = Live(console=self.console, transient=True, refresh_per_second=8)
        self._last_sample = ""
        self._val_loss = "n/a"
        self._told = 0.0  # seconds, of what is being prepared, when the last plain line was

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
                self._prepare(event)
            case Started():
                self._begin(event)
            case Notice():
                self.console.print(f"[yellow]note:[/] {escape(event.text)}")
            case Step() if self.console.is_terminal:
                self._live.update(self._status(event))
            case Step():
                self.console.print(" · ".join(self._numbers(event)))
            case TimeEstimate():
                self.console.print(f"about {clock(event.seconds)} in all, at {event.tokens_per_second:,.0f} tokens/s")
            case Evaluated():
                mark = " (best)" if event.best else ""
                self._val_loss = f"{event.val_loss:.4f}"
                self.console.print(
                    f"[bold]step {event.step:,}[/] · val loss [bold]{event.val_loss:.4f}[/]{mark} · train loss "
                    f"{event.train_loss:.4f} · {event.bits_per_byte:.3f} bits per byte"
                )
            case Sampled():
                self._last_sample = event.text
                if self.started is not None and event.step == self.started.settings.max_steps:
                    return  # the end shows the whole of it
                lines = [line for line in event.text.splitlines() if line.strip()][:4]
                self.console.print("\n".join(f"[dim]  │ {escape(_shortened(line))}[/]" for line in lines))
            case Saved():
                pass  # every evaluation saves; the end names the folder
            case Finished():
                self._end(event)

    def _prepare(self, event: PreparationProgress) -> None:
        line = _preparation(event)
        if self.console.is_terminal:
            self._live.start()
            self._live.update(line)
        elif not 0 <= event.seconds - self._told < _SELDOM:
            self._told = event.seconds
            if event.seconds >= _SELDOM:  # a text that is done sooner needs no word
                self.console.print(line)

    def _begin(self, event: Started) -> None:
        self.started = event
        s = event.settings
        tables = s.n_embd * (s.vocab_size + s.block_size)
        self.console.print(
            f"[bold]{escape(event.run.name)}[/] · {escape(s.source)}: {event.train_tokens:,} tokens to train on, "
            f"{event.val_tokens:,} to validate · tokenizer {escape(event.tokenizer)} ({event.vocab_size:,} tokens)\n"
            f"{event.parameters:,} parameters: {tables:,} in the embeddings, the rest in "
            f"{_counted(s.n_layer, 'layer')}, {_counted(s.n_head, 'head')}, {s.n_embd} wide, block {s.block_size} · "
            f"{_amount(event.flops_per_token)}FLOPs a token\n"
            f"{s.max_steps:,} steps of {s.batch_size * s.block_size:,} tokens, {event.epochs:,.1f} passes over the "
            f"text · {escape(event.device)}, {event.precision} · about {format_bytes(event.memory_bytes)} of memory"
        )
        if event.step:
            self.console.print(f"going on after step {event.step:,}")
        if self.console.is_terminal:
            self._live.start()

    def _numbers(self, event: Step) -> list[str]:
        assert self.started is not None
        steps = self.started.settings.max_steps
        speed = event.tokens_per_second
        peak = self.started.peak_flops
        mfu = f"{speed * self.started.flops_per_token / peak:.1%}" if peak else "n/a"
        if self._val_loss == "n/a":
            left = (steps - event.step) * (event.tokens / event.step) / max(speed, 1e-9)
        else:  # evaluating and saving take their time too
            left = (steps - event.step) * event.seconds / event.step
        return [
            f"step {event.step:,}/{steps:,} {event.step / steps:.0%}", f"loss {event.loss:.4f}",
            f"val {self._val_loss}",
            f"lr {event.learning_rate:.1e}", f"grad {event.grad_norm:.2f}", f"{speed:,.0f} tokens/s", f"MFU {mfu}",
            f"left {clock(left)}", f"elapsed {clock(event.seconds)}",
        ]  # fmt: skip

    def _status(self, event: Step) -> Table:
        assert self.started is not None
        progress, *numbers = self._numbers(event)
        table = Table.grid(padding=(0, 1))
        table.add_row(progress, ProgressBar(self.started.settings.max_steps, event.step, width=24), *numbers[-2:])
        outer = Table.grid()
        outer.add_row(table)
        outer.add_row(" · ".join(numbers[:-2]))
        return outer

    def _prompt(self) -> str:
        """A prompt to offer: a word that the model wrote, so that its tokenizer knows every character."""
        word = next((word for word in self._last_sample.split() if word.isalpha() and len(word) > 1), None)
        return f" --prompt {word}" if word else ""

    def _end(self, event: Finished) -> None:
        self.finished = event
        if self.console.is_terminal:
            self._live.stop()
        if self._last_sample and event.reason == "done":
            self.console.print("\n[bold]What it writes now[/]\n")
            self.console.print(escape(self._last_sample.strip("\n")), "\n")
        how = {"done": "done", "stopped": "stopped", "patience": "no better for a while, so it ended"}[event.reason]
        loss = "" if event.val_loss is None else f" · val loss {event.val_loss:.4f}, best {event.best_val_loss:.4f}"
        run = escape(str(event.run))
        self.console.print(
            f"[bold]{how}[/] after {_counted(event.step, 'step')}, {event.tokens:,} tokens, "
            f"{clock(event.seconds)}{loss}\n"
            f"the run: [bold]{run}[/]"
        )
        # `make train` doesn't leave its environment active, so what is offered must say where it lies.
        here = os.path.relpath(sys.argv[0])
        octavo = escape(here) if not shutil.which("octavo") and os.path.basename(here) == "octavo" else "octavo"
        goes_on = f"{octavo} train --resume {run}"
        if event.reason == "stopped":
            self.console.print(f"go on:   {goes_on}")
        else:
            assert self.started is not None
            self.console.print(
                f"next:    {octavo} sample {run}{self._prompt()}\n"
                f"         {octavo} eval {run}\n"
                f"         {goes_on} --max-steps {2 * max(1, event.step)}"
            )


def _preparation(event: PreparationProgress) -> str:
    """Doing what, how much of how much, how fast, how long still."""
    rate = event.done / max(event.seconds, 1e-9)
    parts = [event.stage]
    if event.total:
        parts.append(f"{event.done / event.total:.0%} of {event.total / 1e6:,.1f} million characters")
    elif event.done:
        parts.append(f"{event.done / 1e6:,.1f} million characters")
    if event.done:
        parts.append(f"{rate / 1e6:,.1f} million a second")
        if event.total:
            parts.append(f"left {clock((event.total - event.done) / rate)}")
    return " · ".join(parts)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _shortened(line: str) -> str:
    return line if len(line) <= 100 else line[:99] + "…"


def _amount(number: float) -> str:
    """5.2 million, with the space after it."""
    for large, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if number >= large:
            return f"{number / large:.1f} {name} "
    return f"{number:,.0f} "


def clock(seconds: float) -> str:
    """1:05, or 2:03:04, or 5 days."""
    if seconds >= 48 * 3600:
        return f"{seconds / 86400:,.0f} days"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
