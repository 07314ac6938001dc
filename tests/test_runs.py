"""The run folder: names, the lock, retention of checkpoints, logs, and finding a run."""

import dataclasses
import errno
import itertools
import json
import os
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

import octavo
from folders import contents, system_call_error
from octavo import checkpoint, files, runs, tokenizers
from octavo.checkpoint import TrainerState
from octavo.errors import OctavoError, OctavoWarning
from octavo.model import GPT
from octavo.runs import Run, find_checkpoint, log_spaced_steps
from octavo.settings import Settings
from preparing import error_of

TOKENIZER = tokenizers.build("char", "ab\n")
SETTINGS = Settings(n_layer=1, n_head=1, n_embd=4, block_size=4, vocab_size=3, max_steps=100, keep_checkpoints=0)
law = hypothesis.settings(derandomize=True, deadline=None, max_examples=40)


@pytest.fixture(autouse=True)
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, in which `runs/` is created."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def model_of(step: int) -> GPT:
    """Different weights for every step."""
    return GPT(SETTINGS, torch.Generator().manual_seed(step)).eval()


def save(run: Run, step: int, best: bool = False, weights_only: bool = False, settings: Settings = SETTINGS) -> Path:
    """Save the checkpoint of a step."""
    state = None if weights_only else TrainerState({"x": torch.zeros(1)}, {"step": step})
    return run.save(step, model_of(step), TOKENIZER, settings, {"step": step}, state, best)


# Names


def test_runs_of_a_corpus_are_numbered() -> None:
    assert [Run.create(SETTINGS, "corpus").folder for _ in range(11)] == [
        Path("runs", f"corpus-{number}") for number in range(1, 12)
    ]
    assert Run.create(SETTINGS, "other").folder == Path("runs", "other-1")


def test_a_run_number_is_never_reused() -> None:
    for _ in range(3):
        Run.create(SETTINGS, "corpus")
    shutil.rmtree("runs/corpus-2")
    assert Run.create(SETTINGS, "corpus").folder == Path("runs/corpus-4")


@pytest.mark.parametrize(
    "stray",
    ["corpus-", "corpus-x", "corpus-9b", "corpus", "corpus-5-6", "other-9", "xcorpus-9", "corpus-²", ".corpus-9"],
)
def test_other_folder_names_do_not_count_as_numbered_runs(stray: str) -> None:
    Path("runs", stray).mkdir(parents=True)
    assert Run.create(SETTINGS, "corpus").folder == Path("runs/corpus-1")


def test_a_name_that_is_only_a_number_does_not_count() -> None:
    Path("runs/2024").mkdir(parents=True)
    assert Run.create(SETTINGS, "corpus").folder == Path("runs/corpus-1")


def test_a_file_with_a_run_name_is_not_overwritten() -> None:
    Path("runs").mkdir()
    Path("runs/corpus-1").write_text("mine", encoding="utf-8")
    assert Run.create(SETTINGS, "corpus").folder == Path("runs/corpus-2")
    assert Path("runs/corpus-1").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("name", ["a", "my-run_2.0+b", "7", "опыт"])
def test_an_explicit_name_is_used_unchanged(name: str) -> None:
    run = Run.create(SETTINGS, "corpus", name=name)
    assert run.folder == Path("runs", name)
    save(run, 10)
    error = error_of(lambda: Run.create(SETTINGS, "corpus", name=name))
    assert f"runs/{name} already exists" in error.message.replace("\\", "/")
    assert f"--resume runs/{name}" in str(error.hint).replace("\\", "/")


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "/tmp/a", "a\\b", "a b", "a\n", "../a", "a\0b"])
def test_an_invalid_name_is_rejected_and_nothing_is_written(name: str, workdir: Path) -> None:
    error = error_of(lambda: Run.create(SETTINGS, "corpus", name=name))
    assert repr(name) in error.message
    assert "--out" in str(error.hint)
    assert list(workdir.iterdir()) == []


