"""The command line: what is typed, what is printed, and that a mistake is answered in two lines and harms nothing."""

import dataclasses
import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

import octavo
from octavo import cli, files
from octavo.data.dataset import open_dataset
from octavo.settings import NANOGPT_NAMES, PRESETS, SECTIONS, DataSettings, from_toml, resolve

TEXT = "the cat sat on the mat, and the rat sat on the hat.\n" * 12
RECIPE = ["--block-size", "8", "--batch-size", "2", "--max-steps", "4", "--device", "cpu", "--precision", "fp32"]
SMALL = ["--n-layer", "1", "--n-head", "1", "--n-embd", "8", *RECIPE]
VERBS = {
    "train": [],
    "sample": ["RUN"],
    "eval": ["RUN"],
    "serve": ["RUN"],
    "prepare": ["SOURCE", "--out", "OUT"],
    "estimate": [],
    "bench": ["train"],
}


@dataclasses.dataclass
class Answer:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on stdout."""
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


Say = Callable[..., Answer]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Run a command in this process."""

    def run(*words: object) -> Answer:
        capsys.readouterr()
        try:
            code = cli.main([str(word) for word in words])
        except SystemExit as end:  # --help and --version
            code = end.code if isinstance(end.code, int) else 0
        return Answer(code, *capsys.readouterr())

    return run


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with a small text, `text.txt`; as wide a page as help may want."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


