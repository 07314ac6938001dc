"""What a run will cost, told before it is run, is what it does cost: counted, saved and held. Not timed."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from octavo import cli, device, estimate, kernels, training
from octavo.checkpoint import meta_model
from octavo.data.dataset import Dataset
from octavo.data.prepare import dataset
from octavo.device import Runtime
from octavo.errors import OctavoError
from octavo.estimate import Timing
from octavo.loss import next_token_loss
from octavo.model import GPT
from octavo.settings import PRESETS, Settings, resolve
from octavo.training import optimizers, run_estimate
from octavo.training.step import Trainer, auto_micro_batch

CPU = Runtime(torch.device("cpu"))
TEXT = "the cat sat on the mat, and the rat sat on the hat.\n" * 12
SMALL = dict(n_layer=2, n_head=2, n_embd=32, block_size=16, batch_size=4, vocab_size=40, device="cpu")
PACE = Timing(step=1.0, short_step=0.5, evaluated_token=0.01, sample=10.0)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a small text, and no more than a glance at the machine's speed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_estimate, "PROBE_SECONDS", 0.02)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


def with_vocabulary(preset: str) -> Settings:
    settings = resolve(preset)
    return dataclasses.replace(settings, vocab_size=50257 if settings.tokenizer == "gpt2" else 65)


# Parameters and FLOPs


@pytest.mark.parametrize("preset", PRESETS)
def test_parameters_are_those_of_the_model_part_by_part(preset: str) -> None:
    settings = with_vocabulary(preset)
    counted = dict.fromkeys(["wte", "wpe", "attention", "mlp", "norms"], 0)
    parts = {"wte.": "wte", "wpe.": "wpe", ".attn.": "attention", ".mlp.": "mlp", "ln_": "norms"}
    for name, parameter in meta_model(settings).named_parameters():
        counted[next(part for mark, part in parts.items() if mark in name)] += parameter.numel()
    assert estimate.parameters_by_part(settings) == counted
    assert estimate.parameters(settings) == sum(counted.values())


@pytest.mark.parametrize(
    "shape",
    [
        dict(preset="tiny", vocab_size=65),
        dict(preset="baby", vocab_size=65, dropout=0.0),
        dict(preset="gpt2", n_layer=2, n_head=3, n_embd=96, vocab_size=5000),
        dict(n_layer=1, n_head=1, n_embd=8, block_size=256, vocab_size=3, bias=False),
    ],
)
def test_flops_are_those_that_pytorch_counts(shape: dict[str, Any]) -> None:
    settings = resolve(**shape)
    ids = torch.randint(0, settings.vocab_size, (2, settings.block_size + 1))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        next_token_loss(GPT(settings)(ids[:, :-1]), ids[:, 1:]).backward()
    counted = counter.get_total_flops() / (2 * settings.block_size)
    assert estimate.flops_per_token(settings) == pytest.approx(counted, rel=0.02)
    assert estimate.flops_per_token(settings) == 3 * estimate.forward_flops_per_token(settings)


# Memory


def saved_bytes(settings: Settings, runtime: Runtime) -> int:
    """What autograd keeps from a forward, beside the parameters themselves."""
    trainer = Trainer(GPT(settings), settings, runtime)
    own = {parameter.untyped_storage().data_ptr() for parameter in trainer.model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    ids = torch.randint(0, settings.vocab_size, (settings.batch_size, settings.block_size + 1))
    with (
        kernels.fast_path(runtime.device),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda it: it),
        runtime.autocast(),
    ):
        trainer._loss(ids)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "shape",
    [
        dict(),
        dict(bias=False, activation="gelu"),
        dict(dropout=0.1),
        dict(attention_dropout=0.1),
        dict(dropout=0.2, attention_dropout=0.2),
        dict(block_size=1024, batch_size=1),
        dict(block_size=1024, batch_size=1, attention_dropout=0.1),
        dict(vocab_size=5000),
    ],
)
def test_activations_are_what_autograd_keeps(shape: dict[str, Any], precision: str) -> None:
    settings = resolve(**{**SMALL, "n_embd": 64, "block_size": 64, "batch_size": 8} | shape)
    memory = estimate.memory(settings, "cpu", precision, settings.batch_size)
    copies = memory.weights - 4 * estimate.parameters(settings)  # of the matrices, kept like activations
    kept = memory.activations + copies + memory.logits / 3  # the two gradients come with the backward
    assert kept == pytest.approx(saved_bytes(settings, Runtime(torch.device("cpu"), precision)), rel=0.02)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_the_optimizers_bytes_are_those_of_its_state(optimizer: str) -> None:
    settings = resolve(**SMALL, optimizer=optimizer)
    trainer = Trainer(GPT(settings), settings, CPU)
    trainer.update(np.zeros((4, 17), dtype=np.int64))
    state = optimizers.state_tensors(trainer.optimizers, trainer.model)
    held = sum(tensor.nbytes for name, tensor in state.items() if not name.startswith("step."))
    assert estimate.memory(settings, "cpu", "fp32", 4).optimizer == held


def test_the_peak_has_gradients_beside_activations_only_where_they_add_up() -> None:
    settings = resolve(**{**SMALL, "batch_size": 64, "block_size": 64})
    whole, cut = (estimate.memory(settings, "cpu", "fp32", rows) for rows in (64, 63))
    assert whole.peak == whole.weights + whole.optimizer + whole.activations + whole.logits + whole.fragmentation
    assert cut.peak == cut.weights + cut.optimizer + cut.gradients + cut.activations + cut.logits + cut.fragmentation
    few = estimate.memory(settings, "cpu", "fp32", 1)
    assert few.peak < cut.peak < whole.peak + whole.gradients
    assert estimate.memory(settings, "cpu", "fp32", 64, program=10**9).peak == whole.peak + 10**9


def test_a_gpu_holds_a_copy_at_16_bits_and_no_scores() -> None:
    settings = resolve(**SMALL)
    P = estimate.parameters(settings)
    gpu, cpu = (estimate.memory(settings, kind, "bf16", 4) for kind in ("cuda", "cpu"))
    assert (gpu.weights, gpu.gradients, gpu.fragmentation) == (6 * P, 6 * P, 0)
    assert gpu.activations < cpu.activations


def test_as_many_sequences_at_once_as_the_formula_says_fit() -> None:
    settings = with_vocabulary("gpt2-512")
    rows = auto_micro_batch(settings, CPU)
    assert rows * sum(estimate.bytes_per_sequence(settings, "cpu", "fp32")) <= CPU.activation_budget
    assert settings.batch_size % rows == 0
    assert auto_micro_batch(with_vocabulary("tiny"), CPU) == 32
    assert auto_micro_batch(with_vocabulary("gpt2-xl"), CPU) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="other allocators leave other gaps")
def test_the_memory_told_before_is_what_the_process_holds_at_its_peak(here: Path) -> None:
    """A few steps of a model whose activations outweigh the program; bench/estimates.py has whole runs."""
    (here / "long.txt").write_text(TEXT * 40, encoding="utf-8")
    shape = ["--n-layer", "4", "--batch-size", "128", "--max-steps", "12", "--eval-every", "12", "--sample-every", "0",
             "--device", "cpu", "--precision", "fp32"]  # fmt: skip

    def octavo(*words: str) -> str:
        command = [sys.executable, "-m", "octavo", *words, "--json"]
        environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
        return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout

    told = json.loads(octavo("estimate", "long.txt", *shape))["memory_bytes"]
    octavo("train", "long.txt", *shape, "--out", "run")
    held = json.loads((here / "run" / "metrics.jsonl").read_text().splitlines()[-1])["memory_bytes"]
    assert told == pytest.approx(held, rel=0.15)


@pytest.mark.skipif(sys.platform != "linux", reason="what it guards against is Linux's")
def test_the_peak_is_this_programs_and_not_its_parents() -> None:
    large = np.ones(1 << 27, dtype=np.uint8)  # held while the child begins
    program = "import torch; from octavo.device import Runtime; print(Runtime(torch.device('cpu')).peak_memory())"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    own = int(done.stdout)
    del large
    alone = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert own == pytest.approx(int(alone.stdout), rel=0.1)
    assert own < CPU.peak_memory()  # type: ignore[operator]


def test_the_machine_tells_what_is_held_and_what_is_free() -> None:
    if sys.platform != "linux":
        pytest.skip("elsewhere the system doesn't tell")
    held, free, there = (ask(CPU.device) for ask in (device.resident_memory, device.free_memory, device.total_memory))
    assert held is not None and free is not None and there is not None  # noqa: PT018
    assert 50e6 < held < there
    assert 0 < free <= there


# Time and money


@pytest.mark.parametrize(
    "given",
    [
        dict(max_steps=7, eval_every=3, sample_every=2),
        dict(max_steps=6, eval_every=3, sample_every=0),
        dict(max_steps=4, eval_every=9, sample_every=9, curriculum_splits=2, curriculum_fraction=0.5),
    ],
)
def test_time_is_reckoned_for_the_evaluations_and_samples_that_a_run_makes(given: dict[str, Any]) -> None:
    planned = training.plan("text.txt", **{**SMALL, **given, "vocab_size": 0}, out="run")
    settings = planned.settings
    events = list(training.events(planned))
    evaluations, samples = (sum(isinstance(event, kind) for event in events)
                            for kind in (training.Evaluated, training.Sampled))  # fmt: skip
    parts = estimate.seconds_by_part(settings, PACE, evaluated=100)
    assert (parts["evaluations"], parts["samples"]) == (evaluations * 1.0, samples * 10.0)
    short = 2 if settings.curriculum_splits > 1 else 0
    assert parts["steps"] == settings.max_steps - 0.5 * short
    assert parts["checkpoints"] > 0


def test_a_pace_keeps_the_time_of_the_step_that_it_comes_from() -> None:
    settings = resolve(**SMALL, curriculum_splits=2)
    assert estimate.timing_from_step(settings, 2.0, settings.block_size).step == pytest.approx(2.0)
    assert estimate.timing_from_step(settings, 2.0, settings.block_size // 2).short_step == pytest.approx(2.0)
    pace = estimate.timing_from_step(settings, 2.0, settings.block_size)
    assert pace.short_step < pace.step
    assert 3 * pace.evaluated_token * 4 * 16 == pytest.approx(2.0)


def test_a_forecast_holds_together() -> None:
    planned = training.plan("text.txt", **{**SMALL, "vocab_size": 0, "max_steps": 20}).settings
    found = training.predict(planned, price_per_hour=36.0)
    data = dataset(planned)
    settings = dataclasses.replace(planned, vocab_size=data.tokenizer.vocab_size)
    assert found.parameters == estimate.parameters(settings) == sum(found.parameters_by_part.values())
    assert found.tokens == 20 * 4 * 16
    assert found.train_tokens == data.info["tokens"]["train"]
    assert found.epochs == pytest.approx(found.tokens / data.info["tokens"]["train"])
    assert found.seconds is not None and found.price is not None  # noqa: PT018
    assert found.seconds == pytest.approx(sum(found.seconds_by_part.values()), abs=0.1)
    assert found.price == pytest.approx(found.seconds / 100, abs=0.01)
    assert found.memory_bytes <= sum(found.memory_by_part.values())
    assert list(Path().iterdir()) == [Path("text.txt")]


def test_a_large_model_is_tried_with_fewer_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    class Watched(GPT):
        def __init__(self, settings: Settings, generator: torch.Generator) -> None:
            tried.append(settings.n_layer)
            super().__init__(settings, generator)

    monkeypatch.setattr(run_estimate, "GPT", Watched)
    settings = resolve(**{**SMALL, "n_layer": 12})
    one = estimate.flops_per_token(dataclasses.replace(settings, n_layer=1)) * settings.block_size
    for bearable in (one / 2, one * 2.5, one * 100):
        monkeypatch.setattr(run_estimate, "MAX_PROBE_FLOPS", bearable)
        found = training.predict(settings, read=False)
        assert found.parameters == estimate.parameters(settings)
    first, second, third = tried
    assert first == 1 < second < 12 == third


def test_what_does_not_fit_is_told_and_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_estimate, "free_memory", lambda device: 1 << 16)
    found = training.predict(resolve(**SMALL), price_per_hour=1.0, read=False)
    assert (found.tokens_per_second, found.seconds, found.price) == (None, None, None)
    assert "training needs about" in found.warnings[0]


# Warnings


def warned(text: str, **given: Any) -> list[str]:
    """The warnings of a run on a text."""
    Path("made.txt").write_text(text, encoding="utf-8")
    return training.predict(training.plan("made.txt", **{**SMALL, "vocab_size": 0} | given).settings).warnings


def test_many_passes_are_warned_of_and_twenty_are_not() -> None:
    tokens = int(0.9 * len(TEXT) * 4)
    steps = 20 * tokens // 64
    assert warned(TEXT * 4, max_steps=steps) == []
    (warning,) = warned(TEXT * 4, max_steps=2 * steps)
    assert warning.startswith("40 passes over the text")
    assert f"--max-steps {steps}" in warning


def test_a_vocabulary_too_large_for_the_text_is_warned_of() -> None:
    (warning,) = warned(TEXT, vocab_size=2000, max_steps=1)
    assert warning.startswith("a vocabulary of 2,000 for 5")
    assert warned(TEXT, vocab_size=100, max_steps=1) == []


@pytest.mark.parametrize("preset", PRESETS)
def test_no_preset_has_too_large_a_vocabulary_for_tiny_shakespeare(preset: str) -> None:
    """Its tokens to train on: 1,003,854 characters, 301,966 by GPT-2's BPE, where a tenth is kept apart."""
    settings = dataclasses.replace(with_vocabulary(preset), max_steps=1)
    tokens = {"gpt2": 301_966, "word": 232_000}.get(settings.tokenizer, 1_003_854)
    settings = dataclasses.replace(settings, vocab_size=8192 if settings.tokenizer == "word" else settings.vocab_size)
    assert [line for line in estimate.warnings(settings, 0, None, tokens) if "vocabulary" in line] == []


