"""`octavo inspect`: arguments, output and errors."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import octavo
from commands import Result, run_command
from lenses import TEXT, random_checkpoint
from octavo import cli, lens, views
from octavo.model import CausalSelfAttention
from octavo.runs import Run

LINE = "the cat sat on the mat"
ARGUMENTS: dict[str, list[str]] = {  # all options of each view
    "shapes": ["--text", LINE, "--layer", "1", "--head", "-1"],
    "tokens": ["--text", LINE, "--unknown", "skip"],
    "position": ["--word", "the", "--at", "2", "-1"],
    "neighbors": ["--word", "cat", "--against", "mat", "--top", "3"],
    "projection": [],
    "attention": ["--text", LINE, "--layer", "-1", "--head", "2"],
    "flow": ["--text", LINE],
    "next_token": ["--text", LINE],
    "logit_lens": ["--text", LINE, "--position", "-1", "--top", "2"],
    "contributions": ["--text", LINE, "--position", "1", "--token", "a", "--against", "e"],
    "surprisal": ["--text", LINE],
    "ablation": ["--text", LINE, "--layer", "0"],
    "losses": [],
    "verify": ["--seed", "3"],
}
OPTIONS: dict[str, dict[str, Any]] = {  # the same options in Python
    "shapes": {"text": LINE, "layer": 1, "head": -1},
    "tokens": {"text": LINE, "unknown": "skip"},
    "position": {"word": "the", "at": (2, -1)},
    "neighbors": {"word": "cat", "against": "mat", "top": 3},
    "projection": {},
    "attention": {"text": LINE, "layer": -1, "head": 2},
    "flow": {"text": LINE},
    "next_token": {"text": LINE},
    "logit_lens": {"text": LINE, "positions": [-1], "top": 2},
    "contributions": {"text": LINE, "position": 1, "token": "a", "against": "e"},
    "surprisal": {"text": LINE},
    "ablation": {"text": LINE, "layer": 0},
    "losses": {},
    "verify": {"seed": 3},
}
TEXT_VIEWS = [view for view, options in OPTIONS.items() if "text" in options]


Inspect = Callable[..., Result]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run(tiny_run: Run) -> Path:
    """The folder of a run with twenty steps."""
    return tiny_run.folder


@pytest.fixture
def run_inspect(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Inspect:
    """Run `octavo inspect` in this process, in an empty folder, and without lines of progress on a slow machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("octavo.terminal.progress._PLAIN_INTERVAL", 1e9)

    def call(*words: object) -> Result:
        return run_command(capsys, "inspect", *words)

    return call


@pytest.fixture
def error_hint(run_inspect: Inspect) -> Callable[..., str]:
    """Run a command that must fail. Its message must match `error`. Returns the hint, whose flags must exist."""

    def check(*words: object, error: str) -> str:
        result = run_inspect(*words)
        assert (result.code, result.out) == (2, "")
        message, hint = result.err.splitlines()
        assert message.startswith("error: ")
        assert hint.startswith("  try: ")
        assert re.search(error, message), message
        flags = cli.parse(["inspect", "RUN", "shapes"]).flags
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", hint)) <= {*flags, "--help"}
        return hint

    return check


ErrorHint = Callable[..., str]


# Output


def test_these_tests_cover_every_view() -> None:
    assert views.VIEWS.keys() == ARGUMENTS.keys() == OPTIONS.keys()


@pytest.mark.parametrize("view", ARGUMENTS)
def test_a_view_is_printed_as_tables_or_as_json(view: str, run: Path, run_inspect: Inspect) -> None:
    expected = lens.inspect(run, view, **OPTIONS[view])
    text, values = run_inspect(run, view, *ARGUMENTS[view]), run_inspect(run, view, *ARGUMENTS[view], "--json")
    assert (text.code, text.err) == (values.code, values.err) == (0, "")
    assert text.out == f"{expected}\n"
    assert values.out.count("\n") == 1
    assert json.loads(values.out) == json.loads(json.dumps(expected.to_dict(), allow_nan=False))


@pytest.mark.parametrize("view", [view for view in TEXT_VIEWS if view != "contributions"])
def test_without_a_text_the_view_is_of_a_generated_text(view: str, run: Path, run_inspect: Inspect) -> None:
    assert run_inspect(run, view) == Result(0, f"{lens.inspect(run, view)}\n", "")


@pytest.mark.parametrize("view", ARGUMENTS)
def test_options_may_come_before_or_after_run_and_view(view: str, run: Path, run_inspect: Inspect) -> None:
    assert run_inspect(*ARGUMENTS[view], run, view) == run_inspect(run, view, *ARGUMENTS[view])


