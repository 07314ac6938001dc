"""Which checkpoints of a run are kept, and in which order they are written and removed."""

import contextlib
import dataclasses
import itertools
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

from octavo import checkpoint, runs
from octavo.checkpoint import TrainerState
from octavo.errors import OctavoError
from octavo.runs import Run
from octavo.settings import Settings
from preparing import error_of
from run_folders import SETTINGS, TOKENIZER, law, model_of, save

pytestmark = pytest.mark.usefixtures("empty_workdir")


@law
@hypothesis.given(max_steps=st.integers(0, 10**6), keep=st.integers(0, 60))
@hypothesis.example(max_steps=1, keep=1)
@hypothesis.example(max_steps=900, keep=10)
def test_kept_steps_are_log_spaced(max_steps: int, keep: int) -> None:
    kept = sorted(Settings(max_steps=max_steps, keep_checkpoints=keep).log_spaced_steps)
    assert len(kept) <= keep
    if not keep or not max_steps:
        assert kept == []
        return
    assert kept[0] == 1
    assert kept[-1] == (max_steps if keep > 1 else 1)
    factor = max_steps ** (1 / max(keep - 1, 1))
    for before, after in itertools.pairwise(kept):
        assert after <= (before + 0.5) * factor + 0.5  # both are rounded


