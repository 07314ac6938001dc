"""Settings: a value comes from the default, the preset, the file or the hand, and every one of them is checked."""

import dataclasses
import math
import re
import tomllib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import example, given
from hypothesis import settings as options
from hypothesis import strategies as st

from octavo import cli, estimate
from octavo.errors import OctavoError
from octavo.settings import (
    LOGGERS,
    NANOGPT_NAMES,
    PRESETS,
    SECTIONS,
    DataSettings,
    ModelSettings,
    Settings,
    TrainingSettings,
    from_toml,
    resolve,
    to_toml,
)

FIELDS = {each.name: each for each in fields(Settings)}
NAMES = [name for name in FIELDS if name != "preset"]
NUMBERS = [name for name, each in FIELDS.items() if each.type in (int, float)]
law = options(derandomize=True, deadline=None)
CHOICES = [name for name, each in FIELDS.items() if each.metadata["choices"]]

# What must go with a value at its bound, since three settings depend on three others.
COMPANIONS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "n_head": lambda heads: {"n_embd": heads},
    "n_embd": lambda width: {"n_head": 1},
    "curriculum_splits": lambda parts: {"block_size": parts},
    "block_size": lambda length: {"curriculum_splits": 1},
    "learning_rate": lambda rate: {"min_learning_rate": 0.0},
    "min_learning_rate": lambda rate: {"learning_rate": 100.0},
}
# Settings that are given together, so that what lies over what stays a set of good settings.
TOGETHER = [["n_head", "n_embd"], ["block_size", "curriculum_splits"], ["learning_rate", "min_learning_rate"]]
GROUPS = TOGETHER + [[name] for name in NAMES if name not in COMPANIONS]


def values_of(name: str) -> st.SearchStrategy[Any]:
    """Anything that a setting may be."""
    each = FIELDS[name]
    if name == "preset" or each.metadata["choices"]:
        return st.sampled_from(list(each.metadata["choices"] or PRESETS))
    if name == "log":
        return st.lists(st.sampled_from(LOGGERS)).map(",".join)
    low, high = each.metadata["low"], each.metadata["high"]
    kinds: dict[Any, Callable[[], st.SearchStrategy[Any]]] = {
        bool: st.booleans, str: st.text, int: lambda: st.integers(low, high), float: lambda: st.floats(low, high),
    }  # fmt: skip
    return kinds[each.type]()