@pytest.mark.parametrize("view", [view for view in ARGUMENTS if ARGUMENTS[view]])
def test_options_may_come_between_run_and_view(view: str, run: Path, run_inspect: Inspect) -> None:
    assert run_inspect(run, *ARGUMENTS[view], view) == run_inspect(run, view, *ARGUMENTS[view])


def test_a_text_may_come_from_a_file_or_stdin(run: Path, run_inspect: Inspect, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("text.txt").write_text(LINE, encoding="utf-8")
    expected = run_inspect(run, "surprisal", "--text", LINE)
    assert run_inspect(run, "surprisal", "--text-file", "text.txt") == expected
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(LINE.encode())))
    assert run_inspect(run, "surprisal", "--text-file", "-") == expected


def test_a_run_may_be_given_by_name_or_by_a_checkpoint(run: Path, run_inspect: Inspect) -> None:
    Path("runs").mkdir()
    Path("runs", "mine").symlink_to(run)
    best = (run / "best").read_text(encoding="utf-8").strip()
    expected = run_inspect(run, "next_token", "--text", LINE)
    assert expected.code == 0
    assert (
        run_inspect("mine", "next_token", "--text", LINE)
        == run_inspect(run / "checkpoints" / best, "next_token", "--text", LINE)
        == expected
    )


def test_a_note_reports_how_many_tokens_of_a_long_text_are_left_out(run: Path, run_inspect: Inspect) -> None:
    result = run_inspect(run, "attention", "--text", TEXT, "--json")
    left_out = json.loads(result.out)["left_out"]
    assert left_out > 0
    assert result.err.startswith("note: ")
    assert f"{left_out:,} tokens" in result.err
    assert run_inspect(run, "surprisal", "--text", TEXT).err == ""


@pytest.mark.parametrize("name", ["logit-lens", "logit_lens"])
def test_a_view_may_be_written_with_a_hyphen_or_an_underscore(name: str, run: Path, run_inspect: Inspect) -> None:
    assert run_inspect(run, name, "--text", LINE).out == f"{lens.logit_lens(run, LINE)}\n"


def test_tokens_and_words_may_be_given_by_id(run: Path, run_inspect: Inspect) -> None:
    tokenizer = octavo.load(run).tokenizer
    a, e = (int(tokenizer.encode(letter)[0]) for letter in "ae")
    by_id = run_inspect(run, "contributions", "--text", LINE, "--token-id", a, "--against-id", e)
    assert by_id == run_inspect(run, "contributions", "--text", LINE, "--token", "a", "--against", "e")
    assert run_inspect(run, "neighbors", "--word-id", a) == run_inspect(run, "neighbors", "--word", "a")
    assert run_inspect(run, "projection", "--word-id", a) == run_inspect(run, "projection", "--word", "a")


# Presets


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that is not on the meta device."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in torch.utils._pytree.tree_leaves(result):
            if isinstance(each, Tensor) and not each.is_meta:
                self.size = max(self.size, each.numel())
        return result


def test_the_shapes_of_a_preset_take_no_memory(run_inspect: Inspect) -> None:
    with LargestTensor() as largest:
        result = run_inspect("--preset", "gpt2-512", "shapes", "--json")
    assert (result.code, result.err) == (0, "")
    assert largest.size <= 1
    view = json.loads(result.out)
    assert view["parameters"] == 124_046_592
    shapes = {stage["name"]: stage["shape"] for stage in view["stages"]}
    assert shapes == {
        "idx": [1, 512],
        "wte": [1, 512, 768],
        "wpe": [512, 768],
        "x": [1, 512, 768],
        "h.ln_1": [1, 512, 768],
        "h.attn.c_attn": [1, 12, 512, 64],
        "h.attn: q kT / sqrt(D)": [1, 12, 512, 512],
        "h.attn: softmax": [1, 12, 512, 512],
        "h.attn: weights v": [1, 12, 512, 64],
        "h.attn.c_proj": [1, 512, 768],
        "x + attention": [1, 512, 768],
        "h.ln_2": [1, 512, 768],
        "h.mlp.c_fc, GELU": [1, 512, 3072],
        "h.mlp.c_proj": [1, 512, 768],
        "x + mlp": [1, 512, 768],
        "ln_f": [1, 512, 768],
        "logits": [1, 512, 50257],
    }
    text = run_inspect("--preset", "gpt2-512", "shapes").out
    assert "12 layers, 12 heads, width 768, context length 512, vocabulary 50,257" in text
    assert re.search(r"logits +\[B, T, V\] +1 x 512 x 50257 ", text)
    assert "124,046,592" in text
    assert len(re.findall(r"  12 x  ", text)) == 11