def there(folder: Path) -> dict[str, bytes | None]:
    """Everything under `folder`: files with what they hold, and folders."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def refused(say: Say, here: Path) -> Callable[..., str]:
    """Run a command that has to be answered with an error in two lines, which leaves everything as it was."""

    def check(*words: object, says: str = "") -> str:
        before = there(here)
        answer = say(*words)
        assert (answer.code, answer.out) == (2, "")
        message, hint = answer.err.splitlines()
        assert message.startswith("error: ")
        assert hint.startswith("  try: ")
        assert says in answer.err
        assert there(here) == before
        flags = cli.parse([str(words[0]), *VERBS[str(words[0])]]).flags if words and words[0] in VERBS else []
        if not re.match(r"  try: octavo ", hint):
            assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", hint)) <= {*flags, "--help"}, hint
        return answer.err

    return check


Refused = Callable[..., str]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps, with what training it as `--json` said in `said.json`. Only to be copied."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OCTAVO_CACHE", str(folder / "cache"))
        patch.setattr(sys, "stdout", io.StringIO())
        words = ["train", str(folder / "text.txt"), "--out", str(folder / "run"), "--eval-every", "2", "--json"]
        assert cli.main([*words, *SMALL]) == 0
        (folder / "said.json").write_text(sys.stdout.getvalue(), encoding="utf-8")  # type: ignore[attr-defined]
    return folder


@pytest.fixture
def run(trained: Path, here: Path) -> Path:
    """A copy of the run, as runs/mine."""
    return Path(shutil.copytree(trained / "run", here / "runs" / "mine")).relative_to(here)


def last(run: Path) -> Path:
    return run / "checkpoints" / (run / "last").read_text(encoding="utf-8").strip()


# Bad text


def latin(here: Path) -> str:
    (here / "latin.txt").write_bytes(b"caf\xe9 " * 100)
    return "latin.txt"


def empty(here: Path) -> str:
    (here / "empty.txt").touch()
    return "empty.txt"


def picture(here: Path) -> str:
    (here / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    return "picture.png"


def textless(here: Path) -> str:
    (here / "folder").mkdir()
    picture(here / "folder")
    return "folder"


BAD_TEXTS = [
    (empty, "empty.txt is empty"),
    (lambda here: "missing.txt", "there is no file or folder 'missing.txt'"),
    (lambda here: "*.missing", "no file matches '*.missing'"),
    (picture, "picture.png is binary, not text"),
    (textless, "folder has no text in it"),
    (latin, "latin.txt is not utf-8: invalid continuation byte at byte offset 3"),
]


def reading(verb: str, source: object) -> list[object]:
    """The words with which a verb reads a text."""
    more = {"train": [source, *SMALL], "prepare": [source, "--out", "out"], "eval": ["runs/mine", source],
            "estimate": [source, *SMALL]}  # fmt: skip
    return [verb, *more[verb]]


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize(
    ("verb", "make", "says"),
    [(verb, make, says) for verb in ("train", "prepare", "eval", "estimate") for make, says in BAD_TEXTS],
)
def test_a_source_without_text_is_told(
    verb: str, make: Callable[[Path], str], says: str, here: Path, refused: Refused
) -> None:
    refused(*reading(verb, make(here)), says=says)


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("verb", ["train", "prepare", "eval"])
def test_a_source_with_an_endless_name_is_told(verb: str, refused: Refused) -> None:
    """As when a text is given where its file should be."""
    refused(*reading(verb, "the cat sat on the mat " * 500))


@pytest.mark.parametrize("length", [1, 10])
@pytest.mark.parametrize("verb", ["train", "prepare"])
def test_a_text_too_short_to_split_is_told(verb: str, length: int, here: Path, refused: Refused) -> None:
    (here / "short.txt").write_text("abcdefghij"[:length], encoding="utf-8")
    refused(*reading(verb, "short.txt"), says=f"the text has {length} characters")


def test_a_text_shorter_than_a_window_is_told_with_a_block_that_works(say: Say, here: Path, refused: Refused) -> None:
    (here / "short.txt").write_text("the cat sat on the mat\n" * 2, encoding="utf-8")
    words = ["train", "short.txt", *SMALL]
    said = refused(*words, "--block-size", 64, says="block_size + 1 = 65")
    assert say(*words, *re.findall(r"--block-size \d+", said)[0].split()).code == 0


def test_a_text_with_other_characters_than_the_models_is_told(run: Path, here: Path, refused: Refused) -> None:
    (here / "greek.txt").write_text("ω" * 100, encoding="utf-8")
    refused("eval", run, "greek.txt", says="unknown characters 'ω'")
    refused("train", "greek.txt", "--init", run, says="unknown characters 'ω'")


# Bad words


MISTAKES = [
    ("--preset tinny", "there is no preset 'tinny'\n  try: --preset tiny"),
    ("--n-layrs 6", "there is no option --n-layrs\n  try: --n-layer"),
    ("--n_layrs=6", "there is no option --n-layrs\n  try: --n-layer"),
    ("--n-lay 6", "there is no option --n-lay\n  try: --n-layer"),  # an abbreviation is no name
    ("--qqqqq", "there is no option --qqqqq\n  try: octavo train --help"),
    ("more.txt", "unexpected argument 'more.txt'"),
    ("--n-layer", "expected one argument"),
    ("--n-embd 384 --n-head 5", "n_embd=384 is not divisible by n_head=5\n  try: --n-head 6"),
    ("--n-layer six", "'six' is not an integer"),
    ("--max-steps 1e3", "'1e3' is not an integer"),
    ("--learning-rate fast", "'fast' is not a number"),
    ("--bias maybe", "'maybe' is neither true nor false"),
    ("--learning-rate nan", "learning_rate=nan is not a finite number"),
    ("--learning-rate inf", "learning_rate=inf is not a finite number"),
    ("--dropout NaN", "dropout=nan is not a finite number"),
    ("--learning-rate -1", "learning_rate=-1.0 is not between 0 and 100"),
    ("--learning-rate 1e9", "learning_rate=1000000000.0 is not between"),
    ("--learning-rate 1e-9 --min-learning-rate 1e-4", "min_learning_rate=0.0001 is above learning_rate=1e-09"),
    ("--batch-size 0", "batch_size=0 is not between 1 and"),
    ("--batch-size -4", "batch_size=-4 is not between 1 and"),
    ("--n-layer 0", "n_layer=0 is not between"),
    ("--n-layer 99999999999999999999", "n_layer=99999999999999999999 is not between"),
    ("--n-embd 1000000", "n_embd=1000000 is not between"),
    ("--max-steps -1", "max_steps=-1 is not between"),
    ("--dropout 1", "dropout=1.0 is not between"),
    ("--val-fraction 1", "val_fraction=1.0 is not between"),
    ("--seed -1", "seed=-1 is not between"),
    ("--schedule cosin", "there is no schedule 'cosin'\n  try: --schedule cosine"),
    ("--precision fp8", "there is no precision 'fp8'"),
    ("--precision fp16", "fp16 is slow and untested on a CPU\n  try: --precision bf16 or"),
    ("--device gpu", "there is no device 'gpu'"),
    ("--device meta", "this machine has no device 'meta'"),
    ("--tokenizer chars", "tokenizer 'chars' is not one of"),
    ("--tokenizer bpe:1", "bpe:1: N must be 257 to"),
    ("--vocab-size 5", "vocab_size=5, but the tokenizer has"),
    ("--encoding utf-99", "there is no text encoding 'utf-99'"),
    ("--errors shrug", "there is no errors 'shrug'"),
    ("--config missing.toml", "there is no settings file missing.toml"),
    ("--config text.txt", "text.txt is not readable TOML"),
    ("--name a/b", "'a/b' is not a valid run name"),
    ("--name ..", "'..' is not a valid run name"),
    ("--resume nothing", "nothing is not a run"),
    ("--init nothing", "nothing does not exist"),
]


@pytest.mark.parametrize(("words", "says"), MISTAKES)
def test_a_mistake_is_told_and_nothing_is_written(words: str, says: str, refused: Refused) -> None:
    if words.startswith("--resume"):
        refused("train", *words.split(), says=says)
    else:
        refused("train", "text.txt", *(RECIPE if "--init" in words else SMALL), *words.split(), says=says)


@pytest.mark.parametrize("form", ["--{}=1", "--{} 1"])
@pytest.mark.parametrize("name", NANOGPT_NAMES)
def test_nanogpts_names_are_answered_with_ours(name: str, form: str, refused: Refused) -> None:
    for spelt in (name, name.replace("_", "-")):
        said = refused("train", "text.txt", *form.format(spelt).split(), says="is nanoGPT's name")
        assert NANOGPT_NAMES[name] in said


def test_no_verb_at_all_shows_what_there_is(say: Say) -> None:
    answer = say()
    assert answer.code == 0
    assert all(verb in answer.out for verb in cli.VERBS)


def test_a_misspelt_verb_is_answered_with_the_nearest(refused: Refused) -> None:
    refused("trian", "my.txt", says="try: octavo train")


@pytest.mark.parametrize(("word", "ours"), [("--start=abc", "--prompt"), ("--out_dir=x", "the run itself")])
def test_what_nanogpts_sample_calls_otherwise_is_answered_with_ours(word: str, ours: str, refused: Refused) -> None:
    refused("sample", "runs/mine", word, says=ours)


@pytest.mark.parametrize("words", [["--n-layer", "6"], ["--versoin"], ["sample"], ["prepare", "a.txt"]])
def test_a_command_that_is_none_is_told(words: list[str], refused: Refused) -> None:
    refused(*words, says="--help")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--temperature nan", "temperature=nan is not between 0 and 100"),
        ("--temperature -1", "temperature=-1.0"),
        ("--top-k -1", "top_k=-1"),
        ("--top-p 0", "top_p=0.0"),
        ("--top-p 2", "top_p=2.0"),
        ("--top-q 1", "there is no option --top-q\n  try: --top-"),
        ("--max-new-tokens -1", "max_new_tokens=-1"),
        ("--max-new-tokens 999999999999", "max_new_tokens=999999999999"),
        ("--num-samples 0", "num_samples=0"),
        ("--seed -1", "seed=-1"),
        ("--seed 1e3", "'1e3' is not an integer"),
        ("--unknown ignore", "invalid choice: 'ignore'"),
        ("--device gpu", "there is no device 'gpu'"),
        ("--prompt a --prompt-file b", "not allowed with"),
    ],
)
def test_a_mistake_in_sampling_is_told(words: str, says: str, run: Path, refused: Refused) -> None:
    refused("sample", run, *words.split(), says=says)


@pytest.mark.parametrize("content", [None, b"caf\xe9"])
def test_a_prompt_file_that_can_not_be_read_is_told(
    content: bytes | None, run: Path, here: Path, refused: Refused
) -> None:
    if content is not None:
        (here / "prompt.txt").write_bytes(content)
    refused("sample", run, "--prompt-file", "prompt.txt", says="prompt.txt")


@pytest.mark.parametrize("block_size", ["-5", "0"])
def test_a_window_without_a_token_is_told(block_size: str, run: Path, refused: Refused) -> None:
    refused("eval", run, "text.txt", "--block-size", block_size, says="block_size")


@pytest.mark.skipif(os.name == "nt", reason="Windows doesn't tell how much memory there is")
@pytest.mark.parametrize("words", ["--n-embd 65536 --n-layer 1024", "--n-embd 65536 --vocab-size 16777216"])
def test_a_model_that_does_not_fit_into_memory_is_told(words: str, refused: Refused) -> None:
    refused("train", "text.txt", *SMALL, *words.split(), says="GB to train, and this machine has")


# Bad places


def test_what_lies_where_a_run_should_go_stays(run: Path, here: Path, refused: Refused) -> None:
    (here / "file").touch()
    for place in (["--out", run], ["--name", "mine"], ["--out", here], ["--out", "file"]):
        refused("train", "text.txt", *SMALL, *place, says="already exists")
    refused("train", "text.txt", *SMALL, "--out", "file/run", says="file/run")
    refused("prepare", "text.txt", "--out", run, says="is not empty")
    refused("prepare", "text.txt", "--out", "file", says="is not empty")


@pytest.mark.parametrize("place", ["--out", "--name"])
def test_a_run_with_an_endless_name_is_told(place: str, refused: Refused) -> None:
    refused("train", "text.txt", *SMALL, place, "a" * 5_000)


@pytest.mark.parametrize("verb", ["sample", "eval"])
def test_a_run_that_is_a_whole_text_is_told(verb: str, refused: Refused) -> None:
    refused(verb, "the cat sat on the mat " * 500)


@pytest.mark.parametrize("verb", ["sample", "eval"])
def test_what_is_no_run_is_told_with_the_runs_there_are(verb: str, run: Path, here: Path, refused: Refused) -> None:
    (here / "folder").mkdir()
    for place, says in [("nothing", "does not exist"), ("folder", "is neither a run"), ("text.txt", "is neither")]:
        assert str(run) in refused(verb, place, says=says)


HOLD = """
import sys, filelock
lock = filelock.FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_run_that_another_process_trains_is_told_and_can_be_looked_at(run: Path, say: Say, refused: Refused) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, run / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        refused("train", "--resume", run, "--max-steps", 6, says=f"{run} is in use")
        assert say("eval", run).code == say("sample", run, "--max-new-tokens", 3).code == 0
        process.communicate("")
    assert say("train", "--resume", run, "--max-steps", 6).code == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("other.txt", "other.txt is not the text that this run was trained on"),
        ("--tokenizer byte", "tokenizer is 'char' in this run and can't become 'byte'"),
        ("--n-layer 2", "n_layer is 1 in this run and can't become 2"),
        ("--block-size 4", "block_size is 8 in this run"),
        ("--vocab-size 99", "vocab_size is"),
        ("--no-bias", "bias is True in this run"),
        ("--val-fraction 0.2", "val_fraction is 0.1 in this run"),
        ("--encoding latin-1", "encoding is 'utf-8' in this run"),
        ("--preset baby", "a resumed run has its settings"),
        ("--config some.toml", "a resumed run has its settings"),
        ("--init runs/mine", "a resumed run has its settings"),
        ("--out another", "a resumed run stays in its folder"),
        ("--name another", "a resumed run stays in its folder"),
        ("--learning-rate 1000", "learning_rate=1000.0 is not between"),
        ("--max_iters=10", "is nanoGPT's name"),
    ],
)
def test_what_a_run_can_not_go_on_with_is_told(words: str, says: str, run: Path, here: Path, refused: Refused) -> None:
    (here / "other.txt").write_text(TEXT.swapcase(), encoding="utf-8")
    refused("train", *words.split(), "--resume", run, says=says)


