"""The run folder: names, and finding a run."""

import dataclasses
import errno
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import octavo
from folders import contents, system_call_error
from octavo import checkpoint, runs
from octavo.errors import OctavoWarning
from octavo.interop import gpt2_folder
from octavo.model import GPT
from octavo.runs import Run, find_checkpoint
from octavo.settings import Settings
from preparing import error_of
from run_folders import SETTINGS, save

pytestmark = pytest.mark.usefixtures("empty_workdir")


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


def test_a_file_in_the_place_of_the_folder_of_runs_is_an_error_that_names_the_run() -> None:
    Path("runs").write_text("mine", encoding="utf-8")
    assert str(Path("runs", "corpus-1")) in error_of(lambda: Run.create(SETTINGS, "corpus")).message


@pytest.mark.parametrize("name", ["a", "my-run_2.0+b", "7", "опыт"])
def test_an_explicit_name_is_used_unchanged(name: str) -> None:
    run = Run.create(SETTINGS, "corpus", name=name)
    assert run.folder == Path("runs", name)
    save(run, 10)
    error = error_of(lambda: Run.create(SETTINGS, "corpus", name=name))
    assert f"runs/{name} already exists" in error.message.replace("\\", "/")
    assert f"--resume runs/{name}" in str(error.hint).replace("\\", "/")


def test_a_run_that_can_be_resumed_is_offered_and_a_folder_that_can_not_is_not() -> None:
    run = Run.create(SETTINGS, "corpus")
    (run.folder / "thesis.txt").write_text("precious", encoding="utf-8")
    assert error_of(lambda: Run.create(SETTINGS, "corpus", out=run.folder)).hint == "another name"
    save(run, 10)
    assert f"--resume {run.folder}" in str(error_of(lambda: Run.create(SETTINGS, "corpus", out=run.folder)).hint)
    assert repr(run) == f"Run({str(run.folder)!r})"


@pytest.mark.parametrize("stray", [None, "thesis.txt"])
def test_a_run_that_cannot_be_created_leaves_no_folder_behind(
    stray: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(path: Path, content: str) -> None:
        if stray is not None:  # another process has written into the folder
            (path.parent / stray).write_text("precious", encoding="utf-8")
        raise RuntimeError("crash")

    monkeypatch.setattr("octavo.files.write_atomic", crash)
    with pytest.raises(RuntimeError, match="crash"):
        Run.create(SETTINGS, "corpus", name="mine")
    assert Path("runs/mine").exists() == (stray is not None)


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "/tmp/a", "a\\b", "a b", "a\n", "../a", "a\0b"])
def test_an_invalid_name_is_rejected_and_nothing_is_written(name: str, empty_workdir: Path) -> None:
    error = error_of(lambda: Run.create(SETTINGS, "corpus", name=name))
    assert repr(name) in error.message
    assert "--out" in str(error.hint)
    assert list(empty_workdir.iterdir()) == []


def test_a_run_that_was_killed_before_its_first_checkpoint_may_start_again() -> None:
    killed = Run.create(SETTINGS, "corpus", name="mine")
    killed.log("metrics", {"step": 1})
    settings = dataclasses.replace(SETTINGS, max_steps=7)
    assert Run.create(settings, "corpus", name="mine").settings == settings
    with killed.lock():
        assert "already exists" in error_of(lambda: Run.create(SETTINGS, "corpus", name="mine")).message


@pytest.mark.parametrize("stray", ["thesis.txt", "checkpoints.old", ".hidden", "last"])
def test_a_folder_with_other_files_is_neither_used_again_nor_changed(stray: str, empty_workdir: Path) -> None:
    """Its settings.toml may be that of another program."""
    folder = Run.create(SETTINGS, "corpus", out="mine").folder
    (folder / stray).write_text("precious", encoding="utf-8")
    before = contents(empty_workdir)
    assert "already exists" in error_of(lambda: Run.create(SETTINGS, "corpus", out="mine")).message
    assert contents(empty_workdir) == before


def test_starting_again_removes_the_lines_and_weights_of_the_killed_process() -> None:
    run = Run.create(SETTINGS, "corpus", name="mine")
    run.log("metrics", {"step": 1})
    save(run, 1, weights_only=True)
    again = Run.create(SETTINGS, "corpus", name="mine")
    again.start_again(SETTINGS)
    assert (again.lines("metrics"), again.checkpoints) == ([], {})


def test_a_run_has_the_path_of_the_checkpoint_that_it_started_from() -> None:
    init = Path("naïve model", "step-000010")
    run = Run.create(SETTINGS, "corpus", init=init)
    assert run.init == init.absolute()
    assert (run.folder / ".init").read_bytes() == os.fsencode(init.absolute()) + b"\n"
    run.start_again(SETTINGS)
    assert run.init is None
    run.start_again(SETTINGS, init)
    assert run.init == init.absolute()


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