def test_largest_tensor_ignores_the_meta_device() -> None:
    with LargestTensor() as largest:
        torch.empty(7, device="meta")
        assert largest.size == 0
        torch.empty(3, 5)
    assert largest.size == 15


@pytest.mark.parametrize("words", [["shapes", "--preset", "gpt2"], ["--preset", "gpt2", "shapes"]])
def test_a_preset_may_come_before_or_after_the_view(words: list[str], run_inspect: Inspect) -> None:
    assert "124,439,808" in run_inspect(*words).out


def test_a_preset_takes_no_text(error_hint: ErrorHint) -> None:
    error_hint("--preset", "gpt2-512", "shapes", "--text", LINE, error="text")


# Verify


def test_verify_exits_with_0_and_prints_every_error(run: Path, run_inspect: Inspect) -> None:
    result = run_inspect(run, "verify")
    assert result.code == 0
    assert re.search(r": all \d\d checks hold\n", result.out)
    assert re.search(r"causality: .* ok\n", result.out)
    view = json.loads(run_inspect(run, "verify", "--json").out)
    assert view["ok"] is True
    assert all(each["ok"] and each["error"] <= each["tolerance"] for each in view["checks"])


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_with_a_broken_mask_verify_exits_with_1_and_names_the_check(
    as_json: list[str], run: Path, run_inspect: Inspect, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attend(self: CausalSelfAttention, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, seen)  # also the future

    monkeypatch.setattr(CausalSelfAttention, "attend", attend)
    result = run_inspect(run, "verify", *as_json)
    assert (result.code, result.err) == (1, "")
    if as_json:
        view = json.loads(result.out)
        assert view["ok"] is False
        assert any(each["name"].startswith("causality") and not each["ok"] for each in view["checks"])
    else:
        verdict = result.out.splitlines()[0]
        assert "wrong: " in verdict
        assert "causality" in verdict
        assert re.search(r"causality: .* WRONG\n", result.out)


# Errors


def test_without_run_and_view_the_error_names_both(error_hint: ErrorHint) -> None:
    assert "octavo inspect --help" in error_hint(error="RUN VIEW")


def test_a_run_without_a_view_is_an_error(run: Path, error_hint: ErrorHint) -> None:
    assert f"octavo inspect {run} attention" in error_hint(run, error="RUN or --preset")
    error_hint("--preset", "gpt2-512", error="RUN VIEW")
    error_hint(run, "shapes", "--preset", "gpt2-512", error="RUN or --preset")
    error_hint(run, "shapes", "tokens", error="RUN or --preset")


@pytest.mark.parametrize(
    ("given", "nearest"), [("atention", "attention"), ("neighbours", "neighbors"), ("contributons", "contributions")]
)
def test_the_error_of_an_unknown_view_suggests_the_nearest(
    given: str, nearest: str, run: Path, error_hint: ErrorHint
) -> None:
    assert nearest in error_hint(run, given, error=f"there is no view '{given}'")


def test_if_no_view_is_near_all_are_suggested(run: Path, error_hint: ErrorHint) -> None:
    hint = error_hint(run, "zzz", error="'zzz'")
    assert all(view in hint for view in lens.FUNCTIONS)


@pytest.mark.parametrize(
    ("view", "option", "others"),
    [
        ("tokens", ["--layer", "1"], ["attention", "ablation"]),
        ("attention", ["--word", "cat"], ["position", "neighbors"]),
        ("ablation", ["--head", "1"], ["attention"]),
        ("verify", ["--text", "a"], ["surprisal"]),
        ("losses", ["--unknown", "skip"], ["tokens"]),
        ("projection", ["--top", "3"], ["neighbors", "logit_lens"]),
    ],
)
def test_the_error_of_an_option_that_a_view_does_not_take_names_views_that_do(
    view: str, option: list[str], others: list[str], run: Path, error_hint: ErrorHint
) -> None:
    name = option[0].removeprefix("--")
    hint = error_hint(run, view, *option, error=f"{view} .*{name}")
    assert all(other in hint for other in others)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["attention", "--layer", "99"], "layer 99: .* 0 to 3"),
        (["attention", "--layer", "-5"], "layer -5: .* 0 to 3"),
        (["attention", "--head", "4"], "head 4: .* 0 to 3"),
        (["shapes", "--layer", "99"], "layer 99"),
        (["ablation", "--layer", "4"], "layer 4"),
        (["contributions", "--text", LINE, "--position", "99"], "position 99: .* 0 to 5"),
        (["logit_lens", "--text", LINE, "--position", "-7"], "position -7"),
        (["logit_lens", "--top", "0"], "between 1 and 50"),
        (["neighbors", "--word", "cat", "--top", "0"], "between 1 and 100"),
        (["attention", "--layer", "one"], "'one' is not an integer"),
        (["position", "--at", "1"], "2 arguments"),
        (["position", "--word", "the", "--at", "1", "64"], "position 64: .* 0 to 63"),
        (["position", "--word", ""], "empty word"),
        (["contributions", "--token", "xyz"], "'xyz' .*3 tokens"),
        (["contributions", "--token", ""], "empty text"),
        (["neighbors", "--word", "cat", "--against", "xyz"], "'xyz' .*3 tokens"),
        (["surprisal", "--text", "a"], "one token"),
        (["ablation", "--text", "a"], "one token"),
        (["tokens", "--unknown", "guess"], "--unknown.*'guess'"),
        (["tokens", "--text", "a", "--text-file", "b"], "--text-file.*--text"),
        (["tokens", "--text-file", "missing.txt"], "missing.txt .*No such file"),
        (["tokens", "--text-file", "latin.txt"], "latin.txt .*UTF-8 at byte 3"),
        (["tokens", "--lyer", "1"], "--lyer"),
    ],
)
def test_an_invalid_value_is_an_error(words: list[str], error: str, run: Path, error_hint: ErrorHint) -> None:
    Path("latin.txt").write_bytes(b"caf\xe9")
    error_hint(run, *words, error=error)


