"""An estimate equals what a run needs: parameters and FLOPs exactly, memory closely.

How long a run takes is not tested, only how its time is computed from measurements.
"""

import dataclasses
import io
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
from octavo.data.dataset import Dataset
from octavo.data.prepare import prepare_dataset
from octavo.device import Runtime
from octavo.errors import OctavoError
from octavo.estimate import Timing
from octavo.loss import next_token_loss
from octavo.model import GPT
from octavo.runs import Run
from octavo.settings import PRESETS, Settings, resolve
from octavo.training import optimizers, run_estimate
from octavo.training.plan import Plan
from octavo.training.run_estimate import RunEstimate, probe_layers
from octavo.training.step import Trainer, auto_micro_batch
from octavo.weights import meta_model

pytestmark = pytest.mark.usefixtures("short_probe")
CPU = Runtime(torch.device("cpu"))
TEXT = "the cat sat on the mat, and the rat sat on the hat.\n" * 12
SMALL = dict(n_layer=2, n_head=2, n_embd=32, block_size=16, batch_size=4, vocab_size=40, device="cpu")
TIMING = Timing(step=1.0, short_step=0.5, evaluated_token=0.01, sample=10.0)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a folder with a small text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


def resolve_with_vocabulary(preset: str) -> Settings:
    """A preset with GPT-2's vocabulary size, or that of tiny Shakespeare's characters."""
    settings = resolve(preset)
    return dataclasses.replace(settings, vocab_size=50257 if settings.tokenizer == "gpt2" else 65)


def estimate_quickly(plan: Plan | Settings, price_per_hour: float | None = None, **options: Any) -> RunEstimate:
    """The estimate with a very short probe."""
    plan = plan if isinstance(plan, Plan) else Plan(plan)
    return training.estimate_run(plan, price_per_hour, **{"probe_seconds": 0.02} | options).result


# Parameters and FLOPs


@pytest.mark.parametrize("preset", PRESETS)
def test_parameters_equal_the_models_part_by_part(preset: str) -> None:
    settings = resolve_with_vocabulary(preset)
    counts = dict.fromkeys(["wte", "wpe", "attention", "mlp", "norms"], 0)
    parts = {"wte.": "wte", "wpe.": "wpe", ".attn.": "attention", ".mlp.": "mlp", "ln_": "norms"}
    for name, parameter in meta_model(settings).named_parameters():
        counts[next(part for mark, part in parts.items() if mark in name)] += parameter.numel()
    assert estimate.parameters_by_part(settings) == counts
    assert estimate.parameters(settings) == sum(counts.values())


@pytest.mark.parametrize(
    "shape",
    [
        dict(preset="tiny", vocab_size=65),
        dict(preset="baby", vocab_size=65, dropout=0.0),
        dict(preset="gpt2", n_layer=2, n_head=3, n_embd=96, vocab_size=5000),
        dict(n_layer=1, n_head=1, n_embd=8, block_size=256, vocab_size=3, bias=False),
    ],
)
def test_flops_equal_pytorchs_count(shape: dict[str, Any]) -> None:
    settings = resolve(**shape)
    ids = torch.randint(0, settings.vocab_size, (2, settings.block_size + 1))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        next_token_loss(GPT(settings)(ids[:, :-1]), ids[:, 1:]).backward()
    counted = counter.get_total_flops() / (2 * settings.block_size)
    assert estimate.flops_per_token(settings) == pytest.approx(counted, rel=0.02)
    assert estimate.flops_per_token(settings) == 3 * estimate.forward_flops_per_token(settings)


# Memory