def test_out_may_be_a_new_or_an_empty_folder(empty_workdir: Path) -> None:
    (empty_workdir / "empty").mkdir()
    for out in ("deep/er/new", empty_workdir / "empty"):
        run = Run.create(SETTINGS, "corpus", out=out)
        assert run.folder == Path(out)
        assert run.settings == SETTINGS
    assert not Path("runs").exists()


@pytest.mark.parametrize("content", ["file.txt", ".hidden", "folder/"])
def test_out_that_is_not_empty_is_rejected_and_left_unchanged(content: str, empty_workdir: Path) -> None:
    Path("out").mkdir()
    if content.endswith("/"):
        Path("out", content).mkdir()
    else:
        Path("out", content).write_text("mine", encoding="utf-8")
    before = contents(empty_workdir)
    error = error_of(lambda: Run.create(SETTINGS, "corpus", out="out"))
    assert "out already exists" in error.message
    assert "--resume" not in str(error.hint)  # it is not a run
    assert contents(empty_workdir) == before


def test_out_that_is_a_file_or_inside_a_file_is_rejected(empty_workdir: Path) -> None:
    Path("out").write_text("mine", encoding="utf-8")
    for out in ("out", "out/run"):
        assert out in error_of(lambda out=out: Run.create(SETTINGS, "corpus", out=out)).message
    assert contents(empty_workdir) == {"out": b"mine"}


def test_out_that_cannot_be_listed_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("out").mkdir()
    monkeypatch.setattr(Path, "iterdir", system_call_error(errno.EACCES))  # root may list every folder
    assert "out can't be" in error_of(lambda: Run.create(SETTINGS, "corpus", out="out")).message


def test_settings_survive_in_the_run_folder() -> None:
    settings = Settings(n_embd=12, n_head=3, learning_rate=1e-4, min_learning_rate=1e-5, source="naïve.txt", bias=False)
    Run.create(settings, "corpus", name="mine")
    assert Run("runs/mine").settings == settings


def test_the_error_for_a_folder_that_is_not_a_run_lists_the_runs() -> None:
    Run.create(SETTINGS, "corpus")
    error = error_of(lambda: Run("runs/corpse-1"))
    assert "corpse-1 is not a run" in error.message
    assert "corpus-1" in str(error.hint)


def test_the_newest_five_runs_are_listed_first_to_last() -> None:
    for time, number in enumerate((3, 1, 4, 6, 5, 2)):
        run = Run.create(SETTINGS, "corpus", name=f"run{number}")
        os.utime(run.folder / "settings.toml", (time, time))
    hint = "one of: " + ", ".join(str(Path("runs", f"run{number}")) for number in (2, 5, 6, 4, 1))
    for name in ("runs", "runs/missing"):
        error = error_of(lambda name=name: find_checkpoint(name))
        assert str(Path(name)) in error.message
        assert error.hint == hint
    assert error_of(lambda: Run("runs/missing")).hint == hint


# Finding a run


def test_the_checkpoint_of_a_run_is_its_best_one_or_else_its_last() -> None:
    run = Run.create(SETTINGS, "corpus")
    first = save(run, 10)
    assert find_checkpoint(run.folder) == first
    second = save(run, 20, best=True)
    save(run, 30)
    assert find_checkpoint(run.folder) == find_checkpoint(str(run.folder)) == second
    assert octavo.load(run.folder).info["step"] == 20


def test_a_checkpoint_or_a_hugging_face_folder_can_be_given_instead_of_a_run(empty_workdir: Path) -> None:
    run = Run.create(SETTINGS, "corpus")
    save(run, 10, best=True)
    last = save(run, 20)
    foreign = empty_workdir / "gpt2"
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


def remove_manifest(folder: Path) -> None:
    """Make a checkpoint look like a folder that Octavo did not write."""
    for name in ("octavo.json", "manifest.json"):
        (folder / name).unlink()


@pytest.mark.parametrize(
    "damage", [shutil.rmtree, remove_manifest, lambda folder: (folder / "model.safetensors").write_bytes(b"x")]
)
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


def test_a_warning_of_load_names_the_line_that_called_it() -> None:
    run = Run.create(SETTINGS, "corpus")
    save(run, 10)
    shutil.rmtree(save(run, 20, best=True))
    with pytest.warns(OctavoWarning) as caught:
        octavo.load(run.folder)
    assert caught[0].filename == __file__


def test_a_run_without_pointers_has_its_newest_checkpoint() -> None:
    run = Run.create(SETTINGS, "corpus")
    for step in (10, 20):
        folder = save(run, step, best=True)
    for pointer in ("last", "best"):
        (run.folder / pointer).unlink()
    assert find_checkpoint(run) == octavo.load(run).folder == folder


