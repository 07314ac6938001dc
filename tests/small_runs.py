"""Training runs that take a second: a text, settings, and functions that read the files of a run."""

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch

import octavo
from octavo import checkpoint, training
from octavo.training.step import Trainer

TEXT = "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs! " * 40
SMALL = dict(
    n_layer=2,
    n_head=2,
    n_embd=16,
    block_size=16,
    batch_size=6,
    max_steps=12,
    warmup_steps=2,
    eval_every=4,
    sample_every=0,
    log_every=1,
    learning_rate=1e-2,
    device="cpu",
    precision="fp32",
)
RECIPE = {name: value for name, value in SMALL.items() if name not in ("n_layer", "n_head", "n_embd")}


def enter_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a small text, `text.txt`, into a folder, and make the folder the working directory of a test."""
    monkeypatch.chdir(folder)
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    return folder


def run_events(stop_after: int | None = None, resume: Path | None = None, **changes: object) -> list[training.Event]:
    """All events of a new or resumed small run, which is stopped after `stop_after` steps, but not in an evaluation."""
    start = {"resume": resume} if resume else {"source": "text.txt", **SMALL}
    end_step, made, asked_at = Trainer.end_step, 0, 0  # steps

    def count_step(trainer: Trainer) -> None:
        nonlocal made
        made += 1
        end_step(trainer)

    def should_stop() -> bool:
        nonlocal asked_at
        is_new, asked_at = made != asked_at, made
        return is_new and made == stop_after

    with mock.patch.object(Trainer, "end_step", count_step):
        return list(training.events(training.plan(**start | changes), should_stop=should_stop))


def kill_after(step: int, events: Iterator[training.Event]) -> None:
    """End training after `step` as if its process had been killed: without the checkpoint that stopping it saves."""
    for event in events:
        if isinstance(event, training.Step) and event.step == step:
            break
    events.close()


def finished_event(events: list[training.Event]) -> training.Finished:
    last = events[-1]
    assert isinstance(last, training.Finished)
    return last


def events_of(events: list[training.Event], kind: type) -> list:
    return [event for event in events if isinstance(event, kind)]


def weights(run: Path) -> dict[str, torch.Tensor]:
    last = octavo.Run(run).last
    assert last is not None
    return dict(checkpoint.load(last).model.state_dict())


def losses(run: Path) -> list[tuple[int, float, float | None]]:
    """(step, loss, validation loss) of each line of metrics.jsonl."""
    return [(line["step"], line["loss"], line.get("val_loss")) for line in octavo.Run(run).lines("metrics")]
