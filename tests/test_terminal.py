"""What the terminal shows of a run: known values only, advice that agrees with itself, one line every few seconds."""

import dataclasses
import io
import re
from pathlib import Path
from typing import Any

import pytest

from commands import RunCommand
from octavo import training
from octavo.progress import PreparationProgress, ProgressReporter
from octavo.terminal.progress import Progress
from octavo.terminal.training import TrainingProgress, draw_sparkline
from octavo.training import Evaluated, Finished, Sampled, Started, Step, TimeEstimate
from octavo.training.setup import set_up
from preparing import write

LONG = "The quick brown fox jumps over the lazy dog, and the cat sleeps. "


class Terminal(io.StringIO):
    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


def started(**changes: Any) -> Started:
    settings = dataclasses.replace(training.plan("text.txt").settings, max_steps=100, vocab_size=50)
    values = dict(
        run=Path("runs/my-1"),
        settings=settings,
        step=0,
        parameters=1000,
        device="cpu (1 thread)",
        precision="fp32",
        tokenizer="char",
        vocab_size=50,
        train_tokens=1000,
        val_tokens=100,
        epochs=3.0,
        flops_per_token=100,
        peak_flops=None,
        memory_bytes=10**8,
        example_word="fox",
    )
    return Started(**(values | changes))


def step(number: int, seconds: float, loss: float = 3.0) -> Step:
    return Step(number, 10 * number, seconds, loss, 1e-3, 0.5, 100.0, None, 0, 0, 0)


def finished(number: int, reason: str = "done") -> Finished:
    folder = Path("runs/my-1")
    return Finished(folder, folder, number, 10 * number, 2.0, 2.0, 1.9, 9.0, 100.0, 1000, reason)


def show(*events: Any, stream: io.StringIO | None = None) -> str:
    stream = stream or io.StringIO()
    with TrainingProgress(stream) as progress:
        for event in events:
            progress.show(event)
    return stream.getvalue()


def test_what_is_not_known_is_left_out() -> None:
    first, second = show(started(), step(1, 5.0), TimeEstimate(60, 100.0), step(2, 11.0)).splitlines()[-3::2]
    assert "n/a" not in first + second
    assert "left" not in first
    assert "left" in second
    assert "MFU" not in second
    assert "MFU" in show(started(peak_flops=1e6), step(1, 5.0))


def test_a_sample_shows_control_characters() -> None:
    """A text that a model has learned from may have escape sequences, which a terminal would obey."""
    text = show(started(), step(1, 5.0), Sampled(1, "one\x1b]0;title\x07two"), finished(1))
    assert "one\\x1b]0;title\\x07two" in text


def test_plain_lines_come_every_few_seconds() -> None:
    steps = [step(number, number / 2) for number in range(1, 101)]
    lines = [line for line in show(started(), *steps).splitlines() if line.startswith("step")]
    assert [int(re.findall(r"step (\d+)", line)[0]) for line in lines] == [*range(1, 100, 10), 100]


def test_the_next_commands_agree_with_the_losses() -> None:
    improving = [Evaluated(50, 2.0, 2.1, 3.0, True), Evaluated(100, 1.5, 2.0, 2.9, True)]
    rising = [Evaluated(50, 2.0, 2.1, 3.0, True), Evaluated(100, 1.5, 2.5, 3.4, False)]
    assert "--resume" in show(started(), *improving, finished(100))
    for reason in ("done", "patience"):
        text = show(started(), *rising, finished(100, reason))
        assert "--resume" not in text
        assert "best:    step 50" in text
    assert "octavo sample runs/my-1 --prompt fox" in text


def test_lines_are_wrapped_between_words_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", show(started(), stream=Terminal()))
    words = show(started()).split()
    assert [word for word in text.split() if word] == words


def test_one_step_of_one_token_is_singular() -> None:
    settings = dataclasses.replace(started().settings, max_steps=1, batch_size=1, block_size=1)
    assert "1 step of 1 token," in show(started(settings=settings))


def test_a_sparkline_has_a_bar_for_each_group_of_losses() -> None:
    assert draw_sparkline([4.0, 3.0, 2.0, 1.0]) == "█▆▃▁"
    assert draw_sparkline([1.0, 1.0]) == "▁▁"
    falling = draw_sparkline([10.0 - i / 100 for i in range(1000)])
    assert (len(falling), falling[0], falling[-1]) == (24, "█", "▁")
    assert list(falling) == sorted(falling, reverse=True)


def test_a_small_text_stops_early_with_one_note(run_command: RunCommand, workdir: Path) -> None:
    write(workdir / "small.txt", LONG * 10)
    shape = ["--n-layer", 1, "--n-head", 1, "--n-embd", 8, "--block-size", 16, "--batch-size", 16, "--device", "cpu"]
    result = run_command("train", "small.txt", *shape)
    advice = [line for line in (result.out + result.err).splitlines() if "epochs" in line and "note" in line]
    assert len(advice) == 1
    assert "validation loss no longer falls" in advice[0]
    (prompt,) = re.findall(r"--prompt (\S+)", result.out)
    assert prompt in LONG.split()


def test_patience_and_eval_every_of_the_user_are_kept(workdir: Path) -> None:
    write(workdir / "small.txt", LONG * 10)
    for given in ({"patience": 0}, {"patience": 7}, {"eval_every": 50}):
        settings = set_up(training.plan("small.txt", device="cpu", block_size=16, **given)).result.settings
        assert settings.patience == given.get("patience", 0)
        assert settings.eval_every == given.get("eval_every", settings.eval_every)


def test_an_evaluation_reports_tokens() -> None:
    text = show(PreparationProgress("evaluating", 500_000, 2_000_000, 10.0, "tokens"))
    assert text.split(" · ") == ["evaluating", "25% of 2.0 million tokens", "50,000 per second", "left 0:30\n"]


@pytest.mark.parametrize(
    ("done", "total", "unit", "line"),
    [
        (3 * 10**6, 12 * 10**6, "bytes", "25% of 12 MB · 2 MB per second · left 0:06"),
        (3 * 10**6, None, "bytes", "3 MB · 2 MB per second"),
        (3, 12, "layers", "25% of 12 layers · 1.5 per second · left 0:06"),
        (10**6, 4 * 10**6, "characters", "25% of 4.0 million characters · 0.5 million per second · left 0:06"),
    ],
)
def test_progress_has_a_rate_and_the_time_left_in_its_unit(done: int, total: int | None, unit: str, line: str) -> None:
    stream = Terminal()
    with Progress(stream) as progress:
        progress.show(PreparationProgress("working", done, total, 2.0, unit))
    assert line in " ".join(stream.getvalue().split()), stream.getvalue()


def test_reported_work_is_drawn_while_a_display_is_open() -> None:
    stream = Terminal()
    with Progress(stream):
        ProgressReporter("downloading a.txt", 2, "bytes")(2)
    ProgressReporter("downloading b.txt", 2, "bytes")(2)
    assert "downloading a.txt" in stream.getvalue()
    assert "b.txt" not in stream.getvalue()