def test_a_run_that_was_killed_before_its_first_checkpoint_may_start_again() -> None:
    killed = Run.create(SETTINGS, "corpus", name="mine")
    killed.log("metrics", {"step": 1})
    settings = dataclasses.replace(SETTINGS, max_steps=7)
    assert Run.create(settings, "corpus", name="mine").settings == settings
    with killed.lock():
        assert "already exists" in error_of(lambda: Run.create(SETTINGS, "corpus", name="mine")).message


@pytest.mark.parametrize("stray", ["thesis.txt", "checkpoints.old", ".hidden", "last"])
def test_a_folder_with_other_files_is_neither_used_again_nor_changed(stray: str, workdir: Path) -> None:
    """Its settings.toml may be that of another program."""
    folder = Run.create(SETTINGS, "corpus", out="mine").folder
    (folder / stray).write_text("precious", encoding="utf-8")
    before = contents(workdir)
    assert "already exists" in error_of(lambda: Run.create(SETTINGS, "corpus", out="mine")).message
    assert contents(workdir) == before


def test_starting_again_removes_the_lines_and_weights_of_the_killed_process() -> None:
    run = Run.create(SETTINGS, "corpus", name="mine")
    run.log("metrics", {"step": 1})
    save(run, 1, weights_only=True)
    again = Run.create(SETTINGS, "corpus", name="mine")
    again.start_again(SETTINGS)
    assert (again.lines("metrics"), again.steps) == ([], {})