# Bad checkpoints


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


WAYS: dict[str, Callable[[Path], list[object]]] = {
    "sample": lambda run: ["sample", run, "--max-new-tokens", 3],
    "eval": lambda run: ["eval", run],
    "resume": lambda run: ["train", "--resume", run, "--max-steps", 6],
    "init": lambda run: ["train", "text.txt", "--init", run, *RECIPE],
}
PARTS = [
    "config.json", "generation_config.json", "manifest.json", "model.safetensors", "octavo.json", "tokenizer.json",
    "tokenizer_config.json", "trainer.json", "trainer.safetensors",
]  # fmt: skip


def test_those_are_the_parts(run: Path) -> None:
    assert sorted(path.name for path in last(run).iterdir()) == PARTS


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
@pytest.mark.parametrize("way", WAYS)
def test_a_damaged_checkpoint_is_told_whatever_one_wants_of_it(
    way: str, damage: Callable[[Path], None], name: str, run: Path, refused: Refused
) -> None:
    assert (run / "best").read_text(encoding="utf-8") == (run / "last").read_text(encoding="utf-8")
    damage(last(run) / name)
    refused(*WAYS[way](run), says=str(last(run)))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("content", ["{}", '{"files": []}', '{"files": {"config.json": {}}}'])
def test_a_manifest_that_says_nothing_is_told(way: str, content: str, run: Path, refused: Refused) -> None:
    (last(run) / "manifest.json").write_text(content, encoding="utf-8")
    refused(*WAYS[way](run), says="manifest.json")


