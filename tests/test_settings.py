"""Settings come from defaults, preset, file and explicit values, in this order, and each value is validated."""

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
    Source,
    TrainingSettings,
    from_toml,
    resolve,
    to_toml,
)
from preparing import error_of, write

FIELDS = {each.name: each for each in fields(Settings)}
NAMES = [name for name in FIELDS if name != "preset"]
NUMBERS = [name for name, each in FIELDS.items() if each.type in (int, float)]
CHOICES = [(name, choice) for name, each in FIELDS.items() for choice in each.metadata["choices"]]
law = options(derandomize=True, deadline=None)

# What must change with a setting that is at its bound: three settings depend on three others.
COMPANIONS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "n_head": lambda value: {"n_embd": value},
    "n_embd": lambda value: {"n_head": 1},
    "curriculum_splits": lambda value: {"block_size": value},
    "block_size": lambda value: {"curriculum_splits": 1},
    "learning_rate": lambda value: {"min_learning_rate": 0.0},
    "min_learning_rate": lambda value: {"learning_rate": 100.0},
}
# Settings that must come from the same layer, so that any combination of layers is valid.
DEPENDENT = [["n_head", "n_embd"], ["block_size", "curriculum_splits"], ["learning_rate", "min_learning_rate"]]
GROUPS = DEPENDENT + [[name] for name in NAMES if name not in COMPANIONS]


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def values_of(name: str) -> st.SearchStrategy[Any]:
    """The values that a setting allows."""
    each = FIELDS[name]
    low, high = each.metadata["low"], each.metadata["high"]
    if name == "preset":
        return st.sampled_from(list(PRESETS))
    if name == "log":
        return st.lists(st.sampled_from(LOGGERS)).map(",".join)
    if each.metadata["choices"]:
        return st.sampled_from(list(each.metadata["choices"]))
    if each.type is int:
        return st.integers(low, high)
    if each.type is float:
        return st.floats(low, high)
    return st.booleans() if each.type is bool else st.text()


