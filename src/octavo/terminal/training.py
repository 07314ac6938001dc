"""Show the events of training: a live display on a terminal, otherwise plain lines."""

import itertools
import math
import os
import shlex
import shutil
import sys
from typing import IO

from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from octavo.progress import PreparationProgress
from octavo.terminal.progress import Progress
from octavo.training import Evaluated, Event, Finished, Notice, Sampled, Saved, Started, Step, TimeEstimate
from octavo.units import escape_control_characters, format_bytes, format_count, format_duration

_STEP_INTERVAL = 5  # seconds between plain lines about steps
_BARS, _SPARKLINE_WIDTH = "▁▂▃▄▅▆▇█", 24


class TrainingProgress(Progress):
    """Shows the events of a run as they arrive."""

    def __init__(self, stream: IO[str]) -> None:
        super().__init__(stream)
        self.finished: Finished | None = None
        self.started: Started | None = None
        self._last_sample = ""
        self._val_loss: float | None = None  # of the newest evaluation
        self._best_step = 0  # of the lowest validation loss
        self._losses: list[float] = []  # of the steps that were shown
        self._has_estimate = False  # whether the remaining time is known
        self._shown_seconds = -math.inf  # `seconds` of the newest step that was printed as a plain line

    def show(self, event: Event) -> None:
        """Draw one event."""
        match event:
            case PreparationProgress():
                super().show(event)
            case Started():
                self._show_start(event)
            case Notice():
                self.console.print(f"[yellow]note:[/] {escape(event.text)}")
            case Step() if self.console.is_terminal:
                self._losses += [] if event.loss is None else [event.loss]
                self._live.update(self._live_display(event))
            case Step():
                self._print_step(event)
            case TimeEstimate():
                self._has_estimate = True
                self.console.print(
                    f"estimated time {format_duration(event.seconds)}, at {event.tokens_per_second:,.0f} tokens/s"
                )
            case Evaluated():
                mark = " (best)" if event.best else ""
                self._val_loss, self._has_estimate = event.val_loss, True
                self._best_step = event.step if event.best else self._best_step
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

    def _show_start(self, event: Started) -> None:
        self.started = event
        s = event.settings
        embeddings = s.n_embd * (s.vocab_size + s.block_size)
        self.console.print(
            f"[bold]{escape(event.run.name)}[/] · {escape(s.source_name)}: "
            f"{format_count(event.train_tokens, 'training token')}, "
            f"{format_count(event.val_tokens, 'validation token')} · "
            f"tokenizer {escape(event.tokenizer)}, {event.vocab_size:,} tokens\n"
            f"{event.parameters:,} parameters, {embeddings:,} of them in embeddings · "
            f"{format_count(s.n_layer, 'layer')}, "
            f"{format_count(s.n_head, 'head')}, width {s.n_embd}, context {s.block_size} · "
            f"{_format_large(event.flops_per_token)} FLOPs per token\n"
            f"{format_count(s.max_steps, 'step')} of {format_count(s.batch_size * s.block_size, 'token')}, "
            f"{_format_epochs(event.epochs)} · "
            f"{escape(event.device)}, {event.precision} · about {format_bytes(event.memory_bytes)} of memory"
        )
        if event.step:
            self.console.print(f"resuming after step {event.step:,}")
        if self.console.is_terminal:
            self._live.start()

    def _print_step(self, event: Step) -> None:
        """Print a plain line: the first and the last step, and one every few seconds."""
        assert self.started is not None
        is_last = event.step == self.started.settings.max_steps
        if is_last or event.seconds - self._shown_seconds >= _STEP_INTERVAL:
            self._shown_seconds = event.seconds
            self.console.print(" · ".join(self._step_fields(event)))

    def _step_fields(self, event: Step) -> list[str]:
        """Progress first, elapsed and remaining time last. What is not known is left out."""
        assert self.started is not None
        steps, throughput, peak = self.started.settings.max_steps, event.tokens_per_second, self.started.peak_flops
        fields = [
            f"step {event.step:,}/{steps:,} {event.step / steps:.0%}",
            f"loss {_format_number(event.loss, '.4f')}",
            None if self._val_loss is None else f"val {self._val_loss:.4f}",
            f"lr {event.learning_rate:.1e}",
            f"grad {_format_number(event.grad_norm, '.2f')}",
            f"{throughput:,.0f} tokens/s",
            f"MFU {throughput * self.started.flops_per_token / peak:.1%}" if peak else None,
            f"elapsed {format_duration(event.seconds)}",
            f"left {format_duration(self._seconds_left(event))}" if self._has_estimate else None,
        ]
        return [field for field in fields if field is not None]

    def _seconds_left(self, event: Step) -> float:
        assert self.started is not None
        steps_left = self.started.settings.max_steps - event.step
        if self._val_loss is None:
            return steps_left * (event.tokens / event.step) / max(event.tokens_per_second, 1e-9)
        # More accurate after an evaluation: the elapsed time includes evaluations and checkpoints.
        return steps_left * event.seconds / event.step

    def _live_display(self, event: Step) -> Table:
        assert self.started is not None
        progress, *fields = self._step_fields(event)
        times = [field for field in fields if field.startswith(("elapsed", "left"))]
        table = Table.grid(padding=(0, 1))
        table.add_row(progress, ProgressBar(self.started.settings.max_steps, event.step, width=24), *times)
        outer = Table.grid()
        outer.add_row(table)
        outer.add_row(" · ".join([*fields[: len(fields) - len(times)], *self._sparkline()]))
        return outer

    def _sparkline(self) -> list[str]:
        """The losses so far as a row of bars, if the terminal can show them."""
        if not self.console.encoding.lower().startswith("utf") or len(self._losses) < 2:
            return []
        return [draw_sparkline(self._losses)]

    def _prompt_flag(self) -> str:
        """--prompt with a word of the text."""
        word = self.started.example_word if self.started is not None else ""
        return f" --prompt {shlex.quote(word)}" if word else ""

    def _show_end(self, event: Finished) -> None:
        self.finished = event
        if self.console.is_terminal:
            self._live.stop()
        if self._last_sample and event.reason == "done":
            self.console.print("\n[bold]Sample[/]\n")
            self.console.print(escape(escape_control_characters(self._last_sample.strip("\n"))), "\n")
        reasons = {
            "done": "done",
            "stopped": "stopped",
            "patience": "stopped early, without improvement,",
        }
        loss = "" if event.val_loss is None else f" · val loss {event.val_loss:.4f}, best {event.best_val_loss:.4f}"
        run = escape(str(event.run))
        self.console.print(
            f"[bold]{reasons[event.reason]}[/] after {format_count(event.step, 'step')}, "
            f"{format_count(event.tokens, 'token')}, "
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
            next_commands = f"next:    {octavo} sample {run}{escape(self._prompt_flag())}\n         {octavo} eval {run}"
            if 0 < self._best_step < event.step:
                self.console.print(
                    f"best:    step {self._best_step:,}; the validation loss rose afterwards, so more text would help, "
                    f"but not more steps. These commands use that checkpoint:\n{next_commands}"
                )
            else:
                self.console.print(f"{next_commands}\n         {resume} --max-steps {2 * max(1, event.step)}")


def draw_sparkline(values: list[float]) -> str:
    """A row of bars, one for each of at most 24 groups of consecutive values: the mean of the group."""
    groups = min(len(values), _SPARKLINE_WIDTH)
    cuts = [round(len(values) * i / groups) for i in range(groups + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(cuts)]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)


def _format_number(number: float | None, form: str) -> str:
    return "not finite" if number is None else format(number, form)


def _shorten(line: str) -> str:
    return line if len(line) <= 100 else line[:99] + "…"


def _format_large(number: float) -> str:
    """5.2 million."""
    for large, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if number >= large:
            return f"{number / large:.1f} {name}"
    return f"{number:,.0f}"


def _format_epochs(epochs: float) -> str:
    return f"{epochs:,.1f} epochs" if epochs >= 0.1 else "less than 0.1 epochs"