def foreign(run: Path, **config: object) -> Path:
    """A Hugging Face folder from elsewhere, its config changed."""
    folder = Path("foreign")
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(last(run) / name, folder)
    known = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(known | config), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "llama"}, "holds a 'llama' model"),
        ({"model_type": None}, "holds a None model"),
        ({"scale_attn_by_inverse_layer_idx": True}, "not GPT-2's architecture"),
        ({"activation_function": "relu"}, "not GPT-2's architecture"),
        ({"n_layer": 2}, "does not match its config.json: transformer.h.1."),
        ({"n_embd": 16}, "does not match its config.json"),
        ({"n_head": 3}, "n_embd=8 is not divisible by n_head=3"),
    ],
)
@pytest.mark.parametrize("way", ["sample", "eval", "init"])
def test_a_model_of_another_architecture_is_told(
    way: str, config: dict[str, object], says: str, run: Path, say: Say, here: Path
) -> None:
    folder = foreign(run, **config)
    before = there(here)
    answer = say(*WAYS[way](folder))
    assert (answer.code, answer.out) == (2, "")
    assert says in answer.err
    assert "\n  try: " in answer.err
    assert there(here) == before


def test_a_folder_from_elsewhere_can_be_sampled_evaluated_and_tuned_but_not_resumed(
    run: Path, say: Say, refused: Refused
) -> None:
    folder = foreign(run)
    assert say("sample", folder, "--max-new-tokens", 3).code == 0
    assert say("eval", folder, "text.txt").code == 0
    assert say("train", "text.txt", "--init", folder, "--max-steps", 1, "--device", "cpu").code == 0
    refused("eval", folder, says="which text it was trained on")
    refused("train", "--resume", folder, says="foreign is not a run")


def test_only_the_last_checkpoint_can_be_gone_on_from(run: Path, refused: Refused) -> None:
    refused("train", "--resume", run / "checkpoints" / "step-000002", says="holds only weights")


# Bad tokens


def test_ids_beyond_the_vocabulary_are_told(say: Say, here: Path, refused: Refused) -> None:
    vocab_size = say("prepare", "text.txt", "--out", "tokens", "--json").json["vocab_size"]
    tokens = np.load(here / "tokens" / "train-00000.npy")
    tokens[5] = vocab_size
    np.save(here / "tokens" / "train-00000.npy", tokens)
    refused("train", "tokens", *SMALL, says="was changed since it was prepared")
    info = json.loads((here / "tokens" / "dataset.json").read_text(encoding="utf-8"))
    info["files"]["train-00000.npy"]["sha256"] = files.sha256(here / "tokens" / "train-00000.npy")
    (here / "tokens" / "dataset.json").write_text(json.dumps(info), encoding="utf-8")
    refused("train", "tokens", *SMALL, says=f"has id {vocab_size}, beyond the vocabulary of {vocab_size}")


def test_tokens_of_another_tokenizer_are_told(say: Say, run: Path, refused: Refused) -> None:
    assert say("prepare", "text.txt", "--out", "bytes", "--tokenizer", "byte").code == 0
    refused("eval", run, "bytes", says="another tokenizer than the model's")
    refused("train", "bytes", "--init", run, says="another tokenizer than the model's")
    refused("train", "bytes", *SMALL, "--tokenizer", "char", says="prepared with tokenizer byte, not char")
    refused("train", "bytes", "--resume", run, says="bytes")


# A full disk


@dataclasses.dataclass
class Disk:
    """A disk that takes so many more files, and counts those it took."""

    room: int = 10**9
    taken: int = 0

    def fsync(self, descriptor: int) -> None:
        if self.taken >= self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.taken += 1

    def has(self, room: int) -> None:
        self.room, self.taken = room, 0


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(os, "fsync", disk.fsync)
    return disk


