"""A run folder: its name, who may write to it, which checkpoints it keeps, and how a RUN is found."""

import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

import octavo
from octavo import checkpoint, runs, tokenizers
from octavo.checkpoint import TrainerState
from octavo.errors import OctavoError
from octavo.model import GPT
from octavo.runs import Run, find, log_spaced
from octavo.settings import Settings

TOKENIZER = tokenizers.build("char", "ab\n")
SETTINGS = Settings(n_layer=1, n_head=1, n_embd=4, block_size=4, vocab_size=3, max_steps=100, keep=0)
law = hypothesis.settings(derandomize=True, deadline=None, max_examples=40)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test stands in an empty folder, where `runs/` will be."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def model_of(step: int) -> GPT:
    """Each step's weights are its own."""
    return GPT(SETTINGS, torch.Generator().manual_seed(step)).eval()


def save(run: Run, step: int, best: bool = False, along: bool = False, settings: Settings = SETTINGS) -> Path:
    """The checkpoint of a step; one `along` the way is weights only."""
    state = None if along else TrainerState({"x": torch.zeros(1)}, {"step": step})
    return run.save(step, model_of(step), TOKENIZER, settings, {"step": step}, state, best)


def steps(run: Run) -> list[int]:
    """Of the checkpoints that a run holds."""
    return [int(path.name.removeprefix("step-")) for path in run.checkpoints()]


def refusal(act: Callable[[], Any]) -> OctavoError:
    with pytest.raises(OctavoError) as caught:
        act()
    return caught.value


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under `folder`, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Names


def test_runs_of_a_corpus_are_numbered() -> None:
    assert [Run.create(SETTINGS, "corpus").folder for _ in range(11)] == [
        Path("runs", f"corpus-{number}") for number in range(1, 12)
    ]
    assert Run.create(SETTINGS, "other").folder == Path("runs", "other-1")


def test_a_number_is_never_given_twice() -> None:
    for _ in range(3):
        Run.create(SETTINGS, "corpus")
    shutil.rmtree("runs/corpus-2")
    assert Run.create(SETTINGS, "corpus").folder == Path("runs/corpus-4")


@pytest.mark.parametrize(
    "stray",
    ["corpus-", "corpus-x", "corpus-9b", "corpus", "corpus-5-6", "other-9", "xcorpus-9", "corpus-²", ".corpus-9"],
)
def test_a_folder_of_another_kind_of_name_does_not_count(stray: str) -> None:
    Path("runs", stray).mkdir(parents=True)
    assert Run.create(SETTINGS, "corpus").folder == Path("runs/corpus-1")


def test_a_run_that_is_only_a_number_does_not_count() -> None:
    Path("runs/2024").mkdir(parents=True)
    assert Run.create(SETTINGS, "corpus").folder == Path("runs/corpus-1")


def test_a_file_of_such_a_name_is_not_written_over() -> None:
    Path("runs").mkdir()
    Path("runs/corpus-1").write_text("mine", encoding="utf-8")
    assert Run.create(SETTINGS, "corpus").folder == Path("runs/corpus-2")
    assert Path("runs/corpus-1").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("name", ["a", "my-run_2.0+b", "7", "опыт"])
def test_a_name_is_taken_as_it_is(name: str) -> None:
    assert Run.create(SETTINGS, "corpus", name=name).folder == Path("runs", name)
    assert f"runs/{name} already holds something" in refusal(
        lambda: Run.create(SETTINGS, "corpus", name=name)
    ).message.replace("\\", "/")


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "/tmp/a", "a\\b", "a b", "a\n", "../a", "a\0b"])
def test_a_name_that_is_a_path_or_worse_is_refused(name: str, here: Path) -> None:
    said = refusal(lambda: Run.create(SETTINGS, "corpus", name=name))
    assert repr(name) in said.message
    assert "--out" in str(said.hint)
    assert list(here.iterdir()) == []


def test_out_may_be_new_or_empty_anywhere(here: Path) -> None:
    (here / "empty").mkdir()
    for out in ("deep/er/new", here / "empty"):
        run = Run.create(SETTINGS, "corpus", out=out)
        assert run.folder == Path(out)
        assert run.settings == SETTINGS
    assert not Path("runs").exists()


@pytest.mark.parametrize("held", ["file.txt", ".hidden", "folder/"])
def test_out_that_holds_something_is_refused_and_left_alone(held: str, here: Path) -> None:
    Path("out").mkdir()
    Path("out", held).mkdir() if held.endswith("/") else Path("out", held).write_text("mine", encoding="utf-8")
    before = contents(here)
    said = refusal(lambda: Run.create(SETTINGS, "corpus", out="out"))
    assert said.message == "out already holds something"
    assert "--resume out" in str(said.hint)
    assert contents(here) == before