def saved_bytes(settings: Settings, runtime: Runtime) -> int:
    """Bytes that autograd saves in a forward pass, without the parameters."""
    trainer = Trainer(GPT(settings), settings, runtime)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in trainer.model.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage
        return tensor

    ids = torch.randint(0, settings.vocab_size, (settings.batch_size, settings.block_size + 1))
    hooks = torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor)
    with kernels.fast_path(runtime.device), hooks, runtime.autocast():
        next_token_loss(trainer.model(ids[:, :-1]), ids[:, 1:])
    return sum(storage.nbytes() for storage in saved.values())


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
        dict(vocab_size=5000, checkpoint_activations=True),
        dict(vocab_size=5000, dropout=0.2, attention_dropout=0.2, checkpoint_activations=True),
    ],
)
def test_activations_equal_what_autograd_saves(shape: dict[str, Any], precision: str) -> None:
    settings = resolve(**{**SMALL, "n_embd": 64, "block_size": 64, "batch_size": 8} | shape)
    memory = estimate.memory(settings, "cpu", precision, settings.batch_size, has_fused_step=False)
    copies = memory.weights - 4 * estimate.parameters(settings)  # autocast's, which autograd saves like activations
    if settings.checkpoint_activations and precision == "bf16":  # those of a block exist only while it computes
        copies -= 2 * 12 * settings.n_embd**2
    saved = memory.activations + copies + memory.logits / 3  # two thirds are allocated in the backward pass
    assert saved == pytest.approx(saved_bytes(settings, Runtime(torch.device("cpu"), precision)), rel=0.02)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_optimizer_bytes_equal_its_state(optimizer: str) -> None:
    settings = resolve(**SMALL, optimizer=optimizer)
    trainer = Trainer(GPT(settings), settings, CPU)
    trainer.update(np.zeros((4, 17), dtype=np.int64))
    state = optimizers.state_tensors(trainer.optimizers, trainer.layout)
    size = sum(tensor.nbytes for name, tensor in state.items() if not name.startswith("step."))
    assert estimate.memory(settings, "cpu", "fp32", 4).optimizer == size


def test_peak_counts_gradients_beside_activations_only_with_gradient_accumulation() -> None:
    settings = resolve(**{**SMALL, "batch_size": 64, "block_size": 64})
    full, split = (estimate.memory(settings, "cpu", "fp32", rows, has_fused_step=False) for rows in (64, 63))
    kept = full.weights + full.optimizer + full.checkpoint
    assert full.peak == kept + full.activations + full.logits + full.fragmentation
    assert split.peak == kept + split.gradients + split.activations + split.logits + split.fragmentation
    smallest = estimate.memory(settings, "cpu", "fp32", 1, has_fused_step=False)
    assert smallest.peak < split.peak < full.peak + full.gradients
    with_program = estimate.memory(settings, "cpu", "fp32", 64, program=10**9, has_fused_step=False)
    assert with_program.peak == full.peak + 10**9


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "shape", [dict(), dict(dropout=0.1), dict(block_size=192), dict(vocab_size=5000), dict(n_layer=1, n_head=1)]
)
def test_activations_and_logits_equal_the_buffers_of_the_c_code(shape: dict[str, Any], precision: str) -> None:
    settings = resolve(**{**SMALL, "n_embd": 64, "block_size": 64, "batch_size": 8, "weight_decay": 0.0} | shape)
    memory = estimate.memory(settings, "cpu", precision, settings.batch_size)
    trainer = Trainer(GPT(settings), settings, Runtime(torch.device("cpu"), precision))
    trainer.update(np.zeros((8, settings.block_size + 1), dtype=np.int64))
    assert trainer.fused_step is not None
    sums = ("sums", "weight_parts")  # of chunks of rows: more than activations only in models as small as these
    memory_by_name = trainer.fused_step.memory
    allocated = sum(tensor.nbytes for name, tensor in memory_by_name.items() if not name.endswith(sums))
    assert memory.activations + memory.logits == pytest.approx(allocated, rel=0.01)
    assert memory.peak > memory.weights + memory.gradients + memory.activations + memory.logits