def whole(here: Path) -> bool:
    """Whether nothing is left of what was being written."""
    return not [path for path in here.rglob("*") if path.name.endswith((".partial", ".removed"))]


def test_wherever_training_fills_the_disk_it_goes_on_from_the_last_checkpoint(disk: Disk, say: Say, here: Path) -> None:
    words = ["train", "text.txt", *SMALL, "--eval-every", 2, "--keep-checkpoints", 0, "--sample-every", 0, "--out"]
    assert say(*words, "undisturbed").code == 0  # the text is prepared from now on
    disk.has(room=10**9)
    assert say(*words, "another").code == 0
    weights = (last(here / "undisturbed") / "model.safetensors").read_bytes()
    went_on = 0
    for room in range(1, disk.taken):  # with room for none not even its settings are written; see below
        run = here / f"with room for {room}"
        disk.has(room)
        answer = say(*words, run)
        assert answer.code == 2
        assert f"error: the disk is full while writing {run}" in answer.err
        assert "\n  try: " in answer.err
        assert whole(here)
        disk.has(room=10**9)
        if not (run / "last").exists():
            continue
        went_on += 1
        assert say("eval", run).code == 0
        assert say("train", "--resume", run).code == 0
        assert (last(run) / "model.safetensors").read_bytes() == weights
        assert [line["step"] for line in octavo.Run(run).lines("metrics")] == [1, 2, 4]
    assert went_on > 10


def test_a_run_for_which_there_is_no_room_at_all_is_not_begun(disk: Disk, say: Say, here: Path) -> None:
    words = ["train", "text.txt", *SMALL, "--name", "mine"]
    assert say("train", "text.txt", *SMALL, "--name", "another").code == 0
    before = there(here)
    disk.has(room=0)
    assert "disk is full" in say(*words).err
    assert there(here) == before
    disk.has(room=10**9)
    assert say(*words).code == 0


@pytest.mark.parametrize("verb", ["train", "prepare"])
def test_wherever_preparing_fills_the_disk_only_what_was_finished_is_left_and_it_works_next_time(
    verb: str, disk: Disk, say: Say, here: Path, own_cache: Path, refused: Refused
) -> None:
    places, room = (own_cache, here), 0
    for room in range(100):  # files, and the folders that they come into
        disk.has(room)
        if (answer := say(*reading(verb, "text.txt"))).code == 0 or "step" in answer.err:
            break
        assert answer.code == 2
        assert "disk is full" in answer.err
        assert whole(own_cache)
        assert whole(here)
        left = {path.parent for place in places for path in place.rglob("*.npy")}
        for folder in (each for each in left if not each.name.endswith(".preparing")):  # only its name wasn't flushed
            open_dataset(folder)
            shutil.rmtree(folder)
    assert room >= 4  # each went on where the one before it had ended
    shutil.rmtree(here / "out", ignore_errors=True)
    disk.has(room=10**9)
    assert say(*reading(verb, "text.txt")).code == 0
    assert not [path for place in places for path in place.rglob("*.preparing")]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file grows beyond `size` bytes: to whoever writes, a full disk, whatever language it is written in."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit")
def test_a_disk_that_fills_under_the_weights_is_told(say: Say, here: Path) -> None:
    with largest_file(50_000):
        answer = say("train", "text.txt", *SMALL, "--n-embd", 64, "--out", "run")
    assert answer.code == 2
    assert "error: the disk is full while writing run" in answer.err
    assert "\n  try: " in answer.err
    assert list((here / "run" / "checkpoints").iterdir()) == []


# A loss that is no number

EXPLODING = [*SMALL, "--max-steps", 50, "--learning-rate", 100, "--weight-decay", 100, "--grad-clip", 0,
             "--warmup-steps", 0, "--log-every", 1, "--out", "run"]  # fmt: skip


def exploded(say: Say, *words: object) -> Path:
    """The checkpoint that is named as the last good one."""
    answer = say("train", "text.txt", *EXPLODING, *words)
    assert answer.code == 2
    assert re.match(r"error: training .* step \d+", answer.err)
    assert "\n  try: --learning-rate " in answer.err
    return Path(re.findall(r"the last good checkpoint is (\S+)", answer.err)[0])


def test_a_loss_that_is_no_number_ends_the_run_with_its_last_good_checkpoint(say: Say) -> None:
    checkpoint = exploded(say, "--eval-every", 1)
    assert checkpoint == last(Path("run"))
    assert np.isfinite(say("eval", checkpoint, "--json").json["loss"])
    assert say("sample", checkpoint, "--max-new-tokens", 3).code == 0


def test_a_good_checkpoint_is_good_also_where_it_was_not_evaluated(say: Say) -> None:
    checkpoint = exploded(say, "--eval-every", 1000, "--save-every", 1)
    assert say("sample", checkpoint, "--max-new-tokens", 3).code == 0


def test_a_model_with_broken_weights_has_no_loss(run: Path, refused: Refused) -> None:
    folder = foreign(run)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["transformer.ln_f.weight"][0] = torch.nan
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    refused("sample", folder, says="its weights are broken")
    refused("eval", folder, "text.txt", says="its weights are broken")


def test_a_run_that_breaks_before_its_first_checkpoint_says_so(say: Say) -> None:
    answer = say("train", "text.txt", *EXPLODING)
    assert answer.code == 2
    assert "there is no checkpoint yet\n  try: --learning-rate" in answer.err