@st.composite
def good_values(draw: st.DrawFn) -> dict[str, Any]:
    """Good values for all settings."""
    values = {name: draw(values_of(name)) for name in FIELDS}
    heads = values["n_head"]
    values["n_embd"] = heads * draw(st.integers(1, FIELDS["n_embd"].metadata["high"] // heads))
    windows = values["curriculum_splits"]
    values["block_size"] = windows * draw(st.integers(1, FIELDS["block_size"].metadata["high"] // windows))
    rates = sorted(values[name] for name in ("learning_rate", "min_learning_rate"))
    return values | {"min_learning_rate": rates[0], "learning_rate": rates[1]}


def parts(values: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Some of the values, those that depend on one another together."""
    chosen = st.lists(st.sampled_from(GROUPS), unique_by=tuple)
    return chosen.map(lambda groups: {name: values[name] for group in groups for name in group})


def refusal(*place: Any, **given: Any) -> OctavoError:
    with pytest.raises(OctavoError) as caught:
        resolve(*place, **given)
    assert caught.value.hint
    return caught.value


def in_file(folder: Path, text: str | bytes) -> Path:
    path = folder / "some.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


# Where a value comes from


@law
@given(preset=st.sampled_from(list(PRESETS)), data=st.data())
def test_each_place_lies_over_the_one_before(
    tmp_path_factory: pytest.TempPathFactory, preset: str, data: st.DataObject
) -> None:
    file, hand = (data.draw(good_values().flatmap(parts)) for _ in range(2))
    config = tmp_path_factory.mktemp("settings") / "some.toml"
    config.write_text(tomli_w.dumps(file), encoding="utf-8")
    expected = {name: each.default for name, each in FIELDS.items()}
    for over in (PRESETS[preset], file, hand, {"preset": preset}):
        expected |= ({"max_epochs": 0.0} if "max_steps" in over else {}) | over
    assert dataclasses.asdict(resolve(preset, config, **hand)) == expected


def test_without_a_word_the_settings_are_the_defaults_which_are_the_preset_tiny() -> None:
    assert resolve() == resolve("tiny") == Settings()


def test_the_preset_is_the_hands_else_the_files(tmp_path: Path) -> None:
    config = in_file(tmp_path, 'preset = "words"\nn_layer = 3')
    assert (resolve(None, config).preset, resolve(None, config).tokenizer) == ("words", "word")
    for settings in (resolve("baby", config), resolve(config=config, preset="baby")):
        assert (settings.preset, settings.tokenizer, settings.n_layer) == ("baby", "auto", 3)


# Files


def test_a_file_is_flat_or_in_sections(tmp_path: Path) -> None:
    flat = resolve(None, in_file(tmp_path, 'n_layer = 6\nsource = "a.txt"\nlearning_rate = 1'))
    sections = '[model]\nn_layer = 6\n[data]\nsource = "a.txt"\n[training]\nlearning_rate = 1.0'
    assert flat == resolve(None, in_file(tmp_path, sections)) == resolve(n_layer=6, source="a.txt", learning_rate=1)
    assert flat == resolve(None, in_file(tmp_path, 'n_layer = 6\n[data]\nsource = "a.txt"\nlearning_rate = 1'))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_survives_its_file(preset: str, tmp_path: Path) -> None:
    text = to_toml(resolve(preset))
    assert from_toml(in_file(tmp_path, text)) == resolve(preset)
    assert tomllib.loads(text).keys() == {"preset", *SECTIONS}


@law
@given(values=good_values())
@example(values={"source": 'a "b" \\c\td\r\ne\0\x7f\u2028😀 # [x]\n\n= 1'})
@example(values={"seed": 2**63 - 1, "learning_rate": 1e-300, "min_learning_rate": 5e-324, "grad_clip": 0.1 + 0.2})
def test_any_settings_survive_their_file(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    settings = Settings(**values)
    path = tmp_path_factory.mktemp("settings") / "settings.toml"
    path.write_bytes(to_toml(settings).encode())
    assert from_toml(path) == settings


@pytest.mark.parametrize(
    ("text", "what", "hint"),
    [
        ("n_layer = ", "is not readable TOML", "n_layer = 6"),
        (b"n_layer = 6 # \xff", "is not readable TOML", "n_layer = 6"),
        ("n_layer = 5\n[model]\nn_layer = 6", "sets n_layer twice", "one line"),
        ("[modle]\nn_layer = 6", "no section 'modle'", "model"),
        ("n_layres = 6", "no setting 'n_layres'", "--n-layer"),
        ('n_layer = "6"', "n_layer='6' is not an integer", "--n-layer"),
        ("learning_rate = nan", "learning_rate=nan is not a finite number", "--learning-rate"),
        ("max_iters = 10", "nanoGPT", "--max-steps"),
        ('preset = "tinny"', "no preset 'tinny'", "tiny"),
    ],
)
def test_a_file_that_is_not_right_is_told(text: str | bytes, what: str, hint: str, tmp_path: Path) -> None:
    said = refusal(None, in_file(tmp_path, text))
    assert what in said.message
    assert hint in str(said.hint)


@pytest.mark.parametrize("value", ["5", "true", '["tiny"]', "1979-05-27"])
def test_a_preset_that_is_not_text_is_told(value: str, tmp_path: Path) -> None:
    assert "preset" in refusal(None, in_file(tmp_path, f"preset = {value}")).message


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    assert "there is no settings file" in refusal(None, tmp_path / "missing.toml").message
    assert "not readable" in refusal(None, tmp_path).message


# Every setting


def test_every_setting_is_explained_and_stands_in_one_section() -> None:
    names = [each.name for part in SECTIONS.values() for each in fields(part)]
    assert sorted([*names, "preset"]) == sorted(FIELDS)
    for name, each in FIELDS.items():
        assert len(each.metadata["help"]) > 3, name
        assert each.type in (int, float, bool, str), name
        assert type(each.default) is each.type, name


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_bounds_within_which_it_is_taken(name: str) -> None:
    each, companions = FIELDS[name], COMPANIONS.get(name, lambda value: {})
    low, high = each.metadata["low"], each.metadata["high"]
    assert math.isfinite(high - low)
    for bound in (low, high):
        assert getattr(resolve(**{name: bound, **companions(bound)}), name) == bound
    beyond = (low - 1, high + 1) if each.type is int else (math.nextafter(low, -9e9), math.nextafter(high, 9e9))
    for value in (*beyond, -(10**30), 10**30):
        said = refusal(**{name: value, **companions(value)})
        assert re.match(rf"{name}=\S+ is not between ", said.message)
        assert said.hint == f"--{name.replace('_', '-')} {each.default}"


@pytest.mark.parametrize("name", [name for name in NUMBERS if FIELDS[name].type is float])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_is_infinite_or_none_at_all(name: str, value: float) -> None:
    said = refusal(**{name: value})
    assert said.message == f"{name}={value} is not a finite number"
    assert str(said.hint).startswith(f"--{name.replace('_', '-')} ")


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_has_a_type(name: str) -> None:
    others = {
        int: ["4", 4.0, 4.5, True, None, [4]],
        float: ["0.5", True, None, [0.5]],
        bool: [0, 1, "true", "", None],
        str: [4, None, True, ["char"], b"char"],
    }[FIELDS[name].type]  # type: ignore[index]
    for value in others:
        said = refusal(**{name: value})
        assert said.message.startswith(f"{name}={value!r} is not ")
        assert str(said.hint).startswith(f"--{name.replace('_', '-')} ")


def test_a_whole_number_is_a_number() -> None:
    settings = resolve(learning_rate=1, dropout=0)
    assert (settings.learning_rate, type(settings.learning_rate), type(settings.dropout)) == (1.0, float, float)


@pytest.mark.parametrize(("name", "choice"), [(n, c) for n in CHOICES for c in FIELDS[n].metadata["choices"]])
def test_a_choice_is_taken_and_a_misspelt_one_is_answered_with_it(name: str, choice: str) -> None:
    assert getattr(resolve(**{name: choice}), name) == choice
    said = refusal(**{name: choice + choice[-1]})
    assert said.message == f"there is no {name} {choice + choice[-1]!r}"
    assert said.hint == f"--{name.replace('_', '-')} {choice}"
    listed = str(refusal(**{name: "?"}).hint)
    assert all(each in listed for each in FIELDS[name].metadata["choices"])


@pytest.mark.parametrize("part", [Settings, *SECTIONS.values()])
def test_settings_do_not_change(part: type) -> None:
    settings = part()
    for each in fields(part):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(settings, each.name, each.default)
    with pytest.raises(TypeError):
        part(3)  # by name only
    assert hash(settings) == hash(part())


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        (Settings, {"n_layer": -1}),
        (Settings, {"learning_rate": math.nan}),
        (Settings, {"preset": "tinny"}),
        (ModelSettings, {"n_layer": -1}),
        (DataSettings, {"val_fraction": 2.0}),
        (TrainingSettings, {"learning_rate": math.nan}),
    ],
)
def test_settings_are_checked_whoever_builds_them(part: type, wrong: dict[str, Any]) -> None:
    with pytest.raises(OctavoError, match=next(iter(wrong))):
        part(**wrong)


# Settings that depend on one another


@law
@given(n_embd=st.integers(1, 1024), n_head=st.integers(1, 1024))
@example(n_embd=384, n_head=5)
@example(n_embd=1021, n_head=1020)
def test_heads_that_do_not_divide_the_width_are_answered_with_some_that_do(n_embd: int, n_head: int) -> None:
    if n_embd % n_head == 0:
        assert ModelSettings(n_embd=n_embd, n_head=n_head).head_size * n_head == n_embd
        return
    with pytest.raises(OctavoError) as caught:
        ModelSettings(n_embd=n_embd, n_head=n_head)
    assert f"n_embd={n_embd}" in caught.value.message
    assert f"n_head={n_head}" in caught.value.message
    flag, heads = str(caught.value.hint).split()
    assert flag == "--n-head"
    ModelSettings(n_embd=n_embd, n_head=int(heads))
    nearer = range(n_head - abs(n_head - int(heads)) + 1, n_head)
    assert all(n_embd % other for other in nearer if other > 0)


def test_the_heads_that_are_suggested_for_gpts_of_384_are_six() -> None:
    assert refusal(n_embd=384, n_head=5).hint == "--n-head 6"


def test_no_more_heads_are_suggested_than_there_may_be() -> None:
    ModelSettings(n_embd=2003, n_head=int(str(refusal(n_embd=2003, n_head=1024).hint).split()[1]))


def test_a_learning_rate_does_not_end_above_its_highest() -> None:
    said = refusal(learning_rate=1e-5, min_learning_rate=1e-4)
    assert said.message == "min_learning_rate=0.0001 is above learning_rate=1e-05"
    assert said.hint == "--min-learning-rate 1e-06"


def test_windows_are_cut_into_equal_ones() -> None:
    said = refusal(block_size=20, curriculum_splits=8)
    assert "block_size=20" in said.message
    assert "curriculum_splits=8" in said.message
    assert said.hint == "--curriculum-splits 4"
    assert resolve(block_size=20, curriculum_splits=4).curriculum_splits == 4


# Names


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("misspell", [lambda name: name + name[-1], lambda name: f"{name}s", str.title])
def test_a_misspelt_setting_is_answered_with_the_nearest(name: str, misspell: Callable[[str], str]) -> None:
    said = refusal(**{misspell(name): FIELDS[name].default})
    assert said.message == f"there is no setting {misspell(name)!r}"
    assert said.hint == f"--{name.replace('_', '-')}"


def test_a_setting_like_no_other_is_answered_with_all_of_them() -> None:
    hint = str(refusal(qqqqqqqq=1).hint)
    assert all(name in hint for name in FIELDS)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_misspelt_preset_is_answered_with_the_nearest(preset: str) -> None:
    said = refusal(preset + "-")
    assert said.message == f"there is no preset {preset + '-'!r}"
    assert said.hint == f"--preset {preset}"
    assert all(each in str(refusal("?").hint) for each in PRESETS)


# https://github.com/karpathy/nanoGPT/blob/master/train.py, the names it lets one set
NANOGPTS_OWN = [
    "out_dir", "eval_interval", "log_interval", "eval_iters", "always_save_checkpoint", "init_from", "dataset",
    "gradient_accumulation_steps", "batch_size", "block_size", "n_layer", "n_head", "n_embd", "dropout", "bias",
    "learning_rate", "max_iters", "weight_decay", "beta1", "beta2", "grad_clip", "decay_lr", "warmup_iters",
    "lr_decay_iters", "min_lr", "device", "dtype", "compile", "eval_only", "wandb_log", "wandb_project",
    "wandb_run_name", "backend",
]  # fmt: skip


@pytest.mark.parametrize("name", NANOGPTS_OWN)
def test_each_of_nanogpts_names_is_ours_or_is_answered_with_ours(name: str) -> None:
    if name in FIELDS:
        assert name not in NANOGPT_NAMES
        return
    said = refusal(**{name: 1})
    assert said.message.startswith(f"{name} is")
    assert "nanoGPT" in said.message
    assert said.hint == NANOGPT_NAMES[name]


@pytest.mark.parametrize("name", NANOGPT_NAMES)
def test_what_nanogpts_names_are_answered_with_exists(name: str) -> None:
    flags = cli.parse(["train"]).flags
    assert set(re.findall(r"--[a-z-]+", NANOGPT_NAMES[name])) <= set(flags)


# Presets


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_good_and_says_only_what_differs_from_the_defaults_or_must_stay(preset: str) -> None:
    settings = resolve(preset)
    assert settings.preset == preset
    assert settings.warmup_steps < settings.max_steps
    assert PRESETS[preset].keys() <= FIELDS.keys()


# The command of nanoGPT's README for a CPU, over config/train_shakespeare_char.py, over train.py
NANOGPT = {
    "bias": False, "learning_rate": 1e-3, "min_learning_rate": 1e-4, "warmup_steps": 100, "schedule": "cosine",
    "optimizer": "adamw", "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.99, "grad_clip": 1.0, "eval_every": 250,
    "tokenizer": "char", "val_fraction": 0.1, "activation": "gelu", "embedding_init": "normal",
    "seed": 1337, "patience": 0, "max_epochs": 0.0, "weight_init": "noise", "curriculum_splits": 1, "precision": "fp32",
}  # fmt: skip
NANOGPT_TINY = NANOGPT | {
    "block_size": 64, "batch_size": 12, "n_layer": 4, "n_head": 4, "n_embd": 128, "max_steps": 2000,
    "dropout": 0.0, "attention_dropout": 0.0,
}  # fmt: skip
NANOGPT_BABY = NANOGPT | {
    "block_size": 256, "batch_size": 64, "n_layer": 6, "n_head": 6, "n_embd": 384, "max_steps": 5000,
    "dropout": 0.2, "attention_dropout": 0.2,
}  # fmt: skip


@pytest.mark.parametrize(("preset", "recipe"), [("nanogpt-tiny", NANOGPT_TINY), ("nanogpt-baby", NANOGPT_BABY)])
def test_nanogpts_recipes_are_theirs_to_the_letter(preset: str, recipe: dict[str, Any]) -> None:
    settings = dataclasses.asdict(resolve(preset))
    assert {name: settings[name] for name in recipe} == recipe


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [("gpt2", 124_439_808), ("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080), ("gpt2-xl", 1_557_611_200)],
)
def test_the_gpt2_presets_are_gpt2s_sizes(preset: str, parameters: int) -> None:
    """The counts are those of Hugging Face's gpt2, gpt2-medium, gpt2-large and gpt2-xl."""
    settings = resolve(preset, vocab_size=50_257)
    assert estimate.parameters(settings) == parameters
    assert (settings.block_size, settings.bias, settings.activation, settings.tokenizer) == (
        1024, True, "gelu_new", "gpt2",
    )  # fmt: skip


def test_what_is_wrong_in_a_file_is_told_with_the_files_name(tmp_path: Path) -> None:
    for line, told in (("n_layer = 'six'", "n_layer='six'"), ("n_layr = 6", "no setting 'n_layr'")):
        path = in_file(tmp_path, line)
        assert f"in {path}: " in refusal(None, path).message
        assert told in refusal(None, path).message
    assert "in " not in refusal(None, in_file(tmp_path, "n_layer = 2"), n_head=0).message.split("n_head")[0]
