"""A setting that the user gives is used or rejected, whatever training starts from: each of them, by name."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import octavo
from octavo import training
from octavo.data.prepare import prepare
from octavo.errors import OctavoError
from octavo.settings import Settings, to_toml
from octavo.training.fixed_settings import FIXED_BY, FREE
from octavo.training.setup import set_up
from small_runs import RECIPE, SMALL, TEXT

FIELDS = {field.name: field for field in dataclasses.fields(Settings)}
# Values for settings of which not every value is valid.
OTHER = {
    "source": "other.txt",
    "tokenizer": "char",
    "text_field": "body",
    "encoding": "latin-1",
    "errors": "ignore",
    "preset": "quick",
    "val_fraction": 0.2,
    "n_head": 3,
    "n_embd": 24,
    "block_size": 8,
    "curriculum_splits": 2,
    "vocab_size": 100,
    "device": "cpu",
    "precision": "bf16",
    "compile": "off",
    "log": "tensorboard",
    "min_learning_rate": 1e-4,
    "learning_rate": 2e-2,
}


def other_value(name: str) -> Any:
    """A valid value of a setting that is not its default and not the one of the runs here."""
    field = FIELDS[name]
    if name in OTHER:
        return OTHER[name]
    if field.type is bool:
        return not field.default
    if field.metadata["choices"]:
        usual = {field.default, SMALL.get(name)}
        return next(choice for choice in field.metadata["choices"] if choice not in usual)
    current = SMALL.get(name, field.default)
    return current + 1 if field.type is int else round((current + field.metadata["low"]) / 2 + 0.01, 6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, `run`, a prepared folder, `tokens`, and two texts."""
    folder = tmp_path_factory.mktemp("fixed")
    for name in ("text.txt", "other.txt"):
        (folder / name).write_text(TEXT, encoding="utf-8")
    prepare(folder / "text.txt", folder / "tokens", tokenizer="bpe:270")
    octavo.train(folder / "text.txt", out=folder / "run", tokenizer="bpe:270", **{**SMALL, "max_steps": 0})
    return folder


@pytest.fixture(autouse=True)
def working_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


STARTS: dict[str, dict[str, Any]] = {
    "weights": {"source": "text.txt", "init": "run", **RECIPE},
    "dataset": {"source": "tokens", **SMALL},
    "run": {"resume": "run"},
}


def final(plan: training.Plan) -> Settings:
    return set_up(plan).result.settings


def final_settings(start: str, **given: Any) -> Settings:
    return final(training.plan(**{**STARTS[start], **given}))


def test_every_setting_is_classified() -> None:
    fixed = set().union(*FIXED_BY.values())
    assert fixed | FREE == FIELDS.keys()
    assert not fixed & FREE


@pytest.mark.parametrize("start", FIXED_BY)
def test_a_setting_that_is_fixed_is_rejected_with_its_flag(start: str) -> None:
    for name in FIXED_BY[start]:
        with pytest.raises(OctavoError) as caught:
            final_settings(start, **{name: other_value(name)})
        assert name.replace("_", " ") in caught.value.message.replace("_", " ")
        assert f"--{name.replace('_', '-')}" in str(caught.value.hint)


@pytest.mark.parametrize("start", FIXED_BY)
def test_every_other_setting_is_used(start: str) -> None:
    names = FIELDS.keys() - FIXED_BY[start] - {"preset", "vocab_size"}
    names -= {"source"} if start == "dataset" else set()
    given = {name: other_value(name) for name in names}
    settings = final_settings(start, **given)
    assert {name: getattr(settings, name) for name in names} == given


@pytest.mark.parametrize("start", FIXED_BY)
def test_a_fixed_setting_may_be_given_with_its_own_value(start: str) -> None:
    own = dataclasses.asdict(octavo.Run("run").settings)
    final_settings(start, **{name: own[name] for name in FIXED_BY[start]})
    automatic = {"tokenizer": "auto"} | ({"vocab_size": 0} if start != "dataset" else {})
    assert final_settings(start, **automatic).tokenizer in ("bpe", "bpe:270")


def test_settings_in_a_toml_file_are_given_too() -> None:
    Path("given.toml").write_text("[model]\nn_layer = 7\n", encoding="utf-8")
    plan = training.plan("text.txt", init="run", config="given.toml", **RECIPE)
    with pytest.raises(OctavoError, match="n_layer is 2 in the weights of"):
        final(plan)
    Path("own.toml").write_text(to_toml(octavo.Run("run").settings), encoding="utf-8")
    assert final(training.plan("text.txt", init="run", config="own.toml")).n_layer == 2


def test_a_preset_does_not_count_as_given() -> None:
    settings = final(training.plan("text.txt", init="run", preset="gpt2", device="cpu"))
    assert (settings.n_layer, settings.block_size, settings.tokenizer) == (2, 16, "bpe")


def test_a_block_size_above_that_of_the_weights_is_rejected() -> None:
    with pytest.raises(OctavoError, match="16 positions"):
        final_settings("weights", block_size=32)


@pytest.mark.parametrize("max_epochs", [5.0, 50.0])  # above 20, a new run gets early stopping
def test_resuming_with_max_epochs_caps_the_steps_and_keeps_the_other_settings(max_epochs: float) -> None:
    before, settings = octavo.Run("run").settings, final_settings("run", max_steps=10**6, max_epochs=max_epochs)
    assert 2 < settings.max_steps < 10**6
    expected = {"max_epochs": max_epochs, "max_steps": settings.max_steps}
    assert settings == dataclasses.replace(before, **expected)