# Help


def line_of(flag: str, help: str) -> str:
    """What the help says of a flag, on one line."""
    (line,) = re.findall(rf"^  {flag}(?![\w-]).*(?:\n {{20,}}.*)*", help, re.MULTILINE)
    return " ".join(line.split())


def test_help_names_every_verb(say: Say) -> None:
    answer = say("--help")
    assert (answer.code, answer.err) == (0, "")
    assert all(re.search(rf"^ +{verb} ", answer.out, re.MULTILINE) for verb in VERBS)


@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_help_lists_every_setting_with_its_default_or_the_presets(preset: str | None, say: Say) -> None:
    words = [] if preset is None else [f"--preset={preset}"] if preset == "baby" else ["--preset", preset]
    text, settings = say("train", "--help", *words).out, resolve(preset)
    for each in [each for part in SECTIONS.values() for each in dataclasses.fields(part) if each.name != "source"]:
        line = line_of("--" + each.name.replace("_", "-"), text)
        default = getattr(settings, each.name)
        said = str(default).lower() if isinstance(default, bool) else str(default)
        assert line.endswith(f"{each.metadata['help']} ({said})")
        assert all(choice in line for choice in each.metadata["choices"])


def test_help_of_prepare_lists_its_settings(say: Say) -> None:
    text = say("prepare", "--help").out
    for each in dataclasses.fields(DataSettings):
        if each.name != "source":
            said = str(each.default).lower() if each.type is bool else str(each.default)
            assert line_of("--" + each.name.replace("_", "-"), text).endswith(f"({said})")
    assert "--source" not in text


@pytest.mark.parametrize("verb", ["sample", "eval"])
def test_help_says_the_default_that_is_taken(verb: str, say: Say) -> None:
    text, taken = say(verb, "--help").out, vars(cli.parse([verb, "RUN"]))
    for flag in taken["flags"]:
        if not flag.startswith("--") or flag in ("--help", "--json"):
            continue
        line = line_of(flag, text)
        default = taken[flag[2:].replace("-", "_")]
        if default not in (None, "", []):
            assert line.endswith(f"({default})")


@pytest.mark.parametrize("verb", VERBS)
def test_the_example_in_the_help_of_a_verb_is_one(verb: str, say: Say) -> None:
    import shlex

    (example,) = re.findall(rf"^    (octavo {verb} .*)", say(verb, "--help").out, re.MULTILINE)
    assert cli.parse(shlex.split(example)[1:]).prog == f"octavo {verb}"


def test_version(say: Say) -> None:
    assert say("--version") == Answer(0, f"octavo {octavo.__version__}\n", "")


HELP = """
import sys
from octavo import cli
for words in (["--help"], ["--version"], ["train", "--help"], ["sample", "--help"], ["train", "--n-layrs", "6"]):
    try:
        cli.main(words)
    except SystemExit:
        pass
print(*{"torch", "numpy", "transformers", "tokenizers", "rich"} & set(sys.modules), file=sys.stderr)
"""


def test_help_and_the_answer_to_a_misspelt_word_need_no_torch() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, encoding="utf-8", check=True)
    assert done.stderr.splitlines()[-1] == ""
    assert "--n-layer" in done.stdout


# Good words


@pytest.mark.parametrize("words", ["--n-layer 2", "--n_layer 2", "--n-layer=2", "--n_layer=2"])
def test_a_setting_is_written_with_hyphens_or_underscores(words: str, say: Say) -> None:
    assert say("train", "text.txt", *SMALL, "--max_steps=0", *words.split(), "--out", "run").code == 0
    settings = from_toml(Path("run/settings.toml"))
    assert (settings.n_layer, settings.max_steps, settings.source) == (2, 0, "text.txt")


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--bias=False", "bias", False), ("--bias false", "bias", False), ("--bias=0", "bias", False),
        ("--no-bias", "bias", False), ("--bias", "bias", True), ("--bias=True", "bias", True),
        ("--bias=False --bias", "bias", True), ("--preset nanogpt-tiny", "bias", False),
        ("--preset nanogpt-tiny --bias", "bias", True),
        ("--compile=False", "compile", "off"), ("--compile=auto", "compile", "off"),
        ("--learning-rate 1", "learning_rate", 1.0), ("--seed=7", "seed", 7), ("--tokenizer byte", "tokenizer", "byte"),
        ("--config some.toml", "seed", 3), ("--config some.toml --seed 4", "seed", 4),
        ("--preset baby --config some.toml", "dropout", 0.5), ("--preset baby", "curriculum_splits", 2),
    ],
)  # fmt: skip
def test_what_is_typed_is_what_the_run_has(words: str, name: str, value: object, say: Say) -> None:
    Path("some.toml").write_text("[training]\nseed = 3\n[model]\ndropout = 0.5", encoding="utf-8")
    assert say("train", "text.txt", *SMALL, "--max-steps", 0, *words.split(), "--out", "run").code == 0
    assert getattr(from_toml(Path("run/settings.toml")), name) == value


def test_runs_are_named_after_their_text_and_numbered(say: Say) -> None:
    for number in (1, 2):
        assert say("train", "text.txt", *SMALL, "--json").json["run"] == str(Path(f"runs/text-{number}"))
    assert say("train", "text.txt", *SMALL, "--name", "mine", "--json").json["run"] == str(Path("runs/mine"))


