"""Checkpoints are written while training continues: they are of their step, in order, and no failure is silent."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import octavo
import small_runs
from octavo import checkpoint, training
from octavo.checkpoint import TrainerState
from octavo.device import Runtime
from octavo.errors import MachineError, OctavoError, OctavoWarning
from octavo.model import GPT
from octavo.runs import Run, step_of
from octavo.settings import Settings
from octavo.training.checkpoint_writer import CheckpointWriter
from octavo.training.event import Saved
from octavo.training.step import Trainer
from small_runs import events_of, finished_event, losses, weights

SMALL = small_runs.SMALL | {"keep_checkpoints": 0}
SETTINGS = Settings(n_layer=2, n_head=2, n_embd=8, block_size=4, vocab_size=5, batch_size=2, device="cpu")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return small_runs.enter_folder(tmp_path, monkeypatch)


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """A disk on which no checkpoint is written before this event is set. Training that waits for the disk sets it."""
    is_fast, save, wait_result = threading.Event(), Run.save, CheckpointWriter.wait_result

    def save_slowly(*arguments: Any) -> Path:
        if threading.current_thread() is not threading.main_thread():
            assert is_fast.wait(60)
        return save(*arguments)

    def wait(writer: CheckpointWriter) -> Any:
        if writer.is_writing:
            is_fast.set()
        return wait_result(writer)

    monkeypatch.setattr(Run, "save", save_slowly)
    monkeypatch.setattr(CheckpointWriter, "wait_result", wait)
    return is_fast


def run_events(**changes: Any) -> list[training.Event]:
    """All events of a run that saves checkpoints at steps 4, 8 and 12."""
    return small_runs.run_events(**{"keep_checkpoints": 0} | changes)


def fail_saves(steps: set[int], error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let saving the checkpoints of these steps raise an error."""
    save = checkpoint.save

    def save_or_fail(folder: Path, *arguments: Any) -> None:
        if step_of(folder) in steps:
            raise error
        save(folder, *arguments)

    monkeypatch.setattr(checkpoint, "save", save_or_fail)


def steps_before_saved(events: list[training.Event], step: int) -> int:
    """The newest step whose metrics came before the event that the checkpoint of `step` is on disk."""
    saved = next(n for n, event in enumerate(events) if isinstance(event, Saved) and event.step == step)
    return max(event.step for event in events_of(events[:saved], training.Step))


@pytest.mark.parametrize("changes", [{}, {"optimizer": "adamw"}, {"precision": "bf16", "dropout": 0.1}])
def test_a_checkpoint_that_is_written_later_is_of_its_own_step(changes: dict, slow_disk: threading.Event) -> None:
    stopped = finished_event(run_events(stop_after=4, **changes)).checkpoint  # the last one is written at once
    events = []
    for event in training.events(training.plan("text.txt", **SMALL | changes)):
        events.append(event)
        if isinstance(event, training.Step) and event.step == 7:
            run = Run(events_of(events, training.Started)[0].run)
            assert run.last is None  # nothing claims a checkpoint that is not on disk
            slow_disk.set()
    assert steps_before_saved(events, 4) >= 7
    assert [event.step for event in events_of(events, Saved)] == [4, 8, 12]
    assert losses(run.folder) == losses(finished_event(run_events(resume=stopped.parent.parent)).run)


def test_the_copy_is_bit_identical_to_what_is_written_at_once(slow_disk: threading.Event) -> None:
    stopped = finished_event(run_events(stop_after=4)).checkpoint
    copied = None
    for event in training.events(training.plan("text.txt", **SMALL)):
        if isinstance(event, Saved) and event.step == 4:
            copied = event.folder
            break
        if isinstance(event, training.Step) and event.step == 7:
            slow_disk.set()
    assert copied is not None
    for name in ("model.safetensors", "trainer.safetensors", "octavo.json", "config.json", "tokenizer.json"):
        assert (copied / name).read_bytes() == (stopped / name).read_bytes(), name


def test_a_checkpoint_waits_for_the_one_before(slow_disk: threading.Event) -> None:
    events = run_events()
    assert steps_before_saved(events, 4) == 8  # training waited at step 8 until step 4 was saved
    assert [event.step for event in events_of(events, Saved)] == [4, 8, 12]


def test_copies_of_the_weights_wait_too(slow_disk: threading.Event) -> None:
    run = octavo.Run(finished_event(run_events(keep_checkpoints=5)).run)
    assert list(run.checkpoints) == [1, 2, 3, 6, 8, 12]
    for step, path in run.checkpoints.items():
        assert checkpoint.load(path).info["step"] == step


def test_the_end_of_the_iterator_waits_for_the_disk(slow_disk: threading.Event) -> None:
    small_runs.kill_after(6, training.events(training.plan("text.txt", **SMALL)))
    assert [path.name for path in Run("runs/text-1").resumable] == ["step-000004"]
    assert not Run("runs/text-1").is_locked


