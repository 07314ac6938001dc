"""`octavo inspect`: what is typed, what is printed, and that a mistake is answered in two lines."""

import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lenses import TEXT, tiny, written
from octavo import cli, kernels, lens, views
from octavo.model import CausalSelfAttention

LINE = "the cat sat on the mat"
WORDS: dict[str, list[str]] = {  # a view, with all options that it takes
    "shapes": ["--text", LINE, "--layer", "1", "--head", "-1"],
    "tokens": ["--text", LINE, "--unknown", "skip"],
    "position": ["--word", "the", "--at", "2", "-1"],
    "neighbors": ["--word", "cat", "--against", "mat", "--top", "3"],
    "projection": [],
    "attention": ["--text", LINE, "--layer", "-1", "--head", "2"],
    "next_token": ["--text", LINE],
    "logit_lens": ["--text", LINE, "--position", "-1", "--top", "2"],
    "contributions": ["--text", LINE, "--position", "1", "--token", "a", "--against", "e"],
    "surprisal": ["--text", LINE],
    "ablation": ["--text", LINE, "--layer", "0"],
    "losses": [],
    "verify": ["--seed", "3"],
}
GIVEN: dict[str, dict[str, Any]] = {  # the same in Python
    "shapes": {"text": LINE, "layer": 1, "head": -1},
    "tokens": {"text": LINE, "unknown": "skip"},
    "position": {"word": "the", "at": (2, -1)},
    "neighbors": {"word": "cat", "against": "mat", "top": 3},
    "projection": {},
    "attention": {"text": LINE, "layer": -1, "head": 2},
    "next_token": {"text": LINE},
    "logit_lens": {"text": LINE, "positions": [-1], "top": 2},
    "contributions": {"text": LINE, "position": 1, "token": "a", "against": "e"},
    "surprisal": {"text": LINE},
    "ablation": {"text": LINE, "layer": 0},
    "losses": {},
    "verify": {"seed": 3},
}
OF_A_TEXT = [view for view, given in GIVEN.items() if "text" in given]


class Answer(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str


Say = Callable[..., Answer]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with kernels.one_thread():
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of twenty steps."""
    return tiny(tmp_path_factory.getbasetemp()).folder


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Say:
    """Run `octavo inspect` in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def speak(*words: object) -> Answer:
        capsys.readouterr()
        return Answer(cli.main(["inspect", *map(str, words)]), *capsys.readouterr())

    return speak


@pytest.fixture
def refused(say: Say) -> Callable[..., str]:
    """Run a command that has to be answered with an error in two lines; what it says to try."""

    def check(*words: object, says: str) -> str:
        answer = say(*words)
        assert (answer.code, answer.out) == (2, "")
        message, hint = answer.err.splitlines()
        assert message.startswith("error: ")
        assert hint.startswith("  try: ")
        assert says in message
        flags = cli.parse(["inspect", "RUN", "shapes"]).flags
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", hint)) <= {*flags, "--help"}
        return hint

    return check


Refused = Callable[..., str]


# What is seen


def test_the_command_line_knows_the_views_of_the_lens() -> None:
    assert tuple(lens.VIEWS) == tuple(views.VIEWS) == tuple(WORDS) == tuple(GIVEN)


@pytest.mark.parametrize("view", WORDS)
def test_a_view_is_printed_as_tables_and_as_json(view: str, run: Path, say: Say) -> None:
    expected = lens.inspect(run, view, **GIVEN[view])
    told, values = say(run, view, *WORDS[view]), say(run, view, *WORDS[view], "--json")
    assert (told.code, told.err) == (values.code, values.err) == (0, "")
    assert told.out == f"{expected}\n"
    assert values.out.count("\n") == 1
    assert json.loads(values.out) == json.loads(json.dumps(expected.plain(), allow_nan=False))


@pytest.mark.parametrize("view", [view for view in OF_A_TEXT if view != "contributions"])
def test_without_a_text_the_models_own_is_looked_at(view: str, run: Path, say: Say) -> None:
    assert say(run, view) == Answer(0, f"{lens.inspect(run, view)}\n", "")


@pytest.mark.parametrize("view", WORDS)
def test_options_may_stand_before_run_and_view_or_behind(view: str, run: Path, say: Say) -> None:
    assert say(*WORDS[view], run, view) == say(run, view, *WORDS[view])


@pytest.mark.parametrize("view", [view for view in WORDS if WORDS[view]])
def test_options_may_stand_between_run_and_view(view: str, run: Path, say: Say) -> None:
    assert say(run, *WORDS[view], view) == say(run, view, *WORDS[view])


def test_a_text_may_come_from_a_file_or_from_stdin(run: Path, say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("text.txt").write_text(LINE, encoding="utf-8")
    expected = say(run, "surprisal", "--text", LINE)
    assert say(run, "surprisal", "--text-file", "text.txt") == expected
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(LINE.encode())))
    assert say(run, "surprisal", "--text-file", "-") == expected


