"""Copies of runs on other storage: whatever fails there, the last complete checkpoint can be loaded."""

import contextlib
import functools
import itertools
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

import octavo
from octavo import checkpoint, mirror, runs, training
from octavo.distributed import World
from octavo.errors import MachineError, OctavoError, OctavoWarning
from octavo.remote import Storage
from octavo.runs import Run
from octavo.training import Finished, Notice, Saved, Step, loop
from octavo.training.uploader import open_mirror, upload
from preparing import error_of
from run_folders import SETTINGS, save
from small_runs import SMALL, enter_folder, run_events

URL = "memory://bucket/runs/mine"


class KilledError(BaseException):
    """Ends a test's copy as SIGKILL would end a process."""


@dataclass
class Faults:
    """What happens to the write number `at` on the storage: it fails, arrives by half, or the process is killed."""

    at: int | None = None
    kind: str = "fails"
    writes: int = 0

    def check(self, act: Callable[..., None], path: str, content: bytes | None) -> None:
        self.writes += 1
        if self.writes - 1 != self.at:
            return act()
        if "half" in self.kind and content is not None:
            MemoryFileSystem.original_pipe(MemoryFileSystem(), path, content[: len(content) // 2])
            if self.kind == "half and silent":
                return None
        if "killed" in self.kind:
            raise KilledError
        raise OSError("the network is down")


@pytest.fixture(autouse=True)
def faults(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """`memory://`, an empty object store of this process, and what goes wrong with it."""
    faults = Faults()
    original = {name: getattr(MemoryFileSystem, name) for name in ("put_file", "pipe_file", "rm_file")}

    def put_file(system: MemoryFileSystem, local: str, path: str, **options: Any) -> None:
        content = Path(local).read_bytes()
        faults.check(lambda: original["put_file"](system, local, path, **options), path, content)

    def pipe_file(system: MemoryFileSystem, path: str, content: bytes, **options: Any) -> None:
        faults.check(lambda: original["pipe_file"](system, path, content, **options), path, content)

    def rm_file(system: MemoryFileSystem, path: str) -> None:
        faults.check(lambda: original["rm_file"](system, path), path, None)

    monkeypatch.setattr(MemoryFileSystem, "original_pipe", original["pipe_file"], raising=False)
    for name, replacement in (("put_file", put_file), ("pipe_file", pipe_file), ("rm_file", rm_file)):
        monkeypatch.setattr(MemoryFileSystem, name, replacement)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # hundreds of small files
    MemoryFileSystem.store.clear()
    yield faults
    MemoryFileSystem.store.clear()


def stored() -> dict[str, bytes]:
    """The files on the storage."""
    return {path: file.getvalue() for path, file in MemoryFileSystem.store.items()}


def restore(content: dict[str, bytes]) -> None:
    MemoryFileSystem.store.clear()
    for path, value in content.items():
        MemoryFileSystem.original_pipe(MemoryFileSystem(), path, value)


def files_of(folder: Path) -> dict[str, bytes]:
    """The files of a run folder, by their paths on the storage."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {f"/bucket/runs/mine/{path.relative_to(folder).as_posix()}": path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def generations(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A run folder after each of its checkpoints: of steps 10 (best), 20, 30 and 40 (best)."""
    folder = tmp_path_factory.mktemp("generations")
    run = Run.create(SETTINGS, "corpus", out=folder / "run")
    copies = []
    for step, best in ((10, True), (20, False), (30, False), (40, True)):
        run.log("metrics", {"step": step, "loss": 1.0})
        save(run, step, best)
        copies.append(Path(shutil.copytree(run.folder, folder / str(step))))
    return copies


KINDS = ("fails", "half and silent", "half and killed")


@pytest.mark.filterwarnings("ignore::octavo.errors.OctavoWarning")  # a damaged checkpoint is left out
@pytest.mark.parametrize("kind", KINDS)
def test_the_last_complete_checkpoint_loads_whatever_fails(
    kind: str, generations: list[Path], faults: Faults, tmp_path: Path
) -> None:
    """Every write that copying a checkpoint makes is disturbed once. Then the copy is made again.

    The last case has a network that is slower than training: two checkpoints were saved since the copy, and the
    trainer's state was removed from the one that was copied.
    """
    numbers = itertools.count()
    # Copied when it was after step 10, then killed and resumed from there: other lines follow.
    killed = Path(shutil.copytree(generations[0], tmp_path / "killed"))
    Run(killed).log("metrics", {"step": 15, "loss": 2.0})
    for previous, generation in [*itertools.pairwise((None, *generations)), (killed, generations[2])]:
        restore({})
        faults.at = None
        if previous is not None:
            mirror.push(previous, Storage(URL))
        before, faults.writes = stored(), 0
        mirror.push(generation, Storage(URL))
        after, writes = stored(), faults.writes
        assert after == files_of(generation)
        for at in range(writes):
            restore(before)
            faults.at, faults.writes, faults.kind = at, 0, kind
            with contextlib.suppress(MachineError, KilledError):
                mirror.push(generation, Storage(URL))
            faults.at = None
            fetched = tmp_path / str(next(numbers))
            if previous is not None or stored().keys() >= {f"/bucket/runs/mine/{name}" for name in ("last", "best")}:
                mirror.fetch_run(URL, fetched)
                last = Run(fetched).last
                assert last is not None
                checkpoint.check_manifest(last, foreign=False)
                steps = [
                    runs.step_of(path) for path in (Run(each).last for each in (previous, generation) if each) if path
                ]
                assert runs.step_of(last) in steps
                if kind == "fails":  # otherwise a log may end with half of a line
                    logged = [line["step"] for line in Run(fetched).lines("metrics")]
                    assert set(logged) >= {step for step in (10, 20, 30, 40) if step <= runs.step_of(last)}
            mirror.push(generation, Storage(URL))
            assert stored() == after


def test_what_fails_is_tried_again_after_longer_and_longer_delays(generations: list[Path], faults: Faults) -> None:
    waited: list[float] = []
    faults.at = 2
    mirror.push(generations[0], Storage(URL, (1, 2, 4), waited.append))
    assert waited == [1]
    assert stored() == files_of(generations[0])
    faults.check = lambda act, path, content: (_ for _ in ()).throw(OSError("down"))  # type: ignore[method-assign]
    with pytest.raises(MachineError, match="down"):
        mirror.push(generations[1], Storage(URL, (1, 2, 4), waited.append))
    assert waited == [1, 1, 2, 4]


def test_lines_that_are_logged_meanwhile_do_not_disturb_the_copy(
    generations: list[Path], faults: Faults, tmp_path: Path
) -> None:
    run = Run(shutil.copytree(generations[0], tmp_path / "run"))
    original = faults.check

    def check(act: Callable[..., None], path: str, content: bytes | None) -> None:
        original(act, path, content)
        run.log("metrics", {"step": 11, "loss": 1.0})

    faults.check = check  # type: ignore[method-assign]
    mirror.push(run.folder, Storage(URL))
    mirror.fetch_run(URL, tmp_path / "fetched")
    assert {line["step"] for line in Run(tmp_path / "fetched").lines("metrics")} == {10, 11}


def test_the_copy_of_a_checkpoint_that_training_removes_meanwhile_is_complete(
    generations: list[Path], faults: Faults, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(generations[0], tmp_path / "run"))
    original = faults.check

    def check(act: Callable[..., None], path: str, content: bytes | None) -> None:
        if "/checkpoints/" in path:
            shutil.rmtree(folder / "checkpoints" / "step-000010", ignore_errors=True)
        original(act, path, content)

    faults.check = check  # type: ignore[method-assign]
    mirror.push(folder, Storage(URL))
    assert octavo.load(URL).info["step"] == 10
    shutil.rmtree(folder)
    mirror.push(folder, Storage(URL))  # a run folder that is gone removes nothing
    assert octavo.load(URL).info["step"] == 10


# Loading


def test_a_url_names_a_run_a_checkpoint_or_a_folder_of_another_program(
    generations: list[Path], own_cache: Path
) -> None:
    mirror.push(generations[2], Storage(URL))
    loaded = octavo.load(URL)
    assert loaded.info["step"] == 10
    assert not checkpoint.has_trainer(loaded.folder)
    assert own_cache in loaded.folder.parents
    assert octavo.load(f"{URL}/checkpoints/step-000030/").info["step"] == 30
    mirror.push(generations[3], Storage(URL))
    assert octavo.load(URL).info["step"] == 40
    assert runs.find_checkpoint(URL).parent.parent.name == "mine"
    assert list(runs.find_checkpoint(URL).parent.iterdir()) == [runs.find_checkpoint(URL)]
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        MemoryFileSystem().pipe_file(f"/other/gpt/{name}", (runs.find_checkpoint(URL) / name).read_bytes())
    assert octavo.load("memory://other/gpt").info == {}
    assert "neither a run nor" in error_of(lambda: octavo.load("memory://other")).message


def test_a_damaged_checkpoint_is_left_out_with_a_warning(generations: list[Path], tmp_path: Path) -> None:
    mirror.push(generations[3], Storage(URL))
    content = stored()
    path = "/bucket/runs/mine/checkpoints/step-000040/model.safetensors"
    restore(content | {path: content[path][:-1] + b"?"})
    with pytest.warns(OctavoWarning, match=r"using .*step-000030"):
        assert octavo.load(URL).info["step"] == 30
    with pytest.warns(OctavoWarning, match="damaged checkpoint is left out"):
        mirror.fetch_run(URL, tmp_path / "run")
    run = Run(tmp_path / "run")
    assert [path.name for path in run.resumable] == ["step-000030"]
    assert run.last == run.resumable[0]
    assert run.best is None


# Training


def test_training_resumes_from_a_copy_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enter_folder(tmp_path, monkeypatch)
    run_events(out="whole")
    run_events(out="stopped", stop_after=6, mirror=URL)
    assert stored() == files_of(Path("stopped"))
    assert "has a run already" in error_of(lambda: run_events(out="another", mirror=URL)).message
    assert not Path("another").exists()
    *_, finished = run_events(resume=URL, mirror=URL)  # type: ignore[arg-type]
    assert isinstance(finished, Finished)
    assert finished.run == Path("runs/mine")
    for name in ("model.safetensors", "trainer.safetensors"):
        assert (finished.checkpoint / name).read_bytes() == (Path("whole/checkpoints/step-000012") / name).read_bytes()
    assert stored() == {path: value for path, value in files_of(finished.run).items() if ".origin" not in path}
    *_, again = run_events(resume=URL, max_steps=13)  # type: ignore[arg-type]
    assert isinstance(again, Finished)
    assert again.step == 13
    assert "not empty" in error_of(lambda: run_events(resume=URL, out="whole")).message  # type: ignore[arg-type]
    run_events(out="other", seed=5)
    assert "its seed is" in error_of(lambda: run_events(resume=Path("other"), mirror=URL, max_steps=13)).message


def test_training_neither_waits_for_the_storage_nor_ends_because_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: Faults
) -> None:
    enter_folder(tmp_path, monkeypatch)
    is_released = threading.Event()
    original = faults.check

    def check(act: Callable[..., None], path: str, content: bytes | None) -> None:
        assert is_released.wait(60)
        original(act, path, content)

    faults.check = check  # type: ignore[method-assign]
    seen: list[training.Event] = []
    for event in training.events(training.plan("text.txt", **SMALL, out="run", mirror=URL)):
        seen.append(event)
        if isinstance(event, Step) and event.step == 12:
            assert any(isinstance(each, Saved) for each in seen)
            is_released.set()
    assert stored() == files_of(Path("run"))
    assert not any(isinstance(event, Notice) and URL in event.text for event in seen)

    faults.check = lambda act, path, content: (_ for _ in ()).throw(OSError("down"))  # type: ignore[method-assign]
    monkeypatch.setattr(loop, "open_mirror", functools.partial(open_mirror, delays=()))
    *events, finished = run_events(out="second", mirror="memory://bucket/second")
    assert isinstance(finished, Finished)
    assert octavo.load("second").info["step"] == finished.step
    notices = [event.text for event in events if isinstance(event, Notice) and "not copied" in event.text]
    assert "down" in notices[0]
    assert "next checkpoint tries again" in notices[0]
    assert "tries again" not in notices[-1]


def test_the_other_processes_wait_for_the_first_one(
    generations: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, calls = World(), list[str]()
    monkeypatch.setattr(world, "wait_for_first", lambda: calls.append("waited"))
    finished = Finished(generations[0], generations[0], 10, 0, None, None, None, 0.0, 0.0, 0, "done")
    for storage in (None, Storage(URL)):
        for event in upload(iter([Saved(10, generations[0]), finished]), Run(generations[0]), storage, world):
            assert len(calls) == (event is finished)
        calls.clear()
    assert stored() == files_of(generations[0])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"mirror": "runs/copy"}, "is not a URL"),
        ({"out": "s3://bucket/run"}, "is a URL"),
        ({"mirror": "nowhere://bucket/run"}, "nowhere"),
        ({"resume": "memory://bucket/none"}, "is not a run"),
    ],
)
def test_urls_that_cannot_be_used_are_rejected(words: dict[str, Any], message: str, tmp_path: Path) -> None:
    def train() -> None:
        list(training.events(training.plan(**({} if "resume" in words else {"source": "pydocs"}) | words)))

    assert message in error_of(train).message


def test_the_package_that_a_url_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def url_to_fs(url: str, **options: Any) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", url_to_fs)
    with pytest.raises(OctavoError, match="needs the package s3fs"):
        octavo.load("s3://bucket/run")
