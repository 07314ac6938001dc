"""Every verb rejects sources without text, and runs and checkpoints that are missing, damaged or not GPT-2."""

from collections.abc import Callable
from pathlib import Path

import pytest

from checkpoints import CHECKPOINT_FILES
from commands import (
    RECIPE,
    AssertRejected,
    RunCommand,
    command_with_source,
    copy_as_foreign,
    last_checkpoint,
    snapshot,
)
from folders import flip_bit, truncate

# Sources


def write_latin_1(folder: Path) -> str:
    (folder / "latin.txt").write_bytes(b"caf\xe9 " * 100)
    return "latin.txt"


def write_empty(folder: Path) -> str:
    (folder / "empty.txt").touch()
    return "empty.txt"


def write_png(folder: Path) -> str:
    (folder / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    return "picture.png"


def write_folder_without_text(folder: Path) -> str:
    (folder / "folder").mkdir()
    write_png(folder / "folder")
    return "folder"


BAD_SOURCES: list[tuple[Callable[[Path], str], list[str]]] = [
    (write_empty, ["empty.txt is empty"]),
    (lambda folder: "missing.txt", ["no file or folder", "'missing.txt'"]),
    (lambda folder: "*.missing", ["no file", "'*.missing'"]),
    (write_png, ["picture.png is binary"]),
    (write_folder_without_text, ["folder", "no text"]),
    (write_latin_1, ["latin.txt", "utf-8", "byte offset 3"]),
]


@pytest.mark.usefixtures("run_folder")
@pytest.mark.parametrize(("write", "names"), BAD_SOURCES)
@pytest.mark.parametrize("verb", ["train", "prepare", "eval", "estimate"])
def test_a_source_without_text_is_rejected(
    verb: str, write: Callable[[Path], str], names: list[str], workdir: Path, assert_rejected: AssertRejected
) -> None:
    assert_rejected(command_with_source(verb, write(workdir)), *names)


@pytest.mark.usefixtures("run_folder")
@pytest.mark.parametrize("verb", ["train", "prepare", "eval"])
def test_a_text_in_place_of_its_file_is_rejected(verb: str, assert_rejected: AssertRejected) -> None:
    assert_rejected(command_with_source(verb, "the cat sat on the mat " * 500))


@pytest.mark.parametrize("length", [1, 10])
@pytest.mark.parametrize("verb", ["train", "prepare"])
def test_a_text_too_short_to_split_is_rejected(
    verb: str, length: int, workdir: Path, assert_rejected: AssertRejected
) -> None:
    (workdir / "short.txt").write_text("abcdefghij"[:length], encoding="utf-8")
    assert_rejected(command_with_source(verb, "short.txt"), f"{length} characters")


def test_characters_outside_the_models_vocabulary_are_rejected(
    run_folder: Path, workdir: Path, assert_rejected: AssertRejected
) -> None:
    (workdir / "greek.txt").write_text("ω" * 100, encoding="utf-8")
    assert_rejected(["eval", run_folder, "greek.txt"], "unknown characters", "'ω'")
    assert_rejected(["train", "greek.txt", "--init", run_folder], "unknown characters", "'ω'")


# Runs


@pytest.mark.parametrize("verb", ["sample", "eval"])
def test_a_text_in_place_of_a_run_is_rejected(verb: str, assert_rejected: AssertRejected) -> None:
    assert_rejected([verb, "the cat sat on the mat " * 500])


@pytest.mark.parametrize("verb", ["sample", "eval"])
def test_an_unknown_run_is_rejected_with_a_list_of_runs(
    verb: str, run_folder: Path, workdir: Path, assert_rejected: AssertRejected
) -> None:
    (workdir / "folder").mkdir()
    for path, problem in [("nothing", "does not exist"), ("folder", "neither a run"), ("text.txt", "neither a run")]:
        assert_rejected([verb, path], path, problem, run_folder)


# Checkpoints


USES: dict[str, Callable[[Path], list[object]]] = {
    "sample": lambda folder: ["sample", folder, "--max-new-tokens", 3],
    "eval": lambda folder: ["eval", folder],
    "resume": lambda folder: ["train", "--resume", folder, "--max-steps", 6],
    "init": lambda folder: ["train", "text.txt", "--init", folder, *RECIPE],
}


def test_the_list_of_checkpoint_files_is_complete(run_folder: Path) -> None:
    assert {path.name for path in last_checkpoint(run_folder).iterdir()} == CHECKPOINT_FILES


@pytest.mark.parametrize(
    "command", [["sample", "--max-new-tokens", 3], ["eval"], ["inspect", "next_token", "--text", "the cat"]]
)
def test_reading_a_run_writes_nothing_into_it(command: list[object], run_folder: Path, run_command: RunCommand) -> None:
    """So a run is read on a read-only disk, and that of another user, whose lock file this user cannot read."""
    (run_folder / ".lock").unlink()
    before = snapshot(run_folder)
    assert run_command(command[0], run_folder, *command[1:]).code == 0
    assert snapshot(run_folder) == before


@pytest.mark.parametrize("name", sorted(CHECKPOINT_FILES))
@pytest.mark.parametrize("damage", [truncate, flip_bit, Path.unlink])
@pytest.mark.parametrize("use", USES)
def test_a_damaged_checkpoint_is_rejected(
    use: str, damage: Callable[[Path], None], name: str, run_folder: Path, assert_rejected: AssertRejected
) -> None:
    assert (run_folder / "best").read_text(encoding="utf-8") == (run_folder / "last").read_text(encoding="utf-8")
    damage(last_checkpoint(run_folder) / name)
    assert_rejected(USES[use](last_checkpoint(run_folder)), last_checkpoint(run_folder))


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("content", ["{}", '{"files": []}', '{"files": {"config.json": {}}}'])
def test_an_invalid_manifest_is_rejected(
    use: str, content: str, run_folder: Path, assert_rejected: AssertRejected
) -> None:
    (last_checkpoint(run_folder) / "manifest.json").write_text(content, encoding="utf-8")
    assert_rejected(USES[use](last_checkpoint(run_folder)), "manifest.json")


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"model_type": "llama"}, ["'llama'"]),
        ({"model_type": None}, ["None"]),
        ({"scale_attn_by_inverse_layer_idx": True}, ["scale_attn_by_inverse_layer_idx=True"]),
        ({"activation_function": "relu"}, ["activation_function='relu'"]),
        ({"n_layer": 2}, ["config.json", "transformer.h.1."]),
        ({"n_embd": 16}, ["config.json"]),
        ({"n_head": 3}, ["n_embd=8", "n_head=3"]),
    ],
)
@pytest.mark.parametrize("use", ["sample", "eval", "init"])
def test_a_model_of_another_architecture_is_rejected(
    use: str, config: dict[str, object], names: list[str], run_folder: Path, run_command: RunCommand, workdir: Path
) -> None:
    folder = copy_as_foreign(run_folder, **config)
    before = snapshot(workdir)
    # Not `assert_rejected`, because the hint for n_head names a flag that eval does not have.
    result = run_command(*USES[use](folder))
    assert (result.code, result.out) == (2, "")
    assert all(name in result.err for name in names)
    assert "\n  try: " in result.err
    assert snapshot(workdir) == before


def test_a_hugging_face_folder_can_be_sampled_evaluated_and_finetuned_but_not_resumed(
    run_folder: Path, run_command: RunCommand, assert_rejected: AssertRejected
) -> None:
    folder = copy_as_foreign(run_folder)
    assert run_command("sample", folder, "--max-new-tokens", 3).code == 0
    assert run_command("eval", folder, "text.txt").code == 0
    assert run_command("train", "text.txt", "--init", folder, "--max-steps", 1, "--device", "cpu").code == 0
    assert_rejected(["eval", folder], "trained on")
    assert_rejected(["train", "--resume", folder], "foreign is not a run")