def test_out_that_is_a_file_or_within_one_is_refused(here: Path) -> None:
    Path("out").write_text("mine", encoding="utf-8")
    for out in ("out", "out/run"):
        assert out in refusal(lambda out=out: Run.create(SETTINGS, "corpus", out=out)).message
    assert contents(here) == {"out": b"mine"}


def test_a_run_opens_with_the_settings_that_made_it(here: Path) -> None:
    settings = Settings(n_embd=12, n_head=3, learning_rate=1e-4, min_learning_rate=1e-5, source="naïve.txt", bias=False)
    Run.create(settings, "corpus", name="mine")
    assert Run("runs/mine").settings == settings


def test_what_is_no_run_is_told_with_those_there_are() -> None:
    Run.create(SETTINGS, "corpus")
    said = refusal(lambda: Run("runs/corpse-1"))
    assert "corpse-1 is not a run" in said.message
    assert "corpus-1" in str(said.hint)


# One writer at a time


HOLDER = """
import sys
from octavo.runs import Run
with Run(sys.argv[1]).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_that_another_process_trains_is_refused_until_that_process_is_dead() -> None:
    run = Run.create(SETTINGS, "corpus")
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            for _ in range(2):
                said = refusal(lambda: run.locked().__enter__())
                assert f"{run.folder} is in use" in said.message
        finally:
            process.kill()  # without a chance to tidy up
    with run.locked():
        pass


def test_a_lock_is_let_go_of_whatever_happens_under_it() -> None:
    run = Run.create(SETTINGS, "corpus")

    def fail() -> None:
        with run.locked():
            assert "in use" in refusal(lambda: Run(run.folder).locked().__enter__()).message
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fail()


# What is kept


@law
@hypothesis.given(max_steps=st.integers(0, 10**6), keep=st.integers(0, 60))
@hypothesis.example(max_steps=1, keep=1)
@hypothesis.example(max_steps=900, keep=10)
def test_steps_kept_along_the_way_are_spaced_by_a_factor(max_steps: int, keep: int) -> None:
    kept = sorted(log_spaced(Settings(max_steps=max_steps, keep=keep)))
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
def test_last_best_and_the_log_spaced_are_kept_and_no_other(
    saved: list[tuple[int, bool]], keep: int, here: Path
) -> None:
    """As training does it: `saved` are how many steps later, and whether that was the best."""
    shutil.rmtree(here / "run", ignore_errors=True)
    total = sum(more for more, _ in saved)
    settings = Settings(**{**vars(SETTINGS), "max_steps": total, "keep": keep})
    run = Run.create(settings, "corpus", out=here / "run")
    along = log_spaced(settings)
    step, best = 0, None
    for more, is_best in saved:
        for between in sorted(along & set(range(step + 1, step + more))):
            save(run, between, along=True, settings=settings)
        step += more
        best = step if is_best else best
        save(run, step, best=is_best, settings=settings)
        passed = {each for each in along if each <= step}
        assert set(steps(run)) == passed | {step} | ({best} if best else set())
        assert run.last == run.folder / "checkpoints" / f"step-{step:06d}"
        assert run.best == (run.folder / "checkpoints" / f"step-{best:06d}" if best else None)
    for folder, kept in zip(run.checkpoints(), steps(run), strict=True):
        loaded = checkpoint.load(folder)
        assert loaded.info["step"] == kept
        assert torch.equal(loaded.model.lm_head.weight, model_of(kept).lm_head.weight)
        assert (folder / "trainer.json").exists() == (folder / "trainer.safetensors").exists() == (folder == run.last)
    assert {path.name for path in (run.folder / "checkpoints").iterdir()} == {p.name for p in run.checkpoints()}


def test_training_may_go_on_from_last_only() -> None:
    run = Run.create(SETTINGS, "corpus")
    first, second = save(run, 10, best=True), save(run, 20)
    assert (run.best, run.last) == (first, second)
    assert checkpoint.load_trainer(second).values == {"step": 20}
    with pytest.raises(OctavoError, match="only weights"):
        checkpoint.load_trainer(first)
    checkpoint.load(first)


def test_saving_a_step_again_replaces_it() -> None:
    run = Run.create(SETTINGS, "corpus")
    for step in (10, 20, 20):
        save(run, step, best=True)
    assert steps(run) == [20]
    assert checkpoint.load_trainer(run.last or Path()).values == {"step": 20}


def test_steps_beyond_six_digits_are_in_order() -> None:
    run = Run.create(SETTINGS, "corpus")
    for step in (999_999, 1_000_000, 100):
        save(run, step, along=True)
    assert steps(run) == [100, 999_999, 1_000_000]


def test_a_crash_before_the_pointers_leaves_the_checkpoint_before(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_a_folder_that_someone_put_beside_the_checkpoints_is_left_alone(name: str) -> None:
    run = Run.create(SETTINGS, "corpus")
    mine = run.folder / "checkpoints" / name
    shutil.copytree(save(run, 10), mine)
    save(run, 20)
    assert steps(run) == [20]
    checkpoint.load(mine)


# Lines


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["a\u2028b", "\x85", "\x0b\x1c\r\n", "कितاب🦉", '{"step": 1}\n']
)


@hypothesis.settings(law, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(written=st.lists(ANY_TEXT, max_size=4), data=st.data())
def test_lines_written_to_their_end_are_read_and_a_half_written_one_is_not(
    written: list[str], data: st.DataObject, here: Path
) -> None:
    shutil.rmtree(here / "run", ignore_errors=True)
    run = Run.create(SETTINGS, "corpus", out=here / "run")
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
        run.rewind(len(lines))
        run.log("samples", {"step": 99})  # on a line of its own
        assert run.lines("samples") == [*lines[:complete], {"step": 99}]


def test_a_log_has_a_json_object_on_each_line() -> None:
    run = Run.create(SETTINGS, "corpus")
    for step in (1, 2):
        run.log("samples", {"step": step, "text": "zwei\nZeilen: किताब"})
    raw = (run.folder / "samples.jsonl").read_bytes().decode()
    assert [json.loads(line)["step"] for line in raw.split("\n")[:-1]] == [1, 2]
    assert "किताब" in raw  # for people to read


def test_rewinding_forgets_later_lines_and_half_a_line() -> None:
    run = Run.create(SETTINGS, "corpus")
    for step in (1, 10, 20, 30):
        run.log("metrics", {"step": step, "loss": 1 / step})
        run.log("samples", {"step": step, "text": "abc"})
    with open(run.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 31, "lo')
    run.rewind(20)
    for kind in ("metrics", "samples"):
        assert [line["step"] for line in run.lines(kind)] == [1, 10, 20]
    run.log("metrics", {"step": 21})
    assert run.lines("metrics")[-1] == {"step": 21}
    run.rewind(0)
    assert run.lines("metrics") == run.lines("samples") == []


# Finding a RUN


def test_a_run_means_its_best_checkpoint_else_its_last() -> None:
    run = Run.create(SETTINGS, "corpus")
    first = save(run, 10)
    assert find(run.folder) == first
    second = save(run, 20, best=True)
    save(run, 30)
    assert find(run.folder) == find(str(run.folder)) == second
    assert octavo.load(run.folder).info["step"] == 20


def test_a_checkpoint_or_a_hugging_face_folder_means_itself(here: Path) -> None:
    run = Run.create(SETTINGS, "corpus")
    save(run, 10, best=True)
    last = save(run, 20)
    foreign = here / "gpt2"
    shutil.copytree(last, foreign)
    for name in ("octavo.json", "manifest.json", "trainer.json", "trainer.safetensors"):
        (foreign / name).unlink()
    for folder in (last, foreign):
        assert find(folder) == folder
        assert octavo.load(folder).folder == folder


def test_a_name_alone_is_looked_for_under_runs(here: Path) -> None:
    run = Run.create(SETTINGS, "corpus")
    made = save(run, 10)
    assert find("corpus-1") == find("runs/corpus-1") == made
    Path("corpus-1").mkdir()  # what is really there comes first, and is told if it is nothing
    assert "corpus-1 is neither a run nor a checkpoint" in refusal(lambda: find("corpus-1")).message


def test_a_run_without_a_checkpoint_is_told() -> None:
    Run.create(SETTINGS, "corpus")
    assert "runs/corpus-1 has no checkpoint yet" in refusal(lambda: find("corpus-1")).message.replace("\\", "/")


@pytest.mark.parametrize("what", ["missing", "folder", "file.txt"])
def test_what_is_nothing_is_told_with_the_runs_there_are(what: str) -> None:
    Path("folder").mkdir()
    Path("file.txt").write_text("text", encoding="utf-8")
    said = refusal(lambda: find(what))
    assert what in said.message
    assert said.hint == "octavo train, which makes a run"
    for number in range(3):
        Run.create(SETTINGS, "corpus", name=f"run{number}")
    said = refusal(lambda: runs.load(what))
    assert all(str(Path("runs", f"run{number}")) in str(said.hint) for number in range(3))


def test_a_best_that_was_deleted_is_told() -> None:
    run = Run.create(SETTINGS, "corpus")
    best = save(run, 10, best=True)
    save(run, 20)
    shutil.rmtree(best)
    assert str(best) in refusal(lambda: octavo.load(run.folder)).message