@hypothesis.settings(law, max_examples=15, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(
    saved=st.lists(st.tuples(st.integers(1, 20), st.booleans()), min_size=1, max_size=7), keep=st.integers(0, 4)
)
@hypothesis.example(saved=[(1, True), (1, False), (1, False), (1, True)], keep=0)  # the former best has only weights
def test_only_last_best_and_log_spaced_checkpoints_are_kept(
    saved: list[tuple[int, bool]], keep: int, empty_workdir: Path
) -> None:
    """Save as training does. `saved` lists (steps since the previous save, whether this one is the best)."""
    shutil.rmtree(empty_workdir / "run", ignore_errors=True)
    total = sum(more for more, _ in saved)
    settings = Settings(**{**vars(SETTINGS), "max_steps": total, "keep_checkpoints": keep})
    run = Run.create(settings, "corpus", out=empty_workdir / "run")
    log_spaced = settings.log_spaced_steps
    step, best, resumable = 0, None, list[int]()
    for more, is_best in saved:
        for between in sorted(log_spaced & set(range(step + 1, step + more))):
            save(run, between, weights_only=True, settings=settings)
        step += more
        best = step if is_best else best
        resumable = [*resumable, step][-2:]
        save(run, step, best=is_best, settings=settings)
        passed = {each for each in log_spaced if each <= step}
        assert set(run.checkpoints) == passed | set(resumable) | ({best} if best else set())
        assert run.last == run.folder / "checkpoints" / f"step-{step:06d}"
        assert run.best == (run.folder / "checkpoints" / f"step-{best:06d}" if best else None)
    for kept, folder in run.checkpoints.items():
        loaded = checkpoint.load(folder)
        assert loaded.info["step"] == kept
        assert torch.equal(loaded.model.lm_head.weight, model_of(kept).lm_head.weight)
        assert (folder / "trainer.json").exists() == (folder / "trainer.safetensors").exists() == (kept in resumable)
    assert [runs.step_of(folder) for folder in run.resumable] == resumable[::-1]
    assert set((run.folder / "checkpoints").iterdir()) == set(run.checkpoints.values())


def test_the_last_two_hold_the_trainer_state() -> None:
    run = Run.create(SETTINGS, "corpus")
    first, second, third = save(run, 10, best=True), save(run, 20), save(run, 30)
    assert (run.best, run.last) == (first, third)
    assert run.resumable == [third, second]
    assert checkpoint.load_trainer(third).values == {"step": 30}
    assert checkpoint.load_trainer(second).values == {"step": 20}
    with pytest.raises(OctavoError, match="only weights"):
        checkpoint.load_trainer(first)
    checkpoint.load(first)


def test_the_newest_checkpoint_is_resumable_even_if_no_pointer_names_it() -> None:
    """A process was killed after it had written the checkpoint and before it wrote `last`."""
    run = Run.create(SETTINGS, "corpus")
    first, second, third = save(run, 10), save(run, 20), save(run, 30)
    checkpoint.save(first, model_of(10), TOKENIZER, SETTINGS, {"step": 10}, TrainerState({"x": torch.zeros(1)}))
    (run.folder / "last").write_text("step-000010")
    assert run.resumable == [third, second, first]
    shutil.rmtree(third)
    (run.folder / "last").write_text("step-000030")
    assert run.resumable == [third, second, first]  # so that a message says that it is missing


@hypothesis.given(
    saved=st.sets(st.integers(1, 9), min_size=1), best=st.integers(0, 9), weights_only=st.sets(st.integers(1, 9))
)
@hypothesis.example(saved={3, 5}, best=3, weights_only=set())  # the run is rewound to its best checkpoint
@hypothesis.settings(law, max_examples=15, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_a_run_that_is_rewound_has_nothing_later_and_everything_before(
    saved: set[int], best: int, weights_only: set[int], empty_workdir: Path
) -> None:
    shutil.rmtree(empty_workdir / "run", ignore_errors=True)
    settings = dataclasses.replace(SETTINGS, max_steps=9, keep_checkpoints=4)
    run = Run.create(settings, "corpus", out=empty_workdir / "run")
    for step in range(1, 10):
        run.log("metrics", {"step": step})
        if step in saved | weights_only:
            save(run, step, step == best, weights_only=step not in saved, settings=settings)
    before, best_before = dict(run.checkpoints), run.best
    step = runs.step_of(run.resumable[-1])
    run.rewind(step)
    assert [line["step"] for line in run.lines("metrics")] == list(range(1, step + 1))
    assert list(run.checkpoints) == [each for each in before if each <= step]
    assert run.last == run.resumable[0] == before[step]
    assert run.best == (best_before if best_before and runs.step_of(best_before) <= step else None)


def test_a_rewind_removes_the_lines_of_its_step_if_they_are_written_again() -> None:
    run = Run.create(SETTINGS, "corpus")
    for step in range(1, 6):
        run.log("metrics", {"step": step})
    save(run, 4)
    run.rewind(4, keep_line=False)
    assert [line["step"] for line in run.lines("metrics")] == [1, 2, 3]


def test_a_checkpoint_that_cannot_be_removed_does_not_fail_the_save(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.create(SETTINGS, "corpus")
    for step in (10, 20):
        save(run, step)

    def fail(folder: Path) -> None:
        raise OctavoError(f"{folder} is read-only", "another disk")

    with monkeypatch.context() as patch:
        patch.setattr("octavo.files.remove_folder", fail)
        save(run, 30)
    assert list(run.checkpoints) == [10, 20, 30]
    save(run, 40)
    assert list(run.checkpoints) == [30, 40]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc names the file of a descriptor")
def test_each_removal_of_a_rewind_is_on_disk_before_the_logs_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a power loss could bring back a checkpoint whose lines are gone."""
    run = Run.create(SETTINGS, "corpus")
    for step in (10, 20, 30):
        run.log("metrics", {"step": step})
        save(run, step, best=True)
    unflushed: set[Path] = set()  # folders with a change that a power loss would undo
    replace, unlink, fsync = os.replace, Path.unlink, os.fsync

    def trace_replace(source: Path, target: Path) -> None:
        assert target.name != "metrics.jsonl" or not unflushed
        replace(source, target)
        unflushed.add(target.parent.resolve())

    def trace_unlink(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok)
        unflushed.add(path.parent.resolve())

    def trace_fsync(descriptor: int) -> None:
        fsync(descriptor)
        unflushed.discard(Path(os.readlink(f"/proc/self/fd/{descriptor}")))

    monkeypatch.setattr(os, "replace", trace_replace)
    monkeypatch.setattr(Path, "unlink", trace_unlink)
    monkeypatch.setattr(os, "fsync", trace_fsync)
    run.rewind(20)
    assert (list(run.checkpoints), run.last, run.best) == ([20], run.checkpoints[20], None)
    assert not unflushed


@pytest.mark.skipif(sys.platform != "linux", reason="/proc names the file of a descriptor")
def test_both_logs_are_on_disk_before_a_checkpoint_gets_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a power loss could leave a checkpoint without the lines before its step."""
    run = Run.create(SETTINGS, "corpus")
    for kind in ("metrics", "samples"):
        run.log(kind, {"step": 10})
    events: list[str] = []
    replace, fsync = os.replace, os.fsync

    def trace_replace(source: Path, target: Path) -> None:
        events.append(Path(target).name)
        replace(source, target)

    def trace_fsync(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(os, "replace", trace_replace)
    monkeypatch.setattr(os, "fsync", trace_fsync)
    save(run, 10)
    assert {"metrics.jsonl", "samples.jsonl"} <= set(events[: events.index("step-000010")])


def test_a_checkpoint_is_the_best_only_if_the_caller_says_so() -> None:
    run = Run.create(SETTINGS, "corpus")
    run.save(10, model_of(10), TOKENIZER, SETTINGS, {"step": 10}, TrainerState({"x": torch.zeros(1)}))
    assert (run.last, run.best) == (run.checkpoints[10], None)


def test_a_save_into_a_run_folder_that_was_removed_names_the_folder() -> None:
    run = Run.create(SETTINGS, "corpus")
    shutil.rmtree(run.folder)
    assert str(run.folder) in error_of(lambda: save(run, 10)).message
    assert not run.folder.exists()


def test_saving_a_step_again_replaces_its_checkpoint() -> None:
    run = Run.create(SETTINGS, "corpus")
    for step in (10, 20, 20):
        save(run, step, best=True)
    assert list(run.checkpoints) == [10, 20]
    assert checkpoint.load_trainer(run.last or Path()).values == {"step": 20}


def test_steps_beyond_six_digits_are_sorted_by_number() -> None:
    run = Run.create(SETTINGS, "corpus")
    for step in (999_999, 1_000_000, 100):
        save(run, step, weights_only=True)
    assert list(run.checkpoints) == [100, 999_999, 1_000_000]


def test_a_crash_before_the_pointers_are_written_keeps_the_previous_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.create(SETTINGS, "corpus")
    before = save(run, 10, best=True)

    def crash(path: Path, content: str) -> None:
        raise RuntimeError("crash")

    monkeypatch.setattr("octavo.files.write_atomic", crash)
    with pytest.raises(RuntimeError, match="crash"):
        save(run, 20, best=True)
    assert run.last == run.best == before
    assert checkpoint.load_trainer(before).values == {"step": 10}


@pytest.mark.parametrize("name", ["step-000010-good", "step-x", "step-"])
def test_other_folders_beside_the_checkpoints_are_left_alone(name: str) -> None:
    run = Run.create(SETTINGS, "corpus")
    mine = run.folder / "checkpoints" / name
    shutil.copytree(save(run, 10), mine)
    for step in (20, 30):
        save(run, step)
    assert list(run.checkpoints) == [20, 30]
    checkpoint.load(mine)


@pytest.mark.parametrize("pointer", ["best", "last"])
@pytest.mark.parametrize(
    "content",
    ["", "\n", "../../thesis", "/thesis", "..", ".", "step-", "step-1", "step-000010/../../x", "x" * 5000, "\0"],
)
def test_a_damaged_pointer_removes_nothing(pointer: str, content: str, empty_workdir: Path) -> None:
    (empty_workdir / "thesis").mkdir()
    (empty_workdir / "thesis" / "chapter.txt").write_text("precious", encoding="utf-8")
    run = Run.create(SETTINGS, "corpus")
    save(run, 10, best=True)
    (run.folder / pointer).write_text(content.replace("/thesis", str(empty_workdir / "thesis"), content == "/thesis"))
    assert getattr(run, pointer) is None
    save(run, 20, best=True)
    assert (empty_workdir / "thesis" / "chapter.txt").read_text(encoding="utf-8") == "precious"
    assert list(run.checkpoints) == [10, 20]
    assert run.last == run.best == run.checkpoints[20]


def test_a_pointer_of_random_bytes_is_damaged() -> None:
    run = Run.create(SETTINGS, "corpus")
    save(run, 10)
    (run.folder / "last").write_bytes(b"\xffstep-000010")
    assert run.last is None


def test_a_pointer_that_is_removed_while_it_is_read_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.create(SETTINGS, "corpus")
    monkeypatch.setattr(Path, "is_file", lambda path: True)  # it still was there
    assert (run.last, run.best) == (None, None)


def test_a_checkpoint_that_a_killed_process_left_behind_is_removed_by_a_later_save() -> None:
    run = Run.create(SETTINGS, "corpus")
    orphan = shutil.copytree(save(run, 10), run.folder / "checkpoints" / "step-000011")
    for step in (20, 30, 40):
        save(run, step)
    assert not Path(orphan).exists()
    assert list(run.checkpoints) == [30, 40]


def test_an_interrupted_removal_is_finished_and_an_interrupted_replacement_undone() -> None:
    run = Run.create(SETTINGS, "corpus")
    save(run, 10, best=True)
    last = save(run, 20)
    (run.folder / "checkpoints" / ".step-000005.removed").mkdir()  # a part of it is gone already
    last.rename(last.with_name(".step-000020.removed"))  # a new version of it was about to take its place
    with run.lock():
        assert list(run.checkpoints) == [10, 20]
    assert checkpoint.load_trainer(last).values == {"step": 20}


@pytest.mark.parametrize("trainer", [True, False])
def test_a_run_folder_that_is_moved_during_a_save_is_not_created_again(
    trainer: bool, empty_workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    moved_at = -1

    def count_and_move(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            calls.append(function.__name__)
            if len(calls) == moved_at:
                shutil.move(run.folder, empty_workdir / "elsewhere")
            return function(*arguments, **keywords)

        return call

    for name in ("mkdir", "fsync", "open", "replace", "stat"):
        monkeypatch.setattr(os, name, count_and_move(getattr(os, name)))
    run = Run.create(SETTINGS, "corpus")
    run.log("metrics", {"step": 10})
    calls.clear()
    save(run, 10, weights_only=not trainer)
    total = len(calls)
    assert "mkdir" in calls
    for moved_at in range(1, total + 1):
        run = Run.create(SETTINGS, "corpus", out=empty_workdir / f"run-{moved_at}")
        run.log("metrics", {"step": 10})
        calls.clear()
        with contextlib.suppress(OctavoError):  # after the last write nothing fails
            save(run, 10, weights_only=not trainer)
        assert not run.folder.exists()
        shutil.rmtree(empty_workdir / "elsewhere")


def test_a_run_that_is_resumed_removes_what_its_last_checkpoint_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process was killed between writing the pointers and removing the checkpoint before the last two."""
    run = Run.create(SETTINGS, "corpus")
    for step in (10, 20):
        save(run, step, best=True)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "_remove_old", lambda *_: None)
        save(run, 30, best=True)
    assert list(run.checkpoints) == [10, 20, 30]
    (run.folder / "best").write_text("step-000020\n")
    run.rewind(30, is_best=True)
    assert list(run.checkpoints) == [20, 30]
    assert run.best == run.last == run.checkpoints[30]