def test_documents_shorter_than_a_block_are_warned_of() -> None:
    settings = resolve(**SMALL, max_steps=1)
    assert estimate.warnings(settings, 0, None, 10**6, document_tokens=16.0) == []
    (warning,) = estimate.warnings(settings, 0, None, 10**6, document_tokens=15.0)
    assert warning.startswith("a document has 15 tokens on average")
    assert "--block-size 8" in warning


def test_one_text_is_no_row_of_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset(resolve(source="text.txt"))
    settings, memory = resolve(**SMALL, max_steps=1), estimate.memory(resolve(**SMALL), "cpu", "fp32", 4)

    def told(documents: int) -> list[str]:
        text = data.info["text"] | {"documents": documents}
        return run_estimate.run_warnings(
            settings, CPU, memory, dataclasses.replace(data, info=data.info | {"text": text})
        )

    assert isinstance(data, Dataset)
    assert told(1) == []
    assert "a document has" in told(100)[0]


def test_memory_that_will_not_fit_is_warned_of() -> None:
    settings = resolve(**SMALL)
    assert estimate.warnings(settings, 10**9, 10**9) == []
    assert estimate.warnings(settings, 10**9, None) == []
    assert "1.0 GB, and 500 MB are free" in estimate.warnings(settings, 10**9, 5 * 10**8)[0]