def test_a_model_is_loaded_onto_the_given_device(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[str] = []

    def load_on_cpu(folder: Path, settings: Settings, device: str) -> GPT:
        devices.append(device)
        return load_model(folder, settings, "cpu")

    load_model = gpt2_folder.load_model
    monkeypatch.setattr(gpt2_folder, "load_model", load_on_cpu)
    run = Run.create(SETTINGS, "corpus")
    for given in (save(run, 10), run):
        octavo.load(given)
        octavo.load(given, "cuda:1")
    assert devices == ["cpu", "cuda:1"] * 2


def test_a_checkpoint_of_nanogpt_is_loaded_onto_the_given_device(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[tuple[Path, str]] = []
    monkeypatch.setattr("octavo.interop.nanogpt.load", lambda file, device: loaded.append((file, device)))
    Path("out").mkdir()
    file = Path("out/ckpt.pt")
    file.write_bytes(b"")
    octavo.load("out")
    octavo.load(file, "cuda:1")
    assert loaded == [(file, "cpu"), (file, "cuda:1")]


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


def test_the_run_and_step_of_a_checkpoint_follow_from_its_path(empty_workdir: Path) -> None:
    run = Run.create(SETTINGS, "corpus")
    folder = save(run, 10)
    owner = Run.of_checkpoint(folder)
    assert owner is not None
    assert owner.folder == run.folder
    assert runs.step_of(folder) == 10
    assert run.checkpoints == {10: folder}
    outside = Path(shutil.copytree(folder, empty_workdir / "checkpoints" / "step-000010"))
    assert Run.of_checkpoint(outside) is None
    with pytest.raises(ValueError, match=r"thesis is not the folder"):
        runs.step_of(Path("thesis"))


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
    assert runs.find_run("runs") is None


@pytest.mark.parametrize("pointer", ["last", "best"])
def test_a_pointer_of_a_run_means_the_checkpoint_that_it_names(pointer: str) -> None:
    run = Run.create(SETTINGS, "corpus")
    folders = {"best": save(run, 10, best=True), "last": save(run, 20)}
    path = run.folder / pointer
    for given in (path, str(path), path.absolute()):
        found = runs.find_pointer(given)
        assert found is not None
        assert (found[0].folder.absolute(), found[1]) == (run.folder.absolute(), pointer)
        assert find_checkpoint(given).absolute() == folders[pointer].absolute()
        assert octavo.load(given).info["step"] == runs.step_of(folders[pointer])
    path.write_text("step-", encoding="utf-8")
    error = error_of(lambda: find_checkpoint(path))
    assert error.message.startswith(f"{path} is damaged")
    assert str(run.folder / "checkpoints") in str(error.hint)


def test_only_last_and_best_in_a_run_are_pointers() -> None:
    run = Run.create(SETTINGS, "corpus")
    folder = save(run, 10)
    Path("elsewhere").mkdir()
    Path("elsewhere/last").write_text(folder.name, encoding="utf-8")
    (run.folder / "first").write_text(folder.name, encoding="utf-8")
    for other in (run, octavo.load(run), "elsewhere/last", run.folder / "first", run.folder / "best", folder):
        assert runs.find_pointer(other) is None
    assert "is neither a run nor a checkpoint" in error_of(lambda: find_checkpoint("elsewhere/last")).message


def test_a_url_is_a_run_in_other_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.create(SETTINGS, "corpus")
    folder = save(run, 10)
    monkeypatch.setattr("octavo.mirror.fetch_weights", {"memory://bucket/run": run.folder}.__getitem__)
    assert find_checkpoint("memory://bucket/run") == octavo.load("memory://bucket/run").folder == folder


def test_a_name_is_a_model_of_the_hub_with_a_prefix_or_if_it_was_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(Run.create(SETTINGS, "corpus"), 10)
    monkeypatch.setattr("octavo.interop.hub.download", {"owner/new": folder}.__getitem__)
    monkeypatch.setattr("octavo.interop.hub.find_cached", {"owner/cached": folder}.get)
    assert find_checkpoint("hf:owner/new") == find_checkpoint("owner/cached") == folder
    for name, is_hub_name in (
        ("owner/new", True),
        ("new-2.5", True),
        ("runs/new", False),
        ("owner/new.pt", False),
        ("a/b/c", False),
    ):
        error = error_of(lambda name=name: find_checkpoint(name))
        assert error.message == f"{Path(name)} does not exist"
        assert str(error.hint).startswith(f"one of: {folder.parent.parent}")
        assert (f"hf:{name}" in str(error.hint)) == is_hub_name