def test_a_run_may_be_named_by_its_name_or_a_checkpoint(run: Path, say: Say) -> None:
    Path("runs").mkdir()
    Path("runs", "mine").symlink_to(run)
    best = (run / "best").read_text(encoding="utf-8").strip()
    expected = say(run, "next_token", "--text", LINE)
    assert expected.code == 0
    assert (
        say("mine", "next_token", "--text", LINE)
        == say(run / "checkpoints" / best, "next_token", "--text", LINE)
        == expected
    )


def test_what_is_left_out_of_a_long_text_is_told_beside_the_view(run: Path, say: Say) -> None:
    answer = say(run, "attention", "--text", TEXT, "--json")
    left_out = json.loads(answer.out)["left_out"]
    assert left_out > 0
    assert answer.err.startswith("note: ")
    assert f"{left_out:,} tokens" in answer.err
    assert say(run, "surprisal", "--text", TEXT).err == ""


# A preset


class Largest(TorchDispatchMode):
    """The most numbers that any tensor of an operation had, of those that have numbers."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in torch.utils._pytree.tree_leaves(made):
            if isinstance(each, Tensor) and not each.is_meta:
                self.size = max(self.size, each.numel())
        return made


def test_the_walk_of_the_notes_is_printed_with_their_shapes_and_takes_no_memory(say: Say) -> None:
    with Largest() as largest:
        answer = say("--preset", "gpt2-512", "shapes", "--json")
    assert (answer.code, answer.err) == (0, "")
    assert largest.size <= 1
    view = json.loads(answer.out)
    assert view["parameters"] == 124_046_592
    shapes = {stage["name"]: stage["shape"] for stage in view["stages"]}
    assert shapes == {
        "idx": [1, 512], "wte": [1, 512, 768], "wpe": [512, 768], "x": [1, 512, 768], "h.ln_1": [1, 512, 768],
        "h.attn.c_attn": [1, 12, 512, 64], "h.attn: q kT / sqrt(D)": [1, 12, 512, 512],
        "h.attn: softmax": [1, 12, 512, 512], "h.attn: shares v": [1, 12, 512, 64], "h.attn.c_proj": [1, 512, 768],
        "x + attention": [1, 512, 768], "h.ln_2": [1, 512, 768], "h.mlp.c_fc, GELU": [1, 512, 3072],
        "h.mlp.c_proj": [1, 512, 768], "x + mlp": [1, 512, 768], "ln_f": [1, 512, 768], "logits": [1, 512, 50257],
    }  # fmt: skip
    told = say("--preset", "gpt2-512", "shapes").out
    assert "12 layers, 12 heads, 768 wide, block 512, vocabulary 50,257" in told
    assert re.search(r"logits +\[B, T, V\] +1 x 512 x 50257 ", told)
    assert "124,046,592" in told
    assert len(re.findall(r"  12 x  ", told)) == 11


def test_a_tensor_with_numbers_would_be_seen() -> None:
    with Largest() as largest:
        torch.empty(7, device="meta")
        assert largest.size == 0
        torch.empty(3, 5)
    assert largest.size == 15


@pytest.mark.parametrize("words", [["shapes", "--preset", "gpt2"], ["--preset", "gpt2", "shapes"]])
def test_a_preset_may_stand_on_either_side_of_the_view(words: list[str], say: Say) -> None:
    assert "124,439,808" in say(*words).out


def test_the_shapes_of_a_preset_know_no_text(refused: Refused) -> None:
    refused("--preset", "gpt2-512", "shapes", "--text", LINE, says="text")


# Verify


def test_verify_ends_with_0_and_the_largest_errors(run: Path, say: Say) -> None:
    answer = say(run, "verify")
    assert answer.code == 0
    assert re.search(r": all \d\d checks hold\n", answer.out)
    assert re.search(r"causality: .* ok\n", answer.out)
    view = json.loads(say(run, "verify", "--json").out)
    assert view["ok"] is True
    assert all(each["ok"] and each["error"] <= each["tolerance"] for each in view["checks"])


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_broken_mask_ends_verify_with_1_and_is_named(
    as_json: list[str], run: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attend(self: CausalSelfAttention, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, seen)  # the future, too

    monkeypatch.setattr(CausalSelfAttention, "attend", attend)
    answer = say(run, "verify", *as_json)
    assert (answer.code, answer.err) == (1, "")
    if as_json:
        view = json.loads(answer.out)
        assert view["ok"] is False
        assert any(each["name"].startswith("causality") and not each["ok"] for each in view["checks"])
    else:
        verdict = answer.out.splitlines()[0]
        assert "wrong: " in verdict
        assert "causality" in verdict
        assert re.search(r"causality: .* WRONG\n", answer.out)


# Bad input


def test_neither_run_nor_view_is_told(refused: Refused) -> None:
    assert "octavo inspect --help" in refused(says="RUN VIEW")


def test_a_run_without_a_view_is_told(run: Path, refused: Refused) -> None:
    assert "octavo inspect runs/my-1 attention" in refused(run, says="takes a RUN or --preset")
    refused("--preset", "gpt2-512", says="RUN VIEW")
    refused(run, "shapes", "--preset", "gpt2-512", says="takes a RUN or --preset")
    refused(run, "shapes", "tokens", says="takes a RUN or --preset")


@pytest.mark.parametrize(
    ("typed", "meant"), [("atention", "attention"), ("neighbours", "neighbors"), ("contributons", "contributions")]
)
def test_of_an_unknown_view_the_nearest_is_offered(typed: str, meant: str, run: Path, refused: Refused) -> None:
    assert meant in refused(run, typed, says=f"there is no view '{typed}'")


def test_with_no_view_near_all_are_offered(run: Path, refused: Refused) -> None:
    hint = refused(run, "zzz", says="there is no view 'zzz'")
    assert all(view in hint for view in lens.VIEWS)


@pytest.mark.parametrize(
    ("view", "option", "others"),
    [
        ("tokens", ["--layer", "1"], ["attention", "ablation"]),
        ("attention", ["--word", "cat"], ["position", "neighbors"]),
        ("ablation", ["--head", "1"], ["attention"]), ("verify", ["--text", "a"], ["surprisal"]),
        ("losses", ["--unknown", "skip"], ["tokens"]), ("projection", ["--top", "3"], ["neighbors", "logit_lens"]),
    ],
)  # fmt: skip
def test_an_option_that_a_view_does_not_take_is_told_with_the_views_that_do(
    view: str, option: list[str], others: list[str], run: Path, refused: Refused
) -> None:
    name = option[0].removeprefix("--")
    hint = refused(run, view, *option, says=f"{view} takes no {name}")
    assert all(other in hint for other in others)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["attention", "--layer", "99"], "layer 99: the layers are 0 to 3"),
        (["attention", "--layer", "-5"], "layer -5: the layers are 0 to 3"),
        (["attention", "--head", "4"], "head 4: the heads are 0 to 3"),
        (["shapes", "--layer", "99"], "layer 99"),
        (["ablation", "--layer", "4"], "layer 4"),
        (["contributions", "--text", LINE, "--position", "99"], "position 99: the positions are 0 to 5"),
        (["logit_lens", "--text", LINE, "--position", "-7"], "position -7"),
        (["logit_lens", "--top", "0"], "between 1 and 50 guesses"),
        (["neighbors", "--word", "cat", "--top", "0"], "between 1 and 100 neighbors"),
        (["attention", "--layer", "one"], "'one' is not an integer"),
        (["position", "--at", "1"], "expected 2 arguments"),
        (["position", "--word", "the", "--at", "1", "64"], "position 64: the positions are 0 to 63"),
        (["position", "--word", ""], "an empty word"),
        (["contributions", "--token", "xyz"], "'xyz' is 3 tokens here: x y z"),
        (["contributions", "--token", ""], "an empty text is no token"),
        (["neighbors", "--word", "cat", "--against", "xyz"], "'xyz' is 3 tokens here"),
        (["surprisal", "--text", "a"], "one token"),
        (["ablation", "--text", "a"], "one token"),
        (["tokens", "--unknown", "guess"], "--unknown: invalid choice: 'guess'"),
        (["tokens", "--text", "a", "--text-file", "b"], "not allowed with argument --text"),
        (["tokens", "--text-file", "missing.txt"], "missing.txt can't be read: No such file"),
        (["tokens", "--text-file", "latin.txt"], "latin.txt is not UTF-8 at byte 3"),
        (["tokens", "--lyer", "1"], "there is no option --lyer"),
    ],
)
def test_what_can_not_be_is_told_in_two_lines(words: list[str], says: str, run: Path, refused: Refused) -> None:
    Path("latin.txt").write_bytes(b"caf\xe9")
    refused(run, *words, says=says)


def takers(option: str) -> set[str]:
    """The views that take an option."""
    option = {"text-file": "text"}.get(option, option).removesuffix("-id")
    return set(views.views_by_flag()[option][1])


@pytest.mark.parametrize(
    ("view", "words", "says"),
    [
        ("attention", ["--layer", "99"], "layer 99"),
        ("contributions", ["--position", "99"], "position 99"),
        ("logit_lens", ["--position", "99"], "position 99"),
        ("neighbors", ["--top", "0", "--word", "cat"], "between 1 and 100"),
        ("position", ["--at", "1", "64"], "position 64"),
        ("position", ["--word", "\udcff"], "unknown"),
        ("neighbors", ["--word", "\udcff"], "unknown"),
    ],
)
def test_what_there_is_to_try_is_an_option_of_the_view(
    view: str, words: list[str], says: str, run: Path, refused: Refused
) -> None:
    hint = refused(run, view, *words, says=says)
    assert all(view in takers(option) for option in re.findall(r"--([a-z-]+)", hint))


@pytest.mark.parametrize("view", OF_A_TEXT)
def test_an_empty_text_is_told(view: str, run: Path, refused: Refused) -> None:
    assert "--text" in refused(run, view, "--text", "", says="there is no text to look at")


@pytest.fixture(scope="module")
def characters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that knows few characters."""
    return written(tmp_path_factory.mktemp("characters") / "model", "char", text="abc ?\n").folder


