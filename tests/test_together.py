"""`octavo prepare --together`: any number of processes write the folder of one, and any of them may be killed."""

import dataclasses
import gzip
import itertools
import json
import os
import random
import shutil
import time
from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from commands import AssertRejected, RunCommand
from folders import contents
from octavo.data.claims import Claims
from octavo.data.dataset import open_dataset
from octavo.data.limits import Limits
from octavo.data.prepare import prepare_into_folder
from octavo.data.together import prepare_together
from octavo.progress import PreparationProgress
from octavo.settings import DataSettings
from preparing import data_settings, error_of, write, write_jsonl

pytestmark = pytest.mark.filterwarnings("ignore::octavo.errors.OctavoWarning")  # which files were read
SMALL = Limits(chunk=100, shard_characters=3000, unit_bytes=4000, progress_seconds=0)
STALE = 0.3  # seconds


def documents(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    words = ["the", "cat", "sat", "on", "a", "mat", "öäü", "naïve", "end.", "so\nit", "was ", "漢字"]
    return [" ".join(rng.choices(words, k=rng.randint(1, 40))) for _ in range(count)]


def write_many(folder: Path) -> Path:
    """Rows in files as datatrove writes them, some of them copies; and files without text."""
    for rank in range(7):
        rows = documents(30, rank % 5)  # ranks 5 and 6 are copies of ranks 0 and 1
        lines = [json.dumps({"text": text, "id": f"{rank}/{i}", "metadata": {}}) for i, text in enumerate(rows)]
        write(folder / f"{rank:05d}.jsonl.gz", gzip.compress("\n".join(lines).encode()))
    write(folder / "00007.jsonl", "")
    write(folder / "notes" / "a.txt", documents(1, 9)[0] * 60)
    write(folder / "notes" / "b.bin", bytes(range(8)) * 10)
    return folder


def write_few(folder: Path) -> Path:
    """Texts of different lengths, too few to be split by document."""
    for i, count in enumerate([1, 200, 3, 60, 2, 1, 90]):
        write(folder / f"{i}.txt", "\n".join(documents(count, i)))
    return folder


def write_one(folder: Path) -> Path:
    return write_jsonl(folder / "all.jsonl", documents(300, 1))


SOURCES = {"many": write_many, "few": write_few, "one": write_one}


def prepare_alone(settings: DataSettings, out: Path) -> dict[str, bytes]:
    """The files that one process writes without `--together`."""
    return contents(prepare_into_folder(settings, out, SMALL).result.folder)


def start(settings: DataSettings, out: Path, limits: Limits = SMALL) -> Generator[PreparationProgress, None, Any]:
    return iter(prepare_together(settings, out, limits, STALE))  # type: ignore[return-value]


def run_all(helpers: list[Generator[PreparationProgress, None, Any]], seed: int) -> list[dict[str, Any]]:
    """Advance processes in a random order until all have ended, and return their results."""
    rng, results = random.Random(seed), []
    while helpers:
        helper = rng.choice(helpers)
        try:
            next(helper)
        except StopIteration as end:
            results.append(end.value)
            helpers.remove(helper)
    return results


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing hundreds of small files to disk would take most of the time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("many", {"tokenizer": "bpe:300"}),
        ("many", {"tokenizer": "byte", "deduplicate": True, "val_fraction": 0.3}),
        ("few", {"tokenizer": "char"}),
        ("one", {"tokenizer": "word:300"}),
    ],
)
def test_any_number_of_processes_writes_the_files_of_one(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    settings = data_settings(SOURCES[name](tmp_path / "source"), **changes)
    expected = prepare_alone(settings, tmp_path / "plain")
    assert len(expected) > 6
    for helpers in (1, 2, 3):
        out = tmp_path / f"by {helpers}"
        results = run_all([start(settings, out) for _ in range(helpers)], seed=helpers)
        assert contents(out) == expected
        assert results == [json.loads(expected["dataset.json"])] * helpers
    assert {path.name for path in tmp_path.iterdir()} == {"source", "plain", "by 1", "by 2", "by 3"}


def test_a_process_may_be_killed_at_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one finishes, whether it starts before or after, and so does one that only seemed to be dead."""
    settings = data_settings(write_few(tmp_path / "source"), "bpe:300")
    expected = prepare_alone(settings, tmp_path / "plain")
    monkeypatch.setattr(Claims, "_run", lambda self: None)  # nobody shows a sign of life, except at its start
    steps = sum(1 for _ in start(settings, tmp_path / "count"))
    for at in range(0, steps, max(1, steps // 12)):
        out = tmp_path / "out"
        suspended = start(settings, out)
        for _ in itertools.islice(suspended, at):
            pass
        age_files(tmp_path / ".out.together")
        [result] = run_all([start(settings, out)], seed=at)
        assert contents(out) == expected, at
        assert run_all([suspended], seed=at) in ([result], [])
        assert contents(out) == expected, at
        shutil.rmtree(out)
        shutil.rmtree(tmp_path / ".out.together", ignore_errors=True)


def age_files(work: Path) -> None:
    """Make all signs of life old."""
    for path in itertools.chain(work.glob("helpers/*"), work.glob("claims/*")):
        os.utime(path, (time.time() - 100, time.time() - 100))


def test_progress_counts_what_all_processes_have_done(tmp_path: Path) -> None:
    settings = data_settings(write_few(tmp_path / "source"), "byte")
    first, second = (start(settings, tmp_path / "out") for _ in range(2))
    seen: list[PreparationProgress] = []
    for _ in range(3):
        next(first)
    for progress in second:
        seen.append(progress)
        next(first, None)
    assert any(", 2 processes" in progress.stage for progress in seen)
    writing = [progress for progress in seen if progress.stage.startswith("writing")]
    characters = json.loads((tmp_path / "out" / "dataset.json").read_text())["text"]["characters"]
    assert {progress.total for progress in writing} == {characters}
    assert all(progress.done <= characters for progress in writing)


@pytest.mark.parametrize("change", ["settings", "file", "limits"])
def test_processes_that_prepare_something_else_are_rejected(change: str, tmp_path: Path) -> None:
    source = write_few(tmp_path / "source")
    settings, limits = data_settings(source, "byte"), SMALL
    first = start(settings, tmp_path / "out")
    next(first)
    match change:
        case "settings":
            settings = data_settings(source, "char")
        case "file":
            write(source / "more.txt", "more")
        case _:
            limits = dataclasses.replace(SMALL, shard_characters=500)
    assert "other files or settings" in error_of(lambda: next(start(settings, tmp_path / "out", limits))).message
    run_all([first], 0)
    open_dataset(tmp_path / "out", verify=True)


def test_a_file_that_changes_meanwhile_is_an_error_and_nothing_is_left(tmp_path: Path) -> None:
    settings = data_settings(write_few(tmp_path / "source"), "byte")
    first, second = (start(settings, tmp_path / "out") for _ in range(2))
    while not next(first).stage.startswith("writing"):
        next(second)
    for i in range(7):
        path = tmp_path / "source" / f"{i}.txt"
        write(path, path.read_bytes().replace(b"a", b"b"))
    assert "changed while it was read" in error_of(lambda: run_all([first], 0)).message
    assert "another process gave up" in error_of(lambda: run_all([second], 0)).message
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("source", ["pydocs", "-", "hf:roneneldan/TinyStories"])
def test_a_source_that_is_not_made_of_files_is_rejected(source: str, tmp_path: Path) -> None:
    assert "is not made of files" in error_of(lambda: next(start(data_settings(source), tmp_path / "out"))).message


def test_the_command_writes_the_files_of_the_command_without_together(
    run_command: RunCommand, assert_rejected: AssertRejected
) -> None:
    assert run_command("prepare", "text.txt", "--out", "plain").code == 0
    words = ["prepare", "text.txt", "--out", "tokens", "--together"]
    assert run_command(*words, "--json").json == json.loads(Path("plain/dataset.json").read_text(encoding="utf-8"))
    assert contents(Path("tokens")) == contents(Path("plain"))
    assert run_command(*words).code == 0  # it is complete
    for other in (["--tokenizer", "byte"], ["--deduplicate"], ["--val-fraction", "0.2"], ["--special-tokens"]):
        assert_rejected([*words, *other], "not empty")
    assert_rejected(["prepare", "text.txt", "--verify", "--together"], "--out")
    (Path("short.txt")).write_text("ab")
    assert_rejected(["prepare", "short.txt", "--out", "short", "--together"], "too few")
    Path("empty").mkdir()
    assert_rejected(["prepare", "empty", "--out", "none", "--together"], "has no text")


def test_claims_of_a_dead_process_are_free(tmp_path: Path) -> None:
    with Claims(tmp_path, 1000) as first, Claims(tmp_path, 1000) as second:
        assert first.take("a")
        assert not second.take("a")
        assert len(second.other_activities()) == 1
        age_files(tmp_path)
        with Claims(tmp_path, 50) as third:
            assert third.take("a")
            assert third.other_activities() == []
            assert not Claims(tmp_path, 50)._create(tmp_path / "claims" / "a")


@pytest.mark.parametrize("free", [1000, 10**6])
def test_a_disk_with_too_little_space_is_reported_before_it_is_full(
    free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the tokens are written, or before shards are joined; what is finished is kept."""
    source = write_many(tmp_path / "source")
    settings = data_settings(source, "byte")
    with monkeypatch.context() as patch:
        patch.setattr(
            shutil, "disk_usage", lambda folder: SimpleNamespace(free=free if folder.name == "parts" else 100)
        )
        error = error_of(lambda: prepare_together(settings, tmp_path / "out", SMALL).result)
    assert "free" in error.message
    assert (tmp_path / ".out.together" / "parts").exists()
    assert any((tmp_path / ".out.together" / "parts").glob("*.npy")) == (free > 1000)
    assert prepare_together(settings, tmp_path / "out", SMALL).result["tokens"]["train"] > 0