def views_with(option: str) -> set[str]:
    """The views that take an option."""
    option = {"text-file": "text"}.get(option, option).removesuffix("-id")
    return {name for _, view_names in views.command_line_flags()[option] for name in view_names}


@pytest.mark.parametrize(
    ("view", "words", "error"),
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
def test_hints_only_suggest_options_of_the_view(
    view: str, words: list[str], error: str, run: Path, error_hint: ErrorHint
) -> None:
    hint = error_hint(run, view, *words, error=error)
    assert all(view in views_with(option) for option in re.findall(r"--([a-z-]+)", hint))


@pytest.mark.parametrize("view", TEXT_VIEWS)
def test_an_empty_text_is_an_error(view: str, run: Path, error_hint: ErrorHint) -> None:
    assert "--text" in error_hint(run, view, "--text", "", error="no text")


@pytest.fixture(scope="module")
def characters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose tokenizer has few characters."""
    return random_checkpoint(tmp_path_factory.mktemp("characters") / "model", "char", text="abc ?\n").folder


@pytest.mark.parametrize("view", TEXT_VIEWS)
def test_unknown_characters_are_an_error_or_skipped_or_replaced(
    view: str, characters: Path, run_inspect: Inspect, error_hint: ErrorHint
) -> None:
    assert "--unknown skip" in error_hint(characters, view, "--text", "abéc", error="'é'")
    assert run_inspect(characters, view, "--text", "abéc", "--unknown", "skip") == run_inspect(
        characters, view, "--text", "abc"
    )
    assert run_inspect(characters, view, "--text", "abéc", "--unknown", "replace") == run_inspect(
        characters, view, "--text", "ab?c"
    )


@pytest.mark.parametrize(
    ("preset", "view", "error"),
    [
        ("tiny", "shapes", "tiny"),
        ("tiny", "attention", ""),
        ("gpt2-512", "attention", "attention .*trained model"),
        ("gpt2-512", "verify", "verify .*trained model"),
        ("huge", "shapes", "'huge'"),
    ],
)
def test_a_preset_has_only_shapes_and_needs_a_vocab_size(
    preset: str, view: str, error: str, error_hint: ErrorHint
) -> None:
    error_hint("--preset", preset, view, error=error)


@pytest.mark.parametrize("view", ARGUMENTS)
def test_a_run_that_does_not_exist_is_an_error(view: str, error_hint: ErrorHint) -> None:
    error_hint("nowhere", view, error="nowhere")


def test_a_folder_that_is_not_a_run_is_an_error(error_hint: ErrorHint) -> None:
    Path("folder").mkdir()
    error_hint("folder", "shapes", error="folder .*neither a run nor a checkpoint")


def test_a_checkpoint_outside_a_run_has_no_losses(characters: Path, error_hint: ErrorHint) -> None:
    error_hint(characters, "losses", error="belongs to no run")


# Help


def test_help_names_the_views_of_every_option(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        cli.main(["inspect", "--help"])
    help_text = capsys.readouterr().out
    described = {
        flag: {name for names in re.findall(r"(?:  |\. )([a-z_]+(?:, [a-z_]+)*): ", text) for name in names.split(", ")}
        for flag, text in re.findall(r"^  --(\w+) (.*)", help_text, re.M)
    }
    options = ("layer", "head", "position", "token", "word", "against", "at", "top")
    assert {option: views_with(option) for option in options} == {option: described[option] for option in options}
    assert all(view in help_text for view in lens.FUNCTIONS)