def test_a_disk_that_fails_meanwhile_is_reported_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = finished_event(run_events(keep_checkpoints=4)).run
    fail_saves({2, 4}, MachineError("the disk is full"), monkeypatch)
    events = run_events(keep_checkpoints=4)
    notices = [event.text for event in events_of(events, training.Notice) if "disk is full" in event.text]
    assert len(notices) == 2
    assert "weights at step 2" in notices[0]
    assert "checkpoint at step 4" in notices[1]
    run = finished_event(events).run
    assert list(Run(run).checkpoints) == [1, 5, 8, 12]
    assert losses(run) == losses(undisturbed)


def test_a_last_checkpoint_that_fails_ends_the_run_with_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_saves({12}, MachineError("the disk is full"), monkeypatch)
    with pytest.raises(MachineError, match="disk is full"):
        run_events()
    assert [path.name for path in Run("runs/text-1").resumable] == ["step-000008", "step-000004"]


@pytest.mark.parametrize("error", [OctavoError("the run folder was removed"), ZeroDivisionError("a bug")])
def test_another_error_of_the_thread_ends_the_run(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_saves({4}, error, monkeypatch)
    with pytest.raises(type(error), match=str(error)):
        run_events()


def test_a_failed_checkpoint_is_not_hidden_by_the_error_that_ends_the_run(
    slow_disk: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_saves({4}, MachineError("the disk is full"), monkeypatch)
    events = training.events(training.plan("text.txt", **SMALL))
    with pytest.warns(OctavoWarning, match="step 4: the disk is full"):
        small_runs.kill_after(5, events)


def test_the_last_good_checkpoint_of_a_diverged_run_is_the_one_being_written(
    slow_disk: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute_gradients = Trainer.compute_gradients

    def compute_nan(self: Trainer, batch: np.ndarray) -> torch.Tensor:
        loss = compute_gradients(self, batch)
        return loss * torch.nan if self.step == 5 else loss

    monkeypatch.setattr(Trainer, "compute_gradients", compute_nan)
    with pytest.raises(OctavoError, match="step-000004"):
        run_events()


def test_without_memory_for_a_copy_training_waits_for_the_disk_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    undisturbed = finished_event(run_events()).run

    def fail(*arguments: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: not enough memory")

    monkeypatch.setattr(CheckpointWriter, "copy", fail)
    events = run_events()
    assert len([event for event in events_of(events, training.Notice) if "memory to copy" in event.text]) == 1
    assert [event.step for event in events_of(events, Saved)] == [4, 8, 12]
    again = finished_event(events).run
    assert all(torch.equal(value, weights(again)[name]) for name, value in weights(undisturbed).items())


def write_copies(writer: CheckpointWriter, trainer: Trainer) -> dict[str, torch.Tensor]:
    """The tensors that a write gets, weights and state, by name."""
    given: dict[str, torch.Tensor] = {}

    def write(model: GPT, state: TrainerState | None) -> None:
        assert state is not None
        given.update(state.tensors | dict(model.named_parameters()))

    state = trainer.state()
    writer.copy(trainer.tensors(state))
    writer.start(trainer.settings, state, write)
    writer.wait_result()
    return given


def test_the_memory_of_the_copy_is_that_of_weights_and_state_and_is_used_again() -> None:
    trainer = Trainer(GPT(SETTINGS), SETTINGS, Runtime(torch.device("cpu")))
    ids = np.zeros((2, 5), dtype=np.int64)
    trainer.update(ids)
    with CheckpointWriter() as writer:
        first = write_copies(writer, trainer)
        before = {name: (value.data_ptr(), value.clone()) for name, value in first.items()}
        originals = trainer.state().tensors | dict(trainer.model.named_parameters())
        assert first.keys() == originals.keys()
        assert not {value.data_ptr() for value in first.values()} & {value.data_ptr() for value in originals.values()}
        trainer.update(ids)
        assert all(torch.equal(first[name], value) for name, (_, value) in before.items())
        second = write_copies(writer, trainer)
        assert {name: value.data_ptr() for name, value in second.items()} == {
            name: pointer for name, (pointer, _) in before.items()
        }
        assert not torch.equal(second["transformer.wte.weight"], before["transformer.wte.weight"][1])


def run_in_thread(write: Callable[[], Saved | None]) -> Saved | None:
    with CheckpointWriter() as writer:
        writer.copy(GPT(SETTINGS).named_parameters())
        writer.start(SETTINGS, None, lambda model, state: write())
        result = writer.wait_result()
        assert writer.wait_result() is writer.take_result() is None  # it is taken once
    return result


def test_a_result_is_taken_once_and_an_error_is_raised_once() -> None:
    saved = Saved(3, Path("step-000003"))
    assert run_in_thread(lambda: saved) == saved

    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError, match="x"):
        run_in_thread(fail)