def test_training_says_what_it_does_and_what_to_try_next(say: Say) -> None:
    answer = say("train", "text.txt", *SMALL)
    assert (answer.code, answer.err) == (0, "")
    for said in ("text.txt", "tokenizer char", "step 4/4 100%", "val loss", "octavo sample runs/text-1",
                 "octavo eval runs/text-1", "octavo train --resume runs/text-1"):  # fmt: skip
        assert said in answer.out
    assert "\x1b" not in answer.out  # plain lines where there is no terminal


def test_each_command_that_is_offered_next_works(say: Say) -> None:
    import shlex

    offered = re.findall(r"octavo (\w+ .*)", say("train", "text.txt", *SMALL).out.partition("next:")[2])
    assert [words.split()[0] for words in offered] == ["sample", "eval", "train"]
    for words in offered:
        more = ["--max-new-tokens", 3] if words.startswith("sample") else []
        assert say(*shlex.split(words), *more).code == 0


def test_a_resumed_run_goes_on_where_it_stopped(run: Path, say: Say) -> None:
    answer = say("train", "--resume", run, "--max-steps", 6)
    assert (answer.code, answer.err) == (0, "")
    assert "resuming after step 4" in answer.out
    assert octavo.Run(run).lines("metrics")[-1]["step"] == 6


# --json

DESIGNED = {
    "train": "run checkpoint step tokens train_loss val_loss best_val_loss seconds tokens_per_second parameters",
    "eval": "loss perplexity bits_per_byte tokens bytes block_size",
    "sample": "prompt samples",
}


def test_the_json_of_eval_and_sample_has_the_designed_keys(run: Path, say: Say) -> None:
    answer = say("eval", run, "--json")
    assert (answer.code, answer.err) == (0, "")
    assert list(answer.json) == DESIGNED["eval"].split()
    answer = say("sample", run, "--prompt", "the ", "--max-new-tokens", 5, "--num-samples", 2, "--json")
    assert (answer.code, answer.err) == (0, "")
    assert list(answer.json) == DESIGNED["sample"].split()
    assert answer.json["prompt"] == "the "
    assert len(answer.json["samples"]) == 2
    for sample in answer.json["samples"]:
        assert list(sample) == ["text", "token_ids", "finish_reason"]
        assert len(sample["text"]) == len(sample["token_ids"]) == 5
        assert sample["finish_reason"] == "length"


def test_the_json_of_train_has_the_designed_keys(trained: Path) -> None:
    assert list(json.loads((trained / "said.json").read_text(encoding="utf-8"))) == DESIGNED["train"].split()


def test_the_json_of_train_says_what_came_of_it(run: Path, say: Say) -> None:
    answer = say("train", "text.txt", *SMALL, "--json")
    said = answer.json
    assert answer.code == 0
    assert "step 4/4" in answer.err  # the progress
    assert said.keys() >= set(DESIGNED["train"].split())
    run = Path("runs/text-1")
    assert (Path(said["run"]), Path(said["checkpoint"])) == (run, last(run))
    assert (said["step"], said["tokens"]) == (4, 4 * 2 * 8)
    assert said["parameters"] == sum(p.numel() for p in octavo.load(run).model.parameters())
    line = octavo.Run(run).lines("metrics")[-1]
    assert (line["train_loss"], line["val_loss"]) == (said["train_loss"], said["val_loss"])
    assert said["best_val_loss"] == said["val_loss"]
    assert said["seconds"] > 0
    assert said["tokens_per_second"] > 0


def test_the_json_of_prepare_is_its_dataset_json(say: Say) -> None:
    answer = say("prepare", "text.txt", "--out", "tokens", "--tokenizer", "bpe:300", "--json")
    assert (answer.code, answer.err) == (0, "")
    assert answer.json == json.loads(Path("tokens/dataset.json").read_text(encoding="utf-8"))


# eval


def test_eval_without_a_source_is_the_loss_that_training_reported(trained: Path, run: Path, say: Say) -> None:
    reported = json.loads((trained / "said.json").read_text(encoding="utf-8"))
    found = say("eval", run, "--device", "cpu", "--json").json
    assert found["loss"] == pytest.approx(reported["val_loss"], rel=1e-6)
    assert found["block_size"] == 8
    line = octavo.Run(run).lines("metrics")[-1]
    assert found["bits_per_byte"] == pytest.approx(line["bits_per_byte"], rel=1e-6)