def test_a_gpu_has_a_16_bit_copy_of_weights_and_no_attention_scores() -> None:
    settings = resolve(**SMALL)
    P = estimate.parameters(settings)
    gpu, cpu = (estimate.memory(settings, kind, "bf16", 4) for kind in ("cuda", "cpu"))
    assert (gpu.weights, gpu.gradients, gpu.fragmentation) == (6 * P, 6 * P, 0)
    assert gpu.activations < cpu.activations


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_the_copy_for_a_checkpoint_is_the_weights_the_state_and_the_transposed_matrices(optimizer: str) -> None:
    settings = resolve(**SMALL, optimizer=optimizer)
    memory = estimate.memory(settings, "cpu", "fp32", 4)
    transposed = sum(p.nbytes for name, p in GPT(settings).named_parameters() if ".h." in name and p.dim() == 2)
    assert memory.checkpoint == memory.weights + memory.optimizer + transposed
    assert estimate.memory(settings, "cuda", "fp32", 4).checkpoint == 0  # it is not in the GPU's memory


@pytest.mark.parametrize("changes", [{}, {"optimizer": "adamw", "keep_checkpoints": 0}, {"keep_checkpoints": 3}])
def test_the_disk_of_an_estimate_suffices_for_the_run(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured before each removal, with the third checkpoint that has the trainer's state."""
    settings = {**SMALL, "vocab_size": 0, "n_embd": 64, "max_steps": 12, "eval_every": 3} | changes
    used = [0]
    remove_old = Run._remove_old

    def measure(run: Run, *arguments: Any) -> None:
        files = run.folder.rglob("*.safetensors")
        used.append(sum(path.stat().st_size for path in files))
        remove_old(run, *arguments)

    monkeypatch.setattr(Run, "_remove_old", measure)
    *_, finished = training.events(training.plan("text.txt", **settings))
    estimated = estimate.disk_bytes(Run(finished.run).settings)
    assert 0.6 * estimated < max(used) < 1.1 * estimated  # headers are a tenth of such small files


def test_too_little_free_disk_gives_a_warning() -> None:
    settings = resolve(**SMALL)
    assert estimate.warnings(settings, 0, None, free_disk_bytes=10**9) == []
    (warning,) = estimate.warnings(settings, 0, None, free_disk_bytes=1000)
    assert "of disk" in warning


def test_auto_micro_batch_fits_the_activation_budget() -> None:
    settings = resolve_with_vocabulary("gpt2-512")
    rows = auto_micro_batch(settings, CPU)
    assert rows * sum(estimate.bytes_per_sequence(settings, "cpu", "fp32")) <= CPU.activation_budget
    assert settings.batch_size % rows == 0
    assert auto_micro_batch(resolve_with_vocabulary("tiny"), CPU) == 32
    assert auto_micro_batch(resolve_with_vocabulary("gpt2-xl"), CPU) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="other allocators fragment differently")
@pytest.mark.usefixtures("built_cache")
def test_estimated_memory_is_the_peak_of_the_process(folder: Path) -> None:
    """A few steps of a model whose activations are larger than the program; bench/estimates.py compares whole runs."""
    (folder / "long.txt").write_text(TEXT * 40, encoding="utf-8")
    shape = dict(n_layer=4, batch_size=128, max_steps=3, eval_every=3, sample_every=0, device="cpu", precision="fp32")
    program = f"""
import json
from octavo import training
events = list(training.events(training.plan("long.txt", out="run", **{shape})))
print(json.dumps([event.memory_bytes for event in events if isinstance(event, (training.Started, training.Step))]))
"""
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, env=environment)
    estimated, *peaks = json.loads(done.stdout)
    assert estimated == pytest.approx(peaks[-1], rel=0.15)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no getrusage")
def test_peak_memory_is_known_if_the_kernel_does_not_report_vmhwm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "open", lambda *_, **__: io.StringIO("Name:\tpython\nVmRSS:\t1 kB\n"), raising=False)
    assert CPU.peak_memory() > 1 << 20  # type: ignore[operator]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's getrusage would include the parent")