@pytest.mark.parametrize("leftover", [None, ".settings.toml.0a1b2c3d.partial"])
def test_a_process_killed_while_it_creates_a_run_does_not_block_the_name(
    leftover: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("runs/mine").mkdir(parents=True)
    if leftover is not None:
        Path("runs/mine", leftover).write_text("n_layer")
    run = Run.create(SETTINGS, "corpus", name="mine")
    assert run.settings == SETTINGS
    with run.lock():
        assert [path.name for path in run.folder.iterdir() if path.name != ".lock"] == ["settings.toml"]


def test_a_killed_write_of_a_file_of_an_unstarted_run_does_not_block_it() -> None:
    run = Run.create(SETTINGS, "corpus", name="mine")
    for name in ("settings.toml", "metrics.jsonl", "samples.jsonl", "last", "best"):
        (run.folder / f".{name}.0a1b2c3d.partial").write_text("part")
        assert run.is_unstarted
    (run.folder / ".thesis.0a1b2c3d.partial").write_text("precious")
    assert not run.is_unstarted


def test_two_processes_that_create_the_same_run_do_not_mix() -> None:
    settings = dataclasses.replace(SETTINGS, max_steps=7)
    first, second = (Run.create(each, "corpus", name="mine") for each in (SETTINGS, settings))
    with first.lock():
        assert "in use" in error_of(lambda: second.lock().__enter__()).message
        first.start_again(SETTINGS)
        assert first.settings == SETTINGS  # the second process had replaced them
        save(first, 10)
    with second.lock():
        assert "already exists" in error_of(lambda: second.start_again(settings)).message
    assert first.resumable != []


def test_a_hundred_runs_created_at_once_get_a_hundred_numbers() -> None:
    with ThreadPoolExecutor(20) as pool:
        folders = [run.folder for run in pool.map(lambda _: Run.create(SETTINGS, "corpus"), range(100))]
    assert sorted(map(str, folders)) == sorted(str(Path("runs", f"corpus-{number}")) for number in range(1, 101))


def test_out_may_be_a_new_or_an_empty_folder(workdir: Path) -> None:
    (workdir / "empty").mkdir()
    for out in ("deep/er/new", workdir / "empty"):
        run = Run.create(SETTINGS, "corpus", out=out)
        assert run.folder == Path(out)
        assert run.settings == SETTINGS
    assert not Path("runs").exists()


@pytest.mark.parametrize("content", ["file.txt", ".hidden", "folder/"])
def test_out_that_is_not_empty_is_rejected_and_left_unchanged(content: str, workdir: Path) -> None:
    Path("out").mkdir()
    if content.endswith("/"):
        Path("out", content).mkdir()
    else:
        Path("out", content).write_text("mine", encoding="utf-8")
    before = contents(workdir)
    error = error_of(lambda: Run.create(SETTINGS, "corpus", out="out"))
    assert "out already exists" in error.message
    assert "--resume" not in str(error.hint)  # it is not a run
    assert contents(workdir) == before


def test_out_that_is_a_file_or_inside_a_file_is_rejected(workdir: Path) -> None:
    Path("out").write_text("mine", encoding="utf-8")
    for out in ("out", "out/run"):
        assert out in error_of(lambda out=out: Run.create(SETTINGS, "corpus", out=out)).message
    assert contents(workdir) == {"out": b"mine"}


def test_settings_survive_in_the_run_folder() -> None:
    settings = Settings(n_embd=12, n_head=3, learning_rate=1e-4, min_learning_rate=1e-5, source="naïve.txt", bias=False)
    Run.create(settings, "corpus", name="mine")
    assert Run("runs/mine").settings == settings


def test_the_error_for_a_folder_that_is_not_a_run_lists_the_runs() -> None:
    Run.create(SETTINGS, "corpus")
    error = error_of(lambda: Run("runs/corpse-1"))
    assert "corpse-1 is not a run" in error.message
    assert "corpus-1" in str(error.hint)


# The lock


HOLD_LOCK = """
import sys
from octavo.runs import Run
with Run(sys.argv[1]).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_locked_run_is_rejected_until_the_process_that_locked_it_is_killed() -> None:
    run = Run.create(SETTINGS, "corpus")
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, str(run.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            assert run.is_locked
            for _ in range(2):
                error = error_of(lambda: run.lock().__enter__())
                assert f"{run.folder} is in use" in error.message
        finally:
            process.kill()  # no clean-up runs
    assert not run.is_locked
    with run.lock():
        pass


@pytest.mark.skipif(os.name == "nt", reason="POSIX")
@pytest.mark.parametrize("kind", ["missing", "pipe", "folder", "unreadable"])
def test_a_lock_file_that_cannot_be_read_is_not_a_lock(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.create(SETTINGS, "corpus")
    match kind:
        case "pipe":
            os.mkfifo(run.folder / ".lock")
        case "folder":
            (run.folder / ".lock").mkdir()
        case "unreadable":  # root may read every file, so the system call is replaced
            monkeypatch.setattr(os, "open", system_call_error(errno.EACCES))
    free = next_descriptor()
    assert not run.is_locked
    assert next_descriptor() == free  # none is left open


def next_descriptor() -> int:
    """The number that the next file of this process gets."""
    descriptor = os.dup(0)
    os.close(descriptor)
    return descriptor


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_that_cannot_lock_is_reported_once(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", system_call_error(number))
    monkeypatch.setattr(files, "_warned", set())
    run = Run.create(SETTINGS, "corpus")

    def write_three_times() -> None:
        for _ in range(3):
            with run.lock():
                save(run, 10)
                assert not run.is_locked

    with pytest.warns(OctavoWarning, match="cannot lock") as caught:
        write_three_times()
    assert len(caught) == 1
    assert str(run.folder) in str(caught[0].message)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_that_cannot_flush_a_folder_is_reported_once(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def fsync_files_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync_files_only)
    monkeypatch.setattr(files, "_warned", set())

    def train() -> Run:
        run = Run.create(SETTINGS, "corpus")
        for step in (10, 20, 30, 40):
            run.log("metrics", {"step": step})
            save(run, step, best=True)
        return run

    with pytest.warns(OctavoWarning, match="cannot flush") as caught:
        run = train()
    assert len(caught) == 1
    assert runs.load(run).info["step"] == 40


def test_a_disk_that_cannot_flush_a_file_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.create(SETTINGS, "corpus")

    def fsync_folders_only(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", fsync_folders_only)
    with pytest.raises(OctavoError):
        save(run, 10)
    assert run.steps == {}


def test_an_exception_releases_the_lock() -> None:
    run = Run.create(SETTINGS, "corpus")

    def fail() -> None:
        with run.lock():
            assert "in use" in error_of(lambda: Run(run.folder).lock().__enter__()).message
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fail()


# Which checkpoints are kept


@law
@hypothesis.given(max_steps=st.integers(0, 10**6), keep=st.integers(0, 60))
@hypothesis.example(max_steps=1, keep=1)
@hypothesis.example(max_steps=900, keep=10)
def test_kept_steps_are_log_spaced(max_steps: int, keep: int) -> None:
    kept = sorted(log_spaced_steps(Settings(max_steps=max_steps, keep_checkpoints=keep)))
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
def test_only_last_best_and_log_spaced_checkpoints_are_kept(
    saved: list[tuple[int, bool]], keep: int, workdir: Path
) -> None:
    """Save as training does. `saved` lists (steps since the previous save, whether this one is the best)."""
    shutil.rmtree(workdir / "run", ignore_errors=True)
    total = sum(more for more, _ in saved)
    settings = Settings(**{**vars(SETTINGS), "max_steps": total, "keep_checkpoints": keep})
    run = Run.create(settings, "corpus", out=workdir / "run")
    log_spaced = log_spaced_steps(settings)
    step, best, resumable = 0, None, list[int]()
    for more, is_best in saved:
        for between in sorted(log_spaced & set(range(step + 1, step + more))):
            save(run, between, weights_only=True, settings=settings)
        step += more
        best = step if is_best else best
        resumable = [*resumable, step][-2:]
        save(run, step, best=is_best, settings=settings)
        passed = {each for each in log_spaced if each <= step}
        assert set(run.steps) == passed | set(resumable) | ({best} if best else set())
        assert run.last == run.folder / "checkpoints" / f"step-{step:06d}"
        assert run.best == (run.folder / "checkpoints" / f"step-{best:06d}" if best else None)
    for kept, folder in run.steps.items():
        loaded = checkpoint.load(folder)
        assert loaded.info["step"] == kept
        assert torch.equal(loaded.model.lm_head.weight, model_of(kept).lm_head.weight)
        assert (folder / "trainer.json").exists() == (folder / "trainer.safetensors").exists() == (kept in resumable)
    assert [runs.step_of(folder) for folder in run.resumable] == resumable[::-1]
    assert {path.name for path in (run.folder / "checkpoints").iterdir()} == {path.name for path in run.steps.values()}


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
@hypothesis.settings(law, max_examples=15, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_a_run_that_is_rewound_has_nothing_later_and_everything_before(
    saved: set[int], best: int, weights_only: set[int], workdir: Path
) -> None:
    shutil.rmtree(workdir / "run", ignore_errors=True)
    settings = dataclasses.replace(SETTINGS, max_steps=9, keep_checkpoints=4)
    run = Run.create(settings, "corpus", out=workdir / "run")
    for step in range(1, 10):
        run.log("metrics", {"step": step})
        if step in saved | weights_only:
            save(run, step, step == best, weights_only=step not in saved, settings=settings)
    before, best_before = dict(run.steps), run.best
    step = runs.step_of(run.resumable[-1])
    run.rewind(step)
    assert [line["step"] for line in run.lines("metrics")] == list(range(1, step + 1))
    assert list(run.steps) == [each for each in before if each <= step]
    assert run.last == run.resumable[0] == before[step]
    assert run.best == (best_before if best_before and runs.step_of(best_before) <= step else None)


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
    assert (list(run.steps), run.last, run.best) == ([20], run.steps[20], None)
    assert not unflushed


def test_saving_a_step_again_replaces_its_checkpoint() -> None:
    run = Run.create(SETTINGS, "corpus")
    for step in (10, 20, 20):
        save(run, step, best=True)
    assert list(run.steps) == [10, 20]
    assert checkpoint.load_trainer(run.last or Path()).values == {"step": 20}


def test_steps_beyond_six_digits_are_sorted_by_number() -> None:
    run = Run.create(SETTINGS, "corpus")
    for step in (999_999, 1_000_000, 100):
        save(run, step, weights_only=True)
    assert list(run.steps) == [100, 999_999, 1_000_000]


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
    assert list(run.steps) == [20, 30]
    checkpoint.load(mine)


@pytest.mark.parametrize("pointer", ["best", "last"])
@pytest.mark.parametrize(
    "content",
    ["", "\n", "../../thesis", "/thesis", "..", ".", "step-", "step-1", "step-000010/../../x", "x" * 5000, "\0"],
)
def test_a_damaged_pointer_removes_nothing(pointer: str, content: str, workdir: Path) -> None:
    (workdir / "thesis").mkdir()
    (workdir / "thesis" / "chapter.txt").write_text("precious", encoding="utf-8")
    run = Run.create(SETTINGS, "corpus")
    save(run, 10, best=True)
    (run.folder / pointer).write_text(content.replace("/thesis", str(workdir / "thesis"), content == "/thesis"))
    assert getattr(run, pointer) is None
    save(run, 20, best=True)
    assert (workdir / "thesis" / "chapter.txt").read_text(encoding="utf-8") == "precious"
    assert list(run.steps) == [10, 20]
    assert run.last == run.best == run.steps[20]


def test_a_checkpoint_that_a_killed_process_left_behind_is_removed_by_a_later_save() -> None:
    run = Run.create(SETTINGS, "corpus")
    orphan = shutil.copytree(save(run, 10), run.folder / "checkpoints" / "step-000011")
    for step in (20, 30, 40):
        save(run, step)
    assert not Path(orphan).exists()
    assert list(run.steps) == [30, 40]


def test_an_interrupted_removal_is_finished_and_an_interrupted_replacement_undone() -> None:
    run = Run.create(SETTINGS, "corpus")
    save(run, 10, best=True)
    last = save(run, 20)
    (run.folder / "checkpoints" / ".step-000005.removed").mkdir()  # a part of it is gone already
    last.rename(last.with_name(".step-000020.removed"))  # a new version of it was about to take its place
    with run.lock():
        assert list(run.steps) == [10, 20]
    assert checkpoint.load_trainer(last).values == {"step": 20}


# Logs


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["a\u2028b", "\x85", "\x0b\x1c\r\n", "कितاب🦉", '{"step": 1}\n']
)


@hypothesis.settings(law, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(written=st.lists(ANY_TEXT, max_size=4), data=st.data())
def test_complete_lines_are_read_and_an_incomplete_one_is_not(
    written: list[str], data: st.DataObject, workdir: Path
) -> None:
    shutil.rmtree(workdir / "run", ignore_errors=True)
    run = Run.create(SETTINGS, "corpus", out=workdir / "run")
    lines = [{"step": step, "text": text} for step, text in enumerate(written)]
    ends = [0]
    for line in lines:
        run.log("samples", line)
        ends.append((run.folder / "samples.jsonl").stat().st_size)
    assert run.lines("samples") == lines
    assert run.lines("metrics") == []
    if lines:
        whole = (run.folder / "samples.jsonl").read_bytes()
        cut = data.draw(st.integers(0, len(whole)), label="bytes that reached the disk")
        (run.folder / "samples.jsonl").write_bytes(whole[:cut])
        complete = sum(end <= cut for end in ends[1:])
        assert run.lines("samples") == lines[:complete]
        run.truncate_logs(len(lines))
        run.log("samples", {"step": 99})  # starts a new line
        assert run.lines("samples") == [*lines[:complete], {"step": 99}]


def test_a_log_has_one_json_object_per_line() -> None:
    run = Run.create(SETTINGS, "corpus")
    for step in (1, 2):
        run.log("samples", {"step": step, "text": "zwei\nZeilen: किताब"})
    raw = (run.folder / "samples.jsonl").read_bytes().decode()
    assert [json.loads(line)["step"] for line in raw.split("\n")[:-1]] == [1, 2]
    assert "किताब" in raw  # not escaped, because people read this file


@pytest.mark.parametrize(
    "damaged", [b"", b"{}", b"[1]", b"{", b'{"step": "1"}', b'{"step": true}', b"\xff", b"[" * 50_000]
)
def test_damaged_lines_are_left_out(damaged: bytes) -> None:
    run = Run.create(SETTINGS, "corpus")
    for step in (1, 2):
        run.log("metrics", {"step": step})
    first, second = (run.folder / "metrics.jsonl").read_bytes().splitlines()
    (run.folder / "metrics.jsonl").write_bytes(b"\n".join((first, damaged, second, b"")))
    assert run.lines("metrics") == [{"step": 1}, {"step": 2}]
    run.truncate_logs(1)
    assert (run.folder / "metrics.jsonl").read_bytes() == first + b"\n"


def test_truncating_the_logs_removes_later_lines_and_an_incomplete_one() -> None:
    run = Run.create(SETTINGS, "corpus")
    for step in (1, 10, 20, 30):
        run.log("metrics", {"step": step, "loss": 1 / step})
        run.log("samples", {"step": step, "text": "abc"})
    with open(run.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 31, "lo')
    run.truncate_logs(20)
    for kind in ("metrics", "samples"):
        assert [line["step"] for line in run.lines(kind)] == [1, 10, 20]
    run.log("metrics", {"step": 21})
    assert run.lines("metrics")[-1] == {"step": 21}
    run.truncate_logs(0)
    assert run.lines("metrics") == run.lines("samples") == []


# Finding a run


def test_the_checkpoint_of_a_run_is_its_best_one_or_else_its_last() -> None:
    run = Run.create(SETTINGS, "corpus")
    first = save(run, 10)
    assert find_checkpoint(run.folder) == first
    second = save(run, 20, best=True)
    save(run, 30)
    assert find_checkpoint(run.folder) == find_checkpoint(str(run.folder)) == second
    assert octavo.load(run.folder).info["step"] == 20


def test_a_checkpoint_or_a_hugging_face_folder_can_be_given_instead_of_a_run(workdir: Path) -> None:
    run = Run.create(SETTINGS, "corpus")
    save(run, 10, best=True)
    last = save(run, 20)
    foreign = workdir / "gpt2"
    shutil.copytree(last, foreign)
    for name in ("octavo.json", "manifest.json", "trainer.json", "trainer.safetensors"):
        (foreign / name).unlink()
    for folder in (last, foreign):
        assert find_checkpoint(folder) == folder
        assert octavo.load(folder).folder == folder


@pytest.mark.parametrize("way", ["path", "from inside", "name"])
def test_a_checkpoint_of_a_run_without_its_manifest_is_not_taken_for_a_foreign_folder(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(Run.create(SETTINGS, "corpus"), 10)
    for name in ("octavo.json", "manifest.json"):
        (folder / name).unlink()
    given: Path = folder
    if way != "path":
        monkeypatch.chdir(folder if way == "from inside" else folder.parent)
        given = Path("." if way == "from inside" else folder.name)
    assert "no manifest.json" in error_of(lambda: octavo.load(given)).message


def test_a_bare_name_is_looked_up_in_runs() -> None:
    run = Run.create(SETTINGS, "corpus")
    folder = save(run, 10)
    assert find_checkpoint("corpus-1") == find_checkpoint("runs/corpus-1") == folder
    Path("corpus-1").mkdir()  # an existing path takes precedence over runs/
    assert "corpus-1 is neither a run nor a checkpoint" in error_of(lambda: find_checkpoint("corpus-1")).message


def test_a_run_without_a_checkpoint_is_an_error() -> None:
    Run.create(SETTINGS, "corpus")
    error = error_of(lambda: find_checkpoint("corpus-1"))
    assert str(Path("runs/corpus-1")) in error.message
    assert "no checkpoint" in error.message


@pytest.mark.parametrize("path", ["missing", "folder", "file.txt"])
def test_an_unknown_run_is_an_error_that_lists_the_runs(path: str) -> None:
    Path("folder").mkdir()
    Path("file.txt").write_text("text", encoding="utf-8")
    error = error_of(lambda: find_checkpoint(path))
    assert path in error.message
    assert "octavo train" in str(error.hint)
    for number in range(3):
        Run.create(SETTINGS, "corpus", name=f"run{number}")
    error = error_of(lambda: runs.load(path))
    assert all(str(Path("runs", f"run{number}")) in str(error.hint) for number in range(3))


@pytest.mark.parametrize("damage", [shutil.rmtree, lambda folder: (folder / "model.safetensors").write_bytes(b"x")])
def test_load_falls_back_to_an_intact_checkpoint_with_a_warning(damage: Any) -> None:
    run = Run.create(SETTINGS, "corpus")
    best, last = save(run, 10, best=True), save(run, 20)
    damage(best)
    with pytest.warns(OctavoWarning) as caught:
        assert octavo.load(run.folder).folder == last
    assert str(best) in str(caught[0].message)
    assert str(last) in str(caught[0].message)
    damage(last)
    assert str(best) in error_of(lambda: octavo.load(run.folder)).message


def test_load_looks_again_if_training_replaced_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.create(SETTINGS, "corpus")
    first, load = save(run, 10, best=True), checkpoint.load

    def load_while_training(folder: Path, *arguments: Any, **options: Any) -> checkpoint.Checkpoint:
        if folder == first:
            for step in (20, 30, 40):
                save(run, step, best=True)
        return load(folder, *arguments, **options)

    monkeypatch.setattr(checkpoint, "load", load_while_training)
    assert octavo.load(run.folder).info["step"] == 40
    assert not first.exists()


def test_load_accepts_a_path_a_name_a_run_and_a_checkpoint() -> None:
    run = Run.create(SETTINGS, "corpus")
    folder = save(run, 10)
    for run_like in (run.folder, str(run.folder), "corpus-1", run, folder):
        assert octavo.load(run_like).folder == folder
    loaded = octavo.load(run)
    assert octavo.load(loaded) is loaded
    assert find_checkpoint(loaded) == folder


def test_generate_accepts_a_run() -> None:
    run = Run.create(SETTINGS, "corpus")
    save(run, 10)
    by_run, by_path = (octavo.generate(each, "ab", max_new_tokens=3) for each in (run, run.folder))
    assert by_run == by_path


def test_the_run_and_step_of_a_checkpoint_follow_from_its_path(workdir: Path) -> None:
    run = Run.create(SETTINGS, "corpus")
    folder = save(run, 10)
    owner = Run.of_checkpoint(folder)
    assert owner is not None
    assert owner.folder == run.folder
    assert runs.step_of(folder) == 10
    assert run.steps == {10: folder}
    outside = Path(shutil.copytree(folder, workdir / "checkpoints" / "step-000010"))
    assert Run.of_checkpoint(outside) is None


def test_find_run_finds_runs_and_no_checkpoints() -> None:
    run = Run.create(SETTINGS, "corpus")
    folder = save(run, 10)
    assert runs.find_run(run) is run
    for name in ("corpus-1", run.folder):
        found = runs.find_run(name)
        assert found is not None
        assert found.folder == run.folder
    assert runs.find_run(folder) is None
    assert runs.find_run(octavo.load(run)) is None
    assert runs.find_run("missing") is None