def test_eval_of_the_validation_text_is_eval_without_a_source(
    run: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = TEXT[int(len(TEXT) * 0.9) :]
    Path("val.txt").write_text(text, encoding="utf-8")
    assert say("prepare", "text.txt", "--out", "tokens").code == 0
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    expected = say("eval", run, "--json").json
    assert (expected["tokens"], expected["bytes"]) == (len(text) - 1, len(text) - 1)
    for source in ("val.txt", "tokens", "-"):
        assert say("eval", run, source, "--json").json == expected


def test_eval_reads_a_run_by_name_folder_or_checkpoint(run: Path, say: Say) -> None:
    answers = [say("eval", place, "--json").json for place in (run, "mine", last(run))]
    assert answers[0] == answers[1] == answers[2]


def test_eval_says_the_block_size_it_took(run: Path, say: Say) -> None:
    assert say("eval", run, "--block-size", 4, "--json").json["block_size"] == 4
    assert "context of 8" in say("eval", run).out


# sample


def test_a_prompt_comes_as_an_argument_from_a_file_or_from_stdin(
    run: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("prompt.txt").write_bytes(b"\xef\xbb\xbfthe cat")  # Windows' editors put a mark before it
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the cat")))
    ways = (["--prompt", "the cat"], ["--prompt-file", "prompt.txt"], ["--prompt-file", "-"])
    texts = [say("sample", run, *way, "--max-new-tokens", 20).out for way in ways]
    assert texts[0].startswith("the cat")
    assert len(texts[0]) == len("the cat") + 20 + len("\n")
    assert texts[0] == texts[1] == texts[2]


def test_what_is_printed_is_what_the_json_says(run: Path, say: Say) -> None:
    words = ["sample", run, "--prompt", "the ", "--max-new-tokens", 12, "--num-samples", 2, "--seed", 5]
    texts = ["the " + sample["text"] for sample in say(*words, "--json").json["samples"]]
    assert say(*words).out == "\n---------------\n".join(texts) + "\n"
    assert texts[0] != texts[1]
    assert say(*words).out == say(*words).out
    assert say(*words, "--seed", 6).out != say(*words).out


def test_a_text_ends_before_a_stop_string(run: Path, say: Say) -> None:
    words = ["sample", run, "--prompt", "the ", "--max-new-tokens", 40, "--json"]
    text = say(*words).json["samples"][0]["text"]
    stop = text[10:12]
    (stopped,) = say(*words, "--stop", "qqq", "--stop", stop).json["samples"]
    assert stopped["text"] == text[: text.index(stop)]
    assert stopped["finish_reason"] == "stop"


def test_unknown_characters_in_a_prompt_are_named_skipped_or_replaced(run: Path, say: Say, refused: Refused) -> None:
    words = ["sample", run, "--prompt", "theω X", "--max-new-tokens", 9]
    said = refused(*words, says="unknown characters 'X', 'ω'")
    assert "--unknown skip" in said
    (known,) = say(*words, "--unknown", "skip", "--json").json["samples"]
    assert [known] == say("sample", run, "--prompt", "the ", "--max-new-tokens", 9, "--json").json["samples"]
    (known,) = say(*words, "--unknown", "replace", "--json").json["samples"]
    assert [known] == say("sample", run, "--prompt", "the   ", "--max-new-tokens", 9, "--json").json["samples"]


def test_a_prompt_longer_than_the_block_is_cropped_with_a_word_about_it(run: Path, say: Say) -> None:
    answer = say("sample", run, "--prompt", "the cat sat on the mat", "--max-new-tokens", 3)
    assert answer.err == "note: the prompt has 22 tokens; the model sees the last 8\n"
    assert answer.out.startswith("the cat sat on the mat")


# As a process of its own


def process(*words: object, **how: Any) -> "subprocess.CompletedProcess[str]":
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"} | how.pop("env", {})
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | how
    command = [sys.executable, "-m", "octavo", *map(str, words)]
    return subprocess.run(command, env=environment, encoding="utf-8", check=False, **streams)


def test_a_mistake_ends_the_process_with_2(here: Path) -> None:
    for words in (["train", "text.txt", "--n-layrs", "6"], ["train", "missing.txt"]):
        done = process(*words)
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(r"error: .*\n  try: .*\n", done.stderr)
    assert list(there(here)) == ["text.txt"]


@contextmanager
def closed_pipe() -> Iterator[int]:
    """A pipe from which nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        yield writer
    finally:
        os.close(writer)


@pytest.mark.parametrize(
    "words",
    [
        ["sample", "runs/mine", "--max-new-tokens", 3],
        ["eval", "runs/mine", "--json"],
        ["--help"],
    ],
)
@pytest.mark.usefixtures("run")
def test_a_reader_who_has_read_enough_is_no_error(words: list[object]) -> None:
    with closed_pipe() as pipe:
        done = process(*words, stdout=pipe)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])  # the latter is what Windows writes into a pipe
@pytest.mark.parametrize("verb", ["train", "sample"])
def test_text_that_the_stream_can_not_say_is_no_traceback(
    verb: str, encoding: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("arabic.txt").write_text("كتاب قلم\n" * 60, encoding="utf-8")
    words = {
        "train": ["train", "arabic.txt", *SMALL],
        "sample": ["sample", str(run), "--prompt", "كتاب", "--unknown", "skip", "--max-new-tokens", "3"],
    }
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding=encoding, write_through=True))
    assert cli.main(words[verb]) == 0
    assert out.getvalue()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such file names")
def test_a_file_whose_name_is_not_utf_8_is_no_traceback(say: Say, here: Path) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    shutil.copy("text.txt", name)
    answer = say("train", name, *SMALL, "--out", "run")
    if answer.code == 2:
        assert not (here / "run").exists()
    else:
        assert answer.code == say("eval", "run").code == 0


def test_the_best_of_several_texts_are_printed_whole(say: Say, run: Path) -> None:
    words = ["sample", run, "--prompt", "the ", "--max-new-tokens", 12, "--num-samples", 2, "--best-of", 5]
    samples = say(*words, "--json").json["samples"]
    assert all(len(sample["text"]) == 12 for sample in samples)
    shown = "\n---------------\n".join("the " + sample["text"] for sample in samples)
    assert say(*words).out == shown + "\n"