@st.composite
def valid_values(draw: st.DrawFn) -> dict[str, Any]:
    """Valid values for all settings."""
    values = {name: draw(values_of(name)) for name in FIELDS}
    heads = values["n_head"]
    values["n_embd"] = heads * draw(st.integers(1, FIELDS["n_embd"].metadata["high"] // heads))
    splits = values["curriculum_splits"]
    values["block_size"] = splits * draw(st.integers(1, FIELDS["block_size"].metadata["high"] // splits))
    rates = sorted(values[name] for name in ("learning_rate", "min_learning_rate"))
    return values | {"min_learning_rate": rates[0], "learning_rate": rates[1]}


def subsets_of(values: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Some of the values. Those that depend on one another stay together."""
    groups = st.lists(st.sampled_from(GROUPS), unique_by=tuple)
    return groups.map(lambda groups: {name: values[name] for group in groups for name in group})


def resolve_error(preset: str | None = None, config: Path | None = None, **explicit: Any) -> OctavoError:
    return error_of(lambda: resolve(preset, config, **explicit))


def write_toml(folder: Path, text: str | bytes) -> Path:
    return write(folder / "some.toml", text)


# Layers


@law
@given(preset=st.sampled_from(list(PRESETS)), data=st.data())
def test_each_layer_overrides_the_one_before(
    tmp_path_factory: pytest.TempPathFactory, preset: str, data: st.DataObject
) -> None:
    from_file, explicit = (data.draw(valid_values().flatmap(subsets_of)) for _ in range(2))
    config = write_toml(tmp_path_factory.mktemp("settings"), tomli_w.dumps(from_file))
    expected = {name: each.default for name, each in FIELDS.items()}
    for layer in (PRESETS[preset], from_file, explicit, {"preset": preset}):
        expected |= ({"max_epochs": 0.0} if "max_steps" in layer else {}) | layer
    assert dataclasses.asdict(resolve(preset, config, **explicit)) == expected


def test_the_defaults_are_the_preset_tiny() -> None:
    assert resolve() == resolve("tiny") == Settings()


def test_an_explicit_preset_overrides_the_one_in_the_file(tmp_path: Path) -> None:
    config = write_toml(tmp_path, 'preset = "words"\nn_layer = 3')
    assert (resolve(None, config).preset, resolve(None, config).tokenizer) == ("words", "word")
    for settings in (resolve("baby", config), resolve(config=config, preset="baby")):
        assert (settings.preset, settings.tokenizer, settings.n_layer) == ("baby", "auto", 3)


# Files


def test_a_file_may_have_sections(tmp_path: Path) -> None:
    expected = resolve(n_layer=6, source="a.txt", learning_rate=1)
    for text in (
        'n_layer = 6\nsource = "a.txt"\nlearning_rate = 1',
        '[model]\nn_layer = 6\n[data]\nsource = "a.txt"\n[training]\nlearning_rate = 1.0',
        'n_layer = 6\n[data]\nsource = "a.txt"\nlearning_rate = 1',
    ):
        assert resolve(None, write_toml(tmp_path, text)) == expected


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_round_trips_through_toml(preset: str, tmp_path: Path) -> None:
    text = to_toml(resolve(preset))
    assert from_toml(write_toml(tmp_path, text)) == resolve(preset)
    assert tomllib.loads(text).keys() == {"preset", *SECTIONS}


@pytest.mark.parametrize("value", ["5", '"another.toml"'])
def test_a_parameter_of_resolve_in_settings_toml_is_an_unknown_setting(value: str, tmp_path: Path) -> None:
    write(tmp_path / "another.toml", "n_layer = 6")
    with pytest.raises(OctavoError, match="there is no setting 'config'"):
        from_toml(write_toml(tmp_path, f"config = {value}"))


@law
@given(values=valid_values())
@example(values={"source": 'a "b" \\c\td\r\ne\0\x7f\u2028😀 # [x]\n\n= 1'})
@example(values={"source": ("a.txt", "b c.md", "docs/")})
@example(values={"seed": 2**63 - 1, "learning_rate": 1e-300, "min_learning_rate": 5e-324, "grad_clip": 0.1 + 0.2})
def test_any_settings_round_trip_through_toml(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    settings = Settings(**values)
    assert from_toml(write_toml(tmp_path_factory.mktemp("settings"), to_toml(settings))) == settings


@pytest.mark.parametrize(
    ("text", "problem", "hint"),
    [
        ("n_layer = ", "not readable TOML", "n_layer = 6"),
        (b"n_layer = 6 # \xff", "not readable TOML", "n_layer = 6"),
        ("n_layer = 5\n[model]\nn_layer = 6", "sets n_layer twice", "one line"),
        ("[modle]\nn_layer = 6", "no section 'modle'", "model"),
        ("n_layres = 6", "no setting 'n_layres'", "n_layer"),
        ("n_layr = 6", "no setting 'n_layr'", "n_layer"),
        ('n_layer = "6"', "n_layer='6' is not an integer", "n_layer = 4"),
        ("n_layer = 'six'", "n_layer='six' is not an integer", "n_layer = 4"),
        ("learning_rate = nan", "learning_rate=nan is not a finite number", "learning_rate = 0.004"),
        ("max_iters = 10", "nanoGPT", "max_steps"),
        ("n_embd = 384\nn_head = 5", "n_embd=384 is not divisible", "n_head = 6"),
        ('schedule = "cosin"', "cosin", 'schedule = "cosine"'),
        ('preset = "tinny"', "no preset 'tinny'", "tiny"),
    ],
)
def test_the_error_for_an_invalid_file_names_the_file_and_the_setting(
    text: str | bytes, problem: str, hint: str, tmp_path: Path
) -> None:
    path = write_toml(tmp_path, text)
    error = resolve_error(None, path)
    assert str(path) in error.message
    assert problem in error.message
    assert hint in str(error.hint)
    assert "--" not in str(error.hint)


def test_the_error_for_an_explicit_value_does_not_name_the_file(tmp_path: Path) -> None:
    path = write_toml(tmp_path, "n_layer = 2\nn_head = 2")
    assert str(path) not in resolve_error(None, path, n_head=0).message


@pytest.mark.parametrize("value", ["5", "true", '["tiny"]', "1979-05-27"])
def test_a_preset_that_is_not_text_is_rejected(value: str, tmp_path: Path) -> None:
    assert "preset" in resolve_error(None, write_toml(tmp_path, f"preset = {value}")).message


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.toml", tmp_path):
        assert str(path) in resolve_error(None, path).message


# Every setting


def test_every_setting_has_a_help_text_a_type_and_one_section() -> None:
    names = [each.name for section in SECTIONS.values() for each in fields(section)]
    assert sorted([*names, "preset"]) == sorted(FIELDS)
    for name, each in FIELDS.items():
        assert len(each.metadata["help"]) > 3, name
        assert each.type in (int, float, bool, str, Source), name
        assert type(each.default) is (str if each.type == Source else each.type), name


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_bounds_that_are_allowed_and_enforced(name: str) -> None:
    each, companions = FIELDS[name], COMPANIONS.get(name, lambda value: {})
    low, high = each.metadata["low"], each.metadata["high"]
    assert math.isfinite(high - low)
    for bound in (low, high):
        assert getattr(resolve(**{name: bound, **companions(bound)}), name) == bound
    outside = (low - 1, high + 1) if each.type is int else (math.nextafter(low, -9e9), math.nextafter(high, 9e9))
    for value in (*outside, -(10**30), 10**30):
        error = resolve_error(**{name: value, **companions(value)})
        assert re.match(rf"{name}=\S+ is not between ", error.message)
        assert error.hint == f"{flag_of(name)} {each.default}"


@pytest.mark.parametrize("name", [name for name in NUMBERS if FIELDS[name].type is float])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_must_be_finite(name: str, value: float) -> None:
    error = resolve_error(**{name: value})
    assert f"{name}={value} " in error.message
    assert "finite" in error.message
    assert str(error.hint).startswith(f"{flag_of(name)} ")


@pytest.mark.parametrize("name", NAMES)
def test_a_value_of_another_type_is_rejected(name: str) -> None:
    wrong = {
        int: ["4", 4.0, 4.5, True, None, [4]],
        float: ["0.5", True, None, [0.5]],
        bool: [0, 1, "true", "", None],
        str: [4, None, True, ["char"], b"char"],
        Source: [4, None, True, b"char", [], [4], [["a.txt"]]],
    }[FIELDS[name].type]  # type: ignore[index]
    for value in wrong:
        error = resolve_error(**{name: value})
        assert error.message.startswith(f"{name}={value!r} is not ")
        assert str(error.hint).startswith(f"{flag_of(name)} ")


def test_an_integer_is_accepted_as_a_float() -> None:
    settings = resolve(learning_rate=1, dropout=0)
    assert (settings.learning_rate, type(settings.learning_rate), type(settings.dropout)) == (1.0, float, float)


@pytest.mark.parametrize(("name", "choice"), CHOICES)
def test_the_hint_for_a_misspelled_choice_is_the_nearest_one(name: str, choice: str) -> None:
    assert getattr(resolve(**{name: choice}), name) == choice
    misspelled = choice + choice[-1]
    error = resolve_error(**{name: misspelled})
    assert f"{name} {misspelled!r}" in error.message
    assert error.hint == f"{flag_of(name)} {choice}"
    all_choices = str(resolve_error(**{name: "?"}).hint)
    assert all(each in all_choices for each in FIELDS[name].metadata["choices"])


@pytest.mark.parametrize("section", [Settings, *SECTIONS.values()])
def test_settings_are_frozen_and_hashable(section: type) -> None:
    settings = section()
    for each in fields(section):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(settings, each.name, each.default)
    with pytest.raises(TypeError):
        section(3)  # keyword arguments only
    assert hash(settings) == hash(section())


@pytest.mark.parametrize(
    ("section", "invalid"),
    [
        (Settings, {"n_layer": -1}),
        (Settings, {"learning_rate": math.nan}),
        (Settings, {"preset": "tinny"}),
        (ModelSettings, {"n_layer": -1}),
        (DataSettings, {"val_fraction": 2.0}),
        (TrainingSettings, {"learning_rate": math.nan}),
    ],
)
def test_constructors_validate(section: type, invalid: dict[str, Any]) -> None:
    (name,) = invalid
    assert name in error_of(lambda: section(**invalid)).message


# Settings that depend on one another


@law
@given(n_embd=st.integers(1, 1024), n_head=st.integers(1, 1024))
@example(n_embd=384, n_head=5)
@example(n_embd=1021, n_head=1020)
def test_the_hint_for_heads_that_do_not_divide_the_width_is_the_nearest_divisor(n_embd: int, n_head: int) -> None:
    if n_embd % n_head == 0:
        assert ModelSettings(n_embd=n_embd, n_head=n_head).head_size * n_head == n_embd
        return
    error = error_of(lambda: ModelSettings(n_embd=n_embd, n_head=n_head))
    assert f"n_embd={n_embd}" in error.message
    assert f"n_head={n_head}" in error.message
    flag, heads = str(error.hint).split()
    assert flag == "--n-head"
    ModelSettings(n_embd=n_embd, n_head=int(heads))
    nearer = range(n_head - abs(n_head - int(heads)) + 1, n_head)
    assert all(n_embd % other for other in nearer if other > 0)


def test_the_hint_for_5_heads_of_width_384_is_6_heads() -> None:
    assert resolve_error(n_embd=384, n_head=5).hint == "--n-head 6"


def test_the_hint_for_heads_is_within_the_bounds_of_n_head() -> None:
    _, heads = str(resolve_error(n_embd=2003, n_head=1024).hint).split()
    ModelSettings(n_embd=2003, n_head=int(heads))


def test_min_learning_rate_must_not_exceed_learning_rate() -> None:
    error = resolve_error(learning_rate=1e-5, min_learning_rate=1e-4)
    assert "min_learning_rate=0.0001" in error.message
    assert "learning_rate=1e-05" in error.message
    assert error.hint == "--min-learning-rate 1e-06"


def test_curriculum_splits_must_divide_block_size() -> None:
    error = resolve_error(block_size=20, curriculum_splits=8)
    assert "block_size=20" in error.message
    assert "curriculum_splits=8" in error.message
    assert error.hint == "--curriculum-splits 4"
    assert resolve(block_size=20, curriculum_splits=4).curriculum_splits == 4


# Names


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("misspell", [lambda name: name + name[-1], lambda name: f"{name}s", str.title])
def test_the_hint_for_a_misspelled_setting_is_the_nearest_one(name: str, misspell: Callable[[str], str]) -> None:
    error = resolve_error(**{misspell(name): FIELDS[name].default})
    assert repr(misspell(name)) in error.message
    assert error.hint == flag_of(name)


def test_the_hint_for_an_unknown_setting_like_no_other_lists_all() -> None:
    hint = str(resolve_error(qqqqqqqq=1).hint)
    assert all(name in hint for name in FIELDS)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_hint_for_a_misspelled_preset_is_the_nearest_one(preset: str) -> None:
    error = resolve_error(preset + "-")
    assert repr(preset + "-") in error.message
    assert error.hint == f"--preset {preset}"
    assert all(each in str(resolve_error("?").hint) for each in PRESETS)


# The settings of https://github.com/karpathy/nanoGPT/blob/master/train.py
NANOGPT_SETTINGS = [
    "out_dir",
    "eval_interval",
    "log_interval",
    "eval_iters",
    "always_save_checkpoint",
    "init_from",
    "dataset",
    "gradient_accumulation_steps",
    "batch_size",
    "block_size",
    "n_layer",
    "n_head",
    "n_embd",
    "dropout",
    "bias",
    "learning_rate",
    "max_iters",
    "weight_decay",
    "beta1",
    "beta2",
    "grad_clip",
    "decay_lr",
    "warmup_iters",
    "lr_decay_iters",
    "min_lr",
    "device",
    "dtype",
    "compile",
    "eval_only",
    "wandb_log",
    "wandb_project",
    "wandb_run_name",
    "backend",
]


@pytest.mark.parametrize("name", NANOGPT_SETTINGS)
def test_every_nanogpt_setting_exists_or_has_a_replacement(name: str) -> None:
    if name in FIELDS:
        assert name not in NANOGPT_NAMES
        return
    error = resolve_error(**{name: 1})
    assert error.message.startswith(f"{name} is")
    assert "nanoGPT" in error.message
    assert error.hint == NANOGPT_NAMES[name]


@pytest.mark.parametrize("name", NANOGPT_NAMES)
def test_the_replacements_of_nanogpt_settings_are_flags(name: str) -> None:
    flags = cli.parse(["train"]).flags
    assert set(re.findall(r"--[a-z-]+", NANOGPT_NAMES[name])) <= set(flags)


# Presets


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_valid(preset: str) -> None:
    settings = resolve(preset)
    assert settings.preset == preset
    assert settings.warmup_steps < settings.max_steps
    assert PRESETS[preset].keys() <= FIELDS.keys()


# config/train_shakespeare_char.py, and the values for a CPU in nanoGPT's README; the rest are defaults of train.py
NANOGPT = dict(
    bias=False,
    learning_rate=1e-3,
    min_learning_rate=1e-4,
    warmup_steps=100,
    schedule="cosine",
    optimizer="adamw",
    weight_decay=0.1,
    beta1=0.9,
    beta2=0.99,
    grad_clip=1.0,
    eval_every=250,
    tokenizer="char",
    val_fraction=0.1,
    activation="gelu",
    embedding_init="normal",
    seed=1337,
    patience=0,
    max_epochs=0.0,
    weight_init="noise",
    curriculum_splits=1,
    precision="fp32",
)
NANOGPT_TINY = NANOGPT | dict(
    block_size=64,
    batch_size=12,
    n_layer=4,
    n_head=4,
    n_embd=128,
    max_steps=2000,
    dropout=0.0,
    attention_dropout=0.0,
)
NANOGPT_BABY = NANOGPT | dict(
    block_size=256,
    batch_size=64,
    n_layer=6,
    n_head=6,
    n_embd=384,
    max_steps=5000,
    dropout=0.2,
    attention_dropout=0.2,
)


@pytest.mark.parametrize(("preset", "recipe"), [("nanogpt-tiny", NANOGPT_TINY), ("nanogpt-baby", NANOGPT_BABY)])
def test_the_nanogpt_presets_equal_nanogpts_configuration(preset: str, recipe: dict[str, Any]) -> None:
    settings = dataclasses.asdict(resolve(preset))
    assert {name: settings[name] for name in recipe} == recipe


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [("gpt2", 124_439_808), ("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080), ("gpt2-xl", 1_557_611_200)],
)
def test_the_gpt2_presets_have_gpt2s_sizes(preset: str, parameters: int) -> None:
    """The counts are those of Hugging Face's gpt2, gpt2-medium, gpt2-large and gpt2-xl."""
    settings = resolve(preset, vocab_size=50_257)
    assert estimate.parameters(settings) == parameters
    shape = (settings.block_size, settings.bias, settings.activation, settings.tokenizer)
    assert shape == (1024, True, "gelu_new", "gpt2")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be"])
def test_a_toml_file_may_have_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    config = write_toml(tmp_path, "\ufeffn_layer = 3\r\n".encode(encoding))
    assert resolve(None, config).n_layer == 3


def test_the_home_folder_is_expanded_in_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    expected = {
        "~": str(tmp_path),
        "~/notes/*.txt": f"{tmp_path}/notes/*.txt",
        "~backup.txt": "~backup.txt",
        "./~": "./~",
        "a/~/b": "a/~/b",
        "-": "-",
        "": "",
    }
    assert {source: resolve(source=source).source for source in expected} == expected
    assert resolve(None, write_toml(tmp_path, 'source = "~/my.txt"')).source == f"{tmp_path}/my.txt"


def test_the_readmes_table_of_presets_is_current() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \| ([\d,]+) \| (\d+), (\d+), (\d+) \|", readme, re.MULTILINE)
    assert {name for name, *_ in rows} == {name for name in PRESETS if not name.startswith("gpt2-")}
    vocabularies = {"gpt2": 50_257, "word": 8_192}
    for name, *numbers in rows:
        settings = resolve(**PRESETS[name], vocab_size=vocabularies.get(PRESETS[name].get("tokenizer", ""), 65))
        expected = [estimate.parameters(settings), settings.n_layer, settings.n_embd, settings.block_size]
        assert [int(number.replace(",", "")) for number in numbers] == expected, name


def test_the_readme_names_every_page_of_the_documentation() -> None:
    root = Path(__file__).parents[1]
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert {f"docs/{page.name}" for page in (root / "docs").glob("*.md")} <= set(
        re.findall(r"\((docs/[\w-]+\.md)\)", readme)
    )
    assert all((root / picture).exists() for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", readme))