def test_peak_memory_does_not_include_a_large_parent_process() -> None:
    large = np.ones(1 << 27, dtype=np.uint8)  # allocated while the child starts
    program = (
        "import torch; from octavo.device import Runtime, resident_memory; device = torch.device('cpu'); "
        "print(Runtime(device).peak_memory(), resident_memory(device))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    peak, resident = map(int, done.stdout.split())
    assert peak == pytest.approx(resident, rel=0.1)
    assert peak + large.nbytes < CPU.peak_memory()  # type: ignore[operator]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not report it")
def test_resident_free_and_total_memory_are_plausible() -> None:
    resident = device.resident_memory(CPU.device)
    free = device.free_memory(CPU.device)
    total = device.total_memory(CPU.device)
    assert resident is not None
    assert free is not None
    assert total is not None
    assert 50e6 < resident < total
    assert 0 < free <= total


# Time and price


@pytest.mark.parametrize(
    "changes",
    [
        dict(max_steps=7, eval_every=3, sample_every=2),
        dict(max_steps=6, eval_every=3, sample_every=0),
        dict(max_steps=4, eval_every=9, sample_every=9, curriculum_splits=2, curriculum_fraction=0.5),
    ],
)
def test_time_counts_the_evaluations_and_samples_of_a_run(changes: dict[str, Any]) -> None:
    plan = training.plan("text.txt", **{**SMALL, **changes, "vocab_size": 0}, out="run")
    events = list(training.events(plan))
    evaluations, samples = (
        sum(isinstance(event, kind) for event in events) for kind in (training.Evaluated, training.Sampled)
    )
    seconds = estimate.seconds_by_part(plan.settings, TIMING, tokens_per_evaluation=100)
    assert (seconds["evaluations"], seconds["samples"]) == (evaluations * 1.0, samples * 10.0)
    short_steps = 2 if plan.settings.curriculum_splits > 1 else 0
    assert seconds["steps"] == plan.settings.max_steps - 0.5 * short_steps
    assert seconds["checkpoints"] > 0


def test_timing_from_a_step_reproduces_that_step() -> None:
    settings = resolve(**SMALL, curriculum_splits=2)
    assert estimate.timing_from_step(settings, 2.0, settings.block_size).step == pytest.approx(2.0)
    assert estimate.timing_from_step(settings, 2.0, settings.block_size // 2).short_step == pytest.approx(2.0)
    timing = estimate.timing_from_step(settings, 2.0, settings.block_size)
    assert timing.short_step < timing.step
    assert 3 * timing.evaluated_token * 4 * 16 == pytest.approx(2.0)


def test_the_numbers_of_an_estimate_are_consistent() -> None:
    plan = training.plan("text.txt", **{**SMALL, "vocab_size": 0, "max_steps": 20})
    result = estimate_quickly(plan, price_per_hour=36.0)
    data = prepare_dataset(plan.settings).result
    settings = dataclasses.replace(plan.settings, vocab_size=data.tokenizer.vocab_size)
    assert result.parameters == estimate.parameters(settings) == sum(result.parameters_by_part.values())
    assert result.tokens == 20 * 4 * 16
    assert result.train_tokens == data.info["tokens"]["train"]
    assert result.epochs == pytest.approx(result.tokens / data.info["tokens"]["train"])
    assert result.seconds is not None
    assert result.price is not None
    assert result.seconds == pytest.approx(sum(result.seconds_by_part.values()), abs=0.1)
    assert result.price == pytest.approx(result.seconds / 100, abs=0.01)
    assert result.memory_bytes <= sum(result.memory_by_part.values())
    assert list(Path().iterdir()) == [Path("text.txt")]


def test_a_large_model_is_probed_with_fewer_layers() -> None:
    settings = resolve(**{**SMALL, "n_layer": 12})
    one_layer = estimate.flops_per_token(dataclasses.replace(settings, n_layer=1)) * settings.block_size
    assert probe_layers(settings, one_layer / 2) == 1
    assert 1 < probe_layers(settings, one_layer * 2.5) < 12
    assert probe_layers(settings, one_layer * 100) == 12
    result = estimate_quickly(settings, prepare_text=False, max_probe_flops=one_layer / 2)
    assert result.parameters == estimate.parameters(settings)
    assert result.seconds is not None


def test_a_model_that_does_not_fit_is_not_probed() -> None:
    result = estimate_quickly(resolve(**SMALL), price_per_hour=1.0, prepare_text=False, free_bytes=1 << 16)
    assert (result.tokens_per_second, result.seconds, result.price) == (None, None, None)
    assert "training needs about" in result.warnings[0]


def test_an_estimate_without_a_text_has_no_epochs() -> None:
    settings = resolve("gpt2", source="missing.txt")
    result = estimate_quickly(settings, prepare_text=False, timing=TIMING)
    assert result.parameters == 124_439_808
    assert (result.epochs, result.train_tokens) == (None, None)


def test_only_a_new_run_can_be_estimated() -> None:
    with pytest.raises(OctavoError, match="init"):
        estimate_quickly(Plan(resolve(**SMALL), init="runs/other"))


@pytest.mark.parametrize("price", [-1.0, float("nan"), float("inf")])
def test_a_price_must_be_finite_and_positive(price: float) -> None:
    with pytest.raises(OctavoError, match="price"):
        estimate_quickly(resolve(**SMALL), price, prepare_text=False)


# Warnings


def warnings_for(text: str, **changes: Any) -> list[str]:
    """The warnings of a run on this text."""
    Path("other.txt").write_text(text, encoding="utf-8")
    return estimate_quickly(training.plan("other.txt", **{**SMALL, "vocab_size": 0} | changes), timing=TIMING).warnings


def test_more_than_20_epochs_give_a_warning() -> None:
    tokens = int(0.9 * len(TEXT) * 4)
    steps = 20 * tokens // 64
    assert warnings_for(TEXT * 4, max_steps=steps) == []
    (warning,) = warnings_for(TEXT * 4, max_steps=2 * steps)
    assert "40 epochs" in warning
    assert f"--max-steps {steps}" in warning


def test_a_vocabulary_too_large_for_the_text_gives_a_warning() -> None:
    (warning,) = warnings_for(TEXT, vocab_size=2000, max_steps=1)
    assert "vocabulary of 2,000" in warning
    assert warnings_for(TEXT, vocab_size=100, max_steps=1) == []


@pytest.mark.parametrize("preset", PRESETS)
def test_no_presets_vocabulary_is_too_large_for_tiny_shakespeare(preset: str) -> None:
    """Its training split, nine tenths, has 1,003,854 characters; 301,966 tokens of GPT-2's BPE."""
    settings = dataclasses.replace(resolve_with_vocabulary(preset), max_steps=1)
    tokens = {"gpt2": 301_966, "word": 232_000}.get(settings.tokenizer, 1_003_854)
    settings = dataclasses.replace(settings, vocab_size=8192 if settings.tokenizer == "word" else settings.vocab_size)
    assert [line for line in estimate.warnings(settings, 0, None, tokens) if "vocabulary" in line] == []


def test_documents_shorter_than_a_sequence_give_a_warning() -> None:
    settings = resolve(**SMALL, max_steps=1)
    assert estimate.warnings(settings, 0, None, 10**6, mean_document_tokens=16.0) == []
    (warning,) = estimate.warnings(settings, 0, None, 10**6, mean_document_tokens=15.0)
    assert "15 tokens on average" in warning
    assert "--block-size 8" in warning


def test_a_single_text_gives_no_warning_about_short_documents() -> None:
    data = prepare_dataset(resolve(source="text.txt")).result
    settings, memory = resolve(**SMALL, max_steps=1), estimate.memory(resolve(**SMALL), "cpu", "fp32", 4)

    def warnings_with(documents: int) -> list[str]:
        info = data.info | {"text": data.info["text"] | {"documents": documents}}
        return run_estimate.run_warnings(settings, CPU, memory, dataclasses.replace(data, info=info))

    assert isinstance(data, Dataset)
    assert warnings_with(1) == []
    assert "tokens on average" in warnings_with(100)[0]


def test_too_little_free_memory_gives_a_warning() -> None:
    settings = resolve(**SMALL)
    assert estimate.warnings(settings, 10**9, 10**9) == []
    assert estimate.warnings(settings, 10**9, None) == []
    (warning,) = estimate.warnings(settings, 10**9, 5 * 10**8)
    assert "1.0 GB" in warning
    assert "500 MB" in warning


def test_the_vocabulary_of_a_fine_tuned_model_gives_no_warning() -> None:
    settings = resolve(**{**SMALL, "vocab_size": 5000}, max_steps=1)
    assert estimate.warnings(settings, 0, None, 1000, new_model=False) == []
    assert len(estimate.warnings(settings, 0, None, 1000)) == 1


@pytest.mark.parametrize(("compile", "seconds"), [(False, 30.0), (True, 1.0)])
def test_the_probe_does_not_count_compilation(compile: bool, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(run_estimate.time, "perf_counter", lambda: now[0])

    def take_time() -> None:
        now[0] += 1.0 if now[0] else 30.0

    assert run_estimate._mean_seconds(Runtime(torch.device("cpu"), "fp32", compile), 2.0, take_time) == [seconds]


@pytest.mark.parametrize(("batch_size", "rows"), [(480, 96), (479, 96), (512, 64), (7, 7)])
def test_compiled_micro_batches_are_equal_if_the_batch_can_be_divided(
    batch_size: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = resolve(**{**SMALL, "batch_size": batch_size})
    budget = 100 * sum(estimate.bytes_per_sequence(settings, "cpu", "fp32"))
    monkeypatch.setattr(Runtime, "activation_budget", budget)
    assert auto_micro_batch(settings, Runtime(torch.device("cpu"), "fp32", True)) == rows


# A run reports the same numbers


def test_a_run_reports_memory_and_warnings_at_its_start_and_its_time_once() -> None:
    settings = {**SMALL, "vocab_size": 0, "max_steps": 200, "log_every": 50, "eval_every": 200, "sample_every": 0}
    plan = training.plan("text.txt", **settings, out="run")
    every_event = training.events(plan, estimate_after=0.0)
    events = [event for event in every_event if not isinstance(event, training.PreparationProgress)]
    started, first = events[0], next(n for n, event in enumerate(events) if isinstance(event, training.Step))
    assert isinstance(started, training.Started)
    assert started.memory_bytes > 0
    assert started.epochs == pytest.approx(200 * 64 / started.train_tokens)
    notices = [event.text for event in events[:first] if isinstance(event, training.Notice)]
    assert any("epochs" in text for text in notices)
    (time_estimate,) = (event for event in events if isinstance(event, training.TimeEstimate))
    assert time_estimate.seconds > 0
    assert time_estimate.tokens_per_second > 0


# The command line

TINY = ["--n-layer=1", "--n-head=1", "--n-embd=8", "--block-size=8", "--batch-size=2", "--max-steps=4", "--device=cpu"]


def test_json_output_has_every_number_and_only_the_cache_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["estimate", "text.txt", *TINY, "--price", "2.5", "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert output.keys() == {field.name for field in dataclasses.fields(RunEstimate)}
    assert output["price"] == pytest.approx(output["seconds"] / 3600 * 2.5, abs=1e-3)
    assert list(Path().iterdir()) == [Path("text.txt")]


def test_text_output_names_the_formula_the_price_and_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["estimate", "text.txt", *TINY, "--price", "1", "--vocab-size", "900"]) == 0
    output = capsys.readouterr().out
    assert "wte" in output
    assert estimate.FLOPS_FORMULA in output
    assert "price " in output
    assert "warning: a vocabulary of 900" in output


def test_a_preset_with_gpt2s_vocabulary_needs_no_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["estimate", "--preset", "gpt2", *TINY, "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    settings = resolve("gpt2", n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=50257)
    assert output["parameters"] == estimate.parameters(settings)
    assert (output["epochs"], output["train_tokens"]) == (None, None)


@pytest.mark.parametrize("price", ["-1", "nan", "inf", "cheap"])
def test_an_invalid_price_is_an_error_with_a_hint(price: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["estimate", "text.txt", *TINY, f"--price={price}"]) == 2
    message, hint = capsys.readouterr().err.splitlines()
    assert message.startswith("error: ")
    assert hint.startswith("  try: ")