# The run tells the same


def test_a_run_tells_what_it_will_take_before_its_steps_and_the_time_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_estimate, "PROBE_SECONDS", 0.0)
    planned = training.plan("text.txt", **{**SMALL, "vocab_size": 0, "max_steps": 400, "log_every": 50}, out="run")
    events = [event for event in training.events(planned) if not isinstance(event, training.Preparing)]
    started, first = events[0], next(n for n, event in enumerate(events) if isinstance(event, training.Step))
    assert isinstance(started, training.Started)
    assert started.memory_bytes > 0
    assert started.epochs == pytest.approx(400 * 64 / started.train_tokens)
    notices = [event.text for event in events[:first] if isinstance(event, training.Notice)]
    assert any("passes over the text" in text for text in notices)
    (expected,) = (event for event in events if isinstance(event, training.TimeEstimate))
    assert expected.seconds > 0 and expected.tokens_per_second > 0  # noqa: PT018


def test_weights_from_elsewhere_have_learnt_their_vocabulary_there() -> None:
    settings = resolve(**{**SMALL, "vocab_size": 5000}, max_steps=1)
    assert estimate.warnings(settings, 0, None, 1000, fresh=False) == []
    assert len(estimate.warnings(settings, 0, None, 1000)) == 1


# The verb


WORDS = ["--n-layer", "1", "--n-head", "1", "--n-embd", "8", "--block-size", "8", "--batch-size", "2"]
WORDS += ["--max-steps", "4", "--device", "cpu"]