@pytest.mark.parametrize("view", OF_A_TEXT)
def test_unknown_characters_are_told_and_may_be_skipped(
    view: str, characters: Path, say: Say, refused: Refused
) -> None:
    assert "--unknown skip" in refused(characters, view, "--text", "abéc", says="unknown characters 'é'")
    assert say(characters, view, "--text", "abéc", "--unknown", "skip") == say(characters, view, "--text", "abc")
    assert say(characters, view, "--text", "abéc", "--unknown", "replace") == say(characters, view, "--text", "ab?c")


@pytest.mark.parametrize(
    ("preset", "view", "says"),
    [
        ("tiny", "shapes", "vocabulary size of the preset tiny"),
        ("tiny", "attention", ""),
        ("gpt2-512", "attention", "attention needs a trained model"),
        ("gpt2-512", "verify", "verify needs a trained model"),
        ("huge", "shapes", "there is no preset 'huge'"),
    ],
)
def test_a_preset_has_only_shapes_and_those_only_with_a_vocabulary(
    preset: str, view: str, says: str, refused: Refused
) -> None:
    refused("--preset", preset, view, says=says)


@pytest.mark.parametrize("view", WORDS)
def test_a_run_that_does_not_exist_is_told(view: str, refused: Refused) -> None:
    refused("nowhere", view, says="nowhere does not exist")


def test_what_is_no_run_is_told(refused: Refused) -> None:
    Path("folder").mkdir()
    refused("folder", "shapes", says="folder is neither a run nor a checkpoint")


def test_a_checkpoint_that_belongs_to_no_run_has_no_losses(characters: Path, refused: Refused) -> None:
    refused(characters, "losses", says="belongs to no run")


# Help


def test_help_says_which_views_take_an_option(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        cli.main(["inspect", "--help"])
    shown = capsys.readouterr().out
    said = {
        name: set(views.split(", "))
        for name, views in re.findall(r"^  --(\w+) .*?  +([a-z_]+(?:, [a-z_]+)*): ", shown, re.M)
    }
    options = ("layer", "head", "position", "token", "word", "against", "at", "top")
    assert {option: takers(option) for option in options} == {option: said[option] for option in options}
    assert all(view in shown for view in lens.VIEWS)
