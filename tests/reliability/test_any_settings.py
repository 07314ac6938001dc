"""Any valid settings and any text: train three steps, resume, sample, evaluate. Nothing may fail.

A text may be too short for the settings; then training must not start, and the error must have a hint.
"""

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest

import octavo
from octavo import training
from octavo.errors import OctavoError
from octavo.settings import Settings
from reliability.torture import IS_TORTURE, Outcome, Report
from small_runs import finished_event

EXAMPLES = 300 if IS_TORTURE else 15
law = hypothesis.settings(
    derandomize=True,
    deadline=None,
    max_examples=EXAMPLES,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],  # an example takes too long to be shrunk
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)

# Settings that are not drawn: the loggers are optional packages, and other tests cover fields and encodings.
FIXED = {"source", "preset", "text_field", "encoding", "log", "device", "compile", "max_steps", "n_embd"}
STEPS = 3

fractions = st.sampled_from([0.0, 0.1, 0.5, 0.99])
rates = st.sampled_from([0.0, 1e-12, 1e-4, 1e-3, 1e-2])
intervals = st.integers(1, 4)
optional_intervals = st.integers(0, 4)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "block_size": st.integers(1, 12),
    "vocab_size": st.sampled_from([0, 0, 1000]),
    "n_layer": st.integers(1, 2),
    "n_head": st.integers(1, 3),
    "dropout": fractions,
    "attention_dropout": fractions,
    "tokenizer": st.sampled_from(["auto", "char", "byte", "word", "word:300", "bpe:258", "bpe:300"]),
    "val_fraction": st.sampled_from([0.01, 0.1, 0.5, 0.9]),
    "max_epochs": st.sampled_from([0.0, 0.001, 8.0]),
    "batch_size": st.integers(1, 4),
    "micro_batch": st.integers(0, 5),
    "curriculum_splits": st.integers(1, 4),
    "curriculum_fraction": st.sampled_from([0.0, 0.5, 1.0]),
    "learning_rate": rates,
    "min_learning_rate": rates,
    "warmup_steps": st.integers(0, 5),
    "weight_decay": fractions,
    "muon_learning_rate": rates,
    "muon_weight_decay": fractions,
    "momentum": fractions,
    "beta1": fractions,
    "beta2": fractions,
    "grad_clip": st.sampled_from([0.0, 1e-6, 1.0, 1e9]),
    "eval_every": intervals,
    "sample_every": optional_intervals,
    "save_every": optional_intervals,
    "log_every": intervals,
    "keep_checkpoints": st.integers(0, 5),
    "patience": st.integers(0, 2),
    "seed": st.integers(0, 2**63 - 1),
    "precision": st.sampled_from(["auto", "fp32", "bf16"]),
}


@st.composite
def valid_settings(draw: st.DrawFn) -> dict[str, Any]:
    """Values of all settings, valid together."""
    values = {name: draw(strategy) for name, strategy in VALUES.items()}
    for field in dataclasses.fields(Settings):
        if field.name not in VALUES.keys() | FIXED:  # on or off, or one of a few choices
            values[field.name] = draw(st.sampled_from(field.metadata["choices"] or (False, True)))
    values["n_embd"] = values["n_head"] * draw(st.integers(1, 6))
    values["curriculum_splits"] = math.gcd(values["curriculum_splits"], values["block_size"])
    values["special_tokens"] &= values["tokenizer"].startswith("bpe")  # the other kinds have none
    values["min_learning_rate"] = min(values["min_learning_rate"], values["learning_rate"])
    return values | {"max_steps": STEPS, "device": "cpu", "compile": "off"}


# Any characters, repeated until most texts are long enough. Surrogates can't be in a UTF-8 file, and a NUL is an error.
texts = st.builds(
    lambda text, length: text * math.ceil(length / len(text)),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=60),
    st.sampled_from([60, 1000, 2000, 4000]),
)


def test_every_setting_is_drawn() -> None:
    choices = {field.name for field in dataclasses.fields(Settings) if field.metadata["choices"] or field.type is bool}
    assert VALUES.keys() | FIXED | choices == {field.name for field in dataclasses.fields(Settings)}


def test_any_settings_and_text_train_resume_sample_and_evaluate(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, report: Report
) -> None:
    trained = short = 0

    @law
    @hypothesis.given(values=valid_settings(), text=texts, stop_after=st.integers(1, STEPS), prompt=st.integers(0, 60))
    def check(values: dict[str, Any], text: str, stop_after: int, prompt: int) -> None:
        nonlocal trained, short
        hypothesis.note(f"{values=} {text=} {stop_after=} {prompt=}")
        folder = tmp_path_factory.mktemp("any")
        monkeypatch.chdir(folder)
        source = Path("text.txt")
        source.write_bytes(text.encode())
        try:
            plan = training.plan(source, out="undisturbed", **values)
            undisturbed = finished_event([*training.events(plan)])
        except OctavoError as error:
            assert_not_started(error)
            short += 1
            return
        trained += 1
        calls = itertools.count(1)
        plan = training.plan(source, out="stopped", **values)
        stopped = finished_event([*training.events(plan, should_stop=lambda: next(calls) == stop_after)])
        resumed = finished_event([*training.events(training.plan(resume="stopped"))])
        if stopped.reason != "patience":  # a run that stopped early is trained further when it is resumed
            assert Outcome.of(resumed.run).weights == Outcome.of(undisturbed.run).weights
            assert Outcome.of(resumed.run).samples == Outcome.of(undisturbed.run).samples
        evaluated = octavo.evaluate(octavo.Run(resumed.run).last)
        assert evaluated.loss == resumed.val_loss
        if len(octavo.load(resumed.run).tokenizer.encode(text)) > 1:  # a text without spaces may be one word
            octavo.evaluate(resumed.run, source)
        [completion] = octavo.generate(resumed.run, text[:prompt], max_new_tokens=5, seed=values["seed"])
        assert isinstance(completion.text, str)

    check()
    assert trained > EXAMPLES / 2
    report(
        "any valid settings and text: train, resume, sample, evaluate",
        trained + short,
        failures=0,
        text_too_short=short,
    )


def assert_not_started(error: OctavoError) -> None:
    assert error.hint, error
    assert not Path("undisturbed").exists(), error