def test_the_verb_answers_in_json_and_writes_nothing_but_the_cache(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["estimate", "text.txt", *WORDS, "--price", "2.5", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said.keys() >= {"parameters", "flops_per_token", "memory_bytes", "tokens_per_second", "seconds", "epochs",
                           "price", "warnings", "parameters_by_part", "memory_by_part"}  # fmt: skip
    assert said["price"] == pytest.approx(said["seconds"] / 3600 * 2.5, abs=1e-3)
    assert list(Path().iterdir()) == [Path("text.txt")]


def test_the_verb_says_which_parameters_and_names_its_formula(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["estimate", "text.txt", *WORDS, "--price", "1", "--vocab-size", "900"]) == 0
    said = capsys.readouterr().out
    assert "wte is the head too" in said
    assert estimate.FLOPS_FORMULA in said
    assert "price " in said
    assert "warning: a vocabulary of 900" in said


def test_gpt2_is_estimated_without_a_text(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_estimate, "measure_timing", lambda *given: PACE)
    monkeypatch.setattr(run_estimate, "preparing", lambda *given: pytest.fail("a text was read"))
    assert cli.main(["estimate", "--preset", "gpt2", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["parameters"] == 124_439_808
    assert (said["epochs"], said["train_tokens"]) == (None, None)


@pytest.mark.parametrize("price", ["-1", "nan", "inf", "cheap"])
def test_a_price_that_is_none_is_told(price: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["estimate", "text.txt", *WORDS, f"--price={price}"]) == 2
    message, hint = capsys.readouterr().err.splitlines()
    assert message.startswith("error: ")
    assert hint.startswith("  try: ")
    if price != "cheap":
        with pytest.raises(OctavoError):
            training.predict(resolve(**SMALL), float(price), read=False)
