"""Training: the events of a run, and the files in its folder."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import octavo
import small_runs
from octavo import checkpoint, training
from octavo.device import resolve_runtime
from octavo.errors import OctavoError
from octavo.settings import TrainingSettings
from octavo.training.setup import set_up
from small_runs import TEXT, events_of, finished_event, run_events


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return small_runs.enter_folder(tmp_path, monkeypatch)


def test_events_are_in_order_and_metrics_are_written() -> None:
    events = run_events(sample_every=6, log_every=2)
    run = finished_event(events).run
    assert isinstance(events[0], training.Started)
    assert [e.step for e in events_of(events, training.Step)] == [1, 2, 4, 6, 8, 10, 12]
    assert [e.step for e in events_of(events, training.Evaluated)] == [4, 8, 12]
    assert [e.step for e in events_of(events, training.Saved)] == [4, 8, 12]
    assert [e.step for e in events_of(events, training.Sampled)] == [6, 12]
    lines = octavo.Run(run).lines("metrics")
    keys = {"step", "tokens", "seconds", "loss", "learning_rate", "grad_norm", "tokens_per_second", "memory_bytes"}
    keys |= {"spikes", "skipped_steps", "rollbacks"}
    for line in lines:
        evaluated = {"train_loss", "val_loss", "bits_per_byte"} if line["step"] in (4, 8, 12) else set()
        assert set(line) == keys | evaluated
        assert line["tokens"] == line["step"] * 6 * 16
    memory = [line["memory_bytes"] for line in lines]
    assert memory == sorted(memory)
    assert 1 << 26 < memory[0] < 1 << 36
    assert [line["step"] for line in octavo.Run(run).lines("samples")] == [6, 12]
    assert (run / "settings.toml").is_file()
    assert octavo.Run(run).settings == events[0].settings


def test_the_reported_validation_loss_is_the_loss_of_the_checkpoint() -> None:
    ended = finished_event(run_events())
    assert octavo.evaluate(ended.checkpoint).loss == ended.val_loss


def test_training_overfits_a_repeated_text() -> None:
    ended = finished_event(run_events(max_steps=250, eval_every=250, n_embd=32))
    assert ended.val_loss is not None
    assert ended.val_loss < 0.3
    assert " brown fox jumps" in octavo.generate(ended.run, "The quick", max_new_tokens=40, temperature=0)[0].text


def test_log_spaced_checkpoints_hold_weights_and_the_last_two_can_resume() -> None:
    run = finished_event(run_events(keep_checkpoints=4)).run
    folders = list(octavo.Run(run).checkpoints.values())
    steps = ["step-000001", "step-000002", "step-000005", "step-000008", "step-000012"]
    assert [path.name for path in folders] == steps
    assert [path.name for path in folders if (path / "trainer.json").exists()] == steps[-2:]
    for path in folders:
        checkpoint.load(path)
    with pytest.raises(OctavoError, match="only weights"):
        run_events(resume=folders[0])


def test_the_best_checkpoint_is_kept_when_later_ones_are_worse() -> None:
    # The longer a model trains on random characters, the larger its validation loss.
    noise = "".join(chr(97 + i) for i in np.random.default_rng(0).integers(0, 26, 600))
    Path("text.txt").write_text(noise, encoding="utf-8")
    ended = finished_event(run_events(max_steps=120, eval_every=10, n_embd=32))
    run = octavo.Run(ended.run)
    assert run.best is not None
    assert run.best != run.last
    evaluations = {line["step"]: line["val_loss"] for line in run.lines("metrics") if "val_loss" in line}
    assert run.best.name == f"step-{min(evaluations, key=evaluations.__getitem__):06d}"
    assert octavo.load(ended.run).folder == run.best


def test_patience_stops_early() -> None:
    noise = "".join(chr(97 + i) for i in np.random.default_rng(0).integers(0, 26, 600))
    Path("text.txt").write_text(noise, encoding="utf-8")
    ended = finished_event(run_events(max_steps=400, eval_every=10, n_embd=32, patience=2))
    assert ended.reason == "patience"
    assert ended.step < 400
    assert octavo.Run(ended.run).last == ended.checkpoint


def test_zero_steps_save_the_initial_weights() -> None:
    ended = finished_event(run_events(max_steps=0))
    assert ended.step == 0
    assert octavo.load(ended.run).model.settings.n_layer == 2


def test_an_error_before_training_leaves_no_run_folder(folder: Path) -> None:
    Path("text.txt").write_text("A short text. ", encoding="utf-8")
    with pytest.raises(OctavoError, match="a sequence needs"):
        run_events()
    assert not (folder / "runs").exists()


# Settings that depend on the text


@pytest.mark.parametrize(("characters", "steps"), [(100, 100), (1000, 100), (4000, 300), (20_000, 1000)])
def test_a_small_text_caps_the_steps_with_a_notice(characters: int, steps: int) -> None:
    Path("text.txt").write_text((TEXT * 10)[:characters], encoding="utf-8")
    shape = dict(n_layer=1, n_head=1, n_embd=2, block_size=8, batch_size=12, device="cpu")
    setup = set_up(training.plan("text.txt", **shape)).result
    assert setup.settings.max_steps == steps
    is_small = characters == 100  # 100 steps are more than 20 epochs
    assert setup.settings.eval_every == (10 if is_small else min(250, steps // 4))
    assert setup.settings.patience == (2 if is_small else 0)
    assert (steps == 1000) == (not setup.notices)
    epochs = steps * 8 * 12 / setup.data.info["tokens"]["train"]
    assert all(f"{steps} steps" in each and f"{epochs:,.1f} epochs" in each for each in setup.notices)


def test_explicit_steps_are_not_capped() -> None:
    for changes in ({"max_steps": 5000}, {"preset": "nanogpt-tiny"}, {"max_epochs": 0}):
        planned = training.plan("text.txt", **{"block_size": 8, "device": "cpu", **changes})
        assert set_up(planned).result.settings.max_steps == planned.settings.max_steps


# Devices


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"device": "tpu9"}, "no device"), ({"device": "cuda:99"}, "no device"), ({"precision": "fp16"}, "fp16")],
)
def test_an_unavailable_device_or_precision_is_an_error(settings: dict, message: str) -> None:
    with pytest.raises(OctavoError, match=message):
        resolve_runtime(dataclasses.replace(TrainingSettings(device="cpu"), **settings))


def test_auto_precision_is_bf16_only_on_a_cpu_with_native_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    for capabilities, expected in (({"avx512_bf16": True}, "bf16"), ({"avx2": True}, "fp32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda capabilities=capabilities: capabilities)
        runtime = resolve_runtime(TrainingSettings(device="cpu"))
        assert runtime.precision == expected
        assert bool(runtime.notices) == (expected == "bf16")


# Scripts other than Latin


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe:600"])
@pytest.mark.filterwarnings("ignore::octavo.errors.OctavoWarning")  # which files were read
def test_samples_of_arabic_and_hindi_have_whole_characters(tokenizer: str, shared: Path) -> None:
    changes = dict(tokenizer=tokenizer, block_size=32, n_embd=64, max_steps=150, eval_every=150)
    ended = finished_event(run_events(source=str(shared / "notes"), **changes))
    for prompt in ("التضمين", "एम्बेडिंग"):
        texts = [each.text for each in octavo.generate(ended.run, prompt, max_new_tokens=200, num_samples=5)]
        assert "\ufffd" not in "".join(texts)
        assert any("\u0600" <= c <= "\u06ff" or "\u0900" <= c <= "\u097f" for c in "".join(texts))


# Start-up


def test_training_does_not_import_torch_compile() -> None:
    """The import would take 0.9 s."""
    script = (
        "import octavo, sys; octavo.train('text.txt', max_steps=1, n_embd=8, n_head=1, device='cpu'); "
        "print([name for name in sys.modules if name.startswith(('torch._dynamo', 'torch._inductor'))])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip().endswith("[]")
