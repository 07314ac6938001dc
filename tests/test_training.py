"""Training: a run is a pure function of settings and text, and nothing of it is ever lost."""

import dataclasses
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._inductor.exc import InductorError

import octavo
from octavo import checkpoint, training
from octavo.data.build import result
from octavo.device import Runtime, resolve_runtime
from octavo.errors import OctavoError
from octavo.model import GPT
from octavo.settings import Settings, TrainingSettings, resolve
from octavo.training import optimizers, schedule
from octavo.training.setup import set_up
from octavo.training.step import Trainer

TEXT = "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs! " * 40
SMALL = dict(
    n_layer=2, n_head=2, n_embd=16, block_size=16, batch_size=6, max_steps=12, warmup_steps=2, eval_every=4,
    sample_every=0, log_every=1, learning_rate=1e-2, device="cpu", precision="fp32",
)  # fmt: skip
RECIPE = {name: value for name, value in SMALL.items() if name not in ("n_layer", "n_head", "n_embd")}
CPU = Runtime(torch.device("cpu"))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with a small text, `text.txt`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


def run_events(stop_after: int | None = None, resume: Path | None = None, **changes: object) -> list[training.Event]:
    """All events of a small run, stopped after a step, or of resuming one."""
    planned = training.plan(**({"resume": resume} if resume else {"source": "text.txt", **SMALL}) | changes)
    seen: list[training.Event] = []
    asked = iter(range(1, 10**6))

    def stop() -> bool:
        return next(asked) == stop_after

    seen.extend(training.events(planned, stop=stop))
    return seen


def weights(run: Path) -> dict[str, torch.Tensor]:
    last = octavo.Run(run).last
    assert last is not None
    return dict(checkpoint.load(last).model.state_dict())


def losses(run: Path) -> list[tuple[int, float, float | None]]:
    return [(line["step"], line["loss"], line.get("val_loss")) for line in octavo.Run(run).lines("metrics")]


def finished(events: list[training.Event]) -> training.Finished:
    last = events[-1]
    assert isinstance(last, training.Finished)
    return last


def found(events: list[training.Event], kind: type) -> list:
    return [event for event in events if isinstance(event, kind)]


# Resuming


@pytest.mark.parametrize("stop_after", [1, 4, 7, 11])
@pytest.mark.parametrize("changes", [
    {},
    {"dropout": 0.2, "attention_dropout": 0.1, "micro_batch": 4},
    {"precision": "bf16", "schedule": "wsd", "bias": False},
    {"optimizer": "adamw", "weight_init": "noise"},
    {"curriculum_splits": 4, "curriculum_fraction": 0.7},
    {"curriculum_splits": 2, "dropout": 0.1, "micro_batch": 2},
], ids=["plain", "dropout", "bf16", "adamw", "short", "short-dropout"])  # fmt: skip
def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped(stop_after: int, changes: dict) -> None:
    straight = finished(run_events(**changes)).run
    stopped = finished(run_events(stop_after, **changes))
    assert (stopped.reason, stopped.step) == ("stopped", stop_after)
    resumed = finished(run_events(resume=stopped.run))
    assert (resumed.reason, resumed.step) == ("done", 12)
    assert losses(resumed.run) == losses(straight)
    for name, value in weights(straight).items():
        assert torch.equal(value, weights(resumed.run)[name]), name


def test_another_seed_gives_other_bits() -> None:
    one, other = (finished(run_events(seed=seed)).run for seed in (1, 2))
    assert losses(one) != losses(other)


def test_a_run_killed_between_checkpoints_goes_on_from_the_last_one() -> None:
    straight = finished(run_events()).run
    events = training.events(training.plan("text.txt", **SMALL))
    for event in events:
        if isinstance(event, training.Step) and event.step == 10:
            break
    events.close()  # as if the process had died: the checkpoint of step 8 is the last
    killed = Path("runs/text-2")
    assert octavo.Run(killed).last == killed / "checkpoints" / "step-000008"
    resumed = finished(run_events(resume=killed))
    assert losses(resumed.run) == losses(straight)


def test_resuming_trains_longer_when_told() -> None:
    first = finished(run_events())
    longer = finished(run_events(resume=first.run, max_steps=16))
    assert longer.step == 16
    assert [step for step, _, _ in losses(longer.run)] == list(range(1, 17))


def test_what_was_changed_when_a_run_was_resumed_stays_changed_when_it_is_resumed_again() -> None:
    straight = finished(run_events(max_steps=20, learning_rate=3e-3)).run
    first = finished(run_events(max_steps=12, learning_rate=3e-3, stop_after=4))
    longer = finished(run_events(stop_after=5, resume=first.run, max_steps=20))
    assert (longer.reason, longer.step) == ("stopped", 9)
    again = finished(run_events(resume=first.run))
    assert (again.reason, again.step) == ("done", 20)
    assert octavo.Run(first.run).settings == octavo.Run(straight).settings


def test_resuming_longer_keeps_what_was_kept_along_the_way() -> None:
    first = finished(run_events(keep_checkpoints=4))
    kept = [path.name for path in octavo.Run(first.run).steps.values()][:-1]
    finished(run_events(resume=first.run, max_steps=40))
    assert set(kept) <= {path.name for path in octavo.Run(first.run).steps.values()}


def test_resuming_with_other_data_is_refused(folder: Path) -> None:
    run = finished(run_events(stop_after=4)).run
    (folder / "other.txt").write_text(TEXT.upper(), encoding="utf-8")
    with pytest.raises(OctavoError, match="not the text that this run was trained on"):
        run_events(resume=run, source="other.txt")


def test_resuming_uses_the_prepared_text_when_the_file_has_gone(folder: Path) -> None:
    run = finished(run_events(stop_after=4)).run
    (folder / "text.txt").unlink()
    assert finished(run_events(resume=run)).step == 12


@pytest.mark.parametrize("change", [{"n_layer": 3}, {"tokenizer": "byte"}, {"block_size": 8}, {"val_fraction": 0.2}])
def test_what_the_weights_or_tokens_depend_on_can_not_change_on_the_way(change: dict) -> None:
    run = finished(run_events(stop_after=4)).run
    with pytest.raises(OctavoError, match=next(iter(change))):
        run_events(resume=run, **change)


# The update


def batch_of(settings: Settings, rows: int = 6) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 20, (rows, settings.block_size + 1))


def trainer(**changes: object) -> Trainer:
    settings = resolve(**{**SMALL, "vocab_size": 20, **changes})
    return Trainer(GPT(settings, torch.Generator().manual_seed(0)), settings, CPU)


@pytest.mark.parametrize("micro_batch", [1, 2, 4, 5])
def test_the_micro_batch_does_not_change_the_update(micro_batch: int) -> None:
    whole, cut = trainer(), trainer(micro_batch=micro_batch)
    batch = batch_of(whole.settings)
    for _ in range(3):
        (loss, norm), (cut_loss, cut_norm) = whole.update(batch), cut.update(batch)
        torch.testing.assert_close(cut_loss, loss, atol=1e-5, rtol=0)
        torch.testing.assert_close(cut_norm, norm, atol=1e-4, rtol=0)


def test_dropout_depends_on_seed_step_and_rows_and_on_nothing_that_came_before() -> None:
    first, second = trainer(dropout=0.5), trainer(dropout=0.5)
    torch.manual_seed(123)
    torch.rand(7)
    batch = batch_of(first.settings)
    assert first.update(batch)[0] == second.update(batch)[0]
    other = trainer(dropout=0.5, seed=2)
    assert other.update(batch)[0] != trainer(dropout=0.5).update(batch)[0]


def test_gradients_are_clipped_to_the_norm_that_is_asked_for() -> None:
    free, clipped = trainer(grad_clip=0.0, optimizer="adamw"), trainer(grad_clip=0.1, optimizer="adamw")
    batch = batch_of(free.settings)
    seen: list[float] = []
    for each in (free, clipped):
        (adamw,) = each.optimizers
        step = adamw.step

        def watched(*args: object, each: Trainer = each, step: Callable = step, **kwargs: object) -> object:
            gradients = [p.grad.flatten() for p in each.model.parameters() if p.grad is not None]
            seen.append(torch.cat(gradients).norm().item())
            return step(*args, **kwargs)

        adamw.step = watched
        _, norm = each.update(batch)
        assert norm.item() > 0.1
    assert seen[0] > 0.1
    assert seen[1] == pytest.approx(0.1, rel=1e-3)


def test_only_matrices_decay() -> None:
    model = GPT(resolve(**SMALL, vocab_size=20))
    (optimizer,) = optimizers.build_optimizers(model, resolve(weight_decay=0.3, optimizer="adamw"))
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in decayed) == (parameter.dim() >= 2), name
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.3, 0.0}


def test_out_of_memory_halves_the_micro_batch_says_so_and_changes_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, short = trainer(), trainer()
    batch = batch_of(plain.settings)
    forward = short._forward

    def needy(ids: torch.Tensor, start: int) -> torch.Tensor:
        if len(ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(ids, start)

    monkeypatch.setattr(short, "_forward", needy)
    torch.testing.assert_close(short.update(batch)[0], plain.update(batch)[0], atol=1e-5, rtol=0)
    assert short.micro_batch == 1
    assert [notice for notice in short.notices if "out of memory" in notice]


def test_a_sequence_that_does_not_fit_is_an_error_that_says_what_to_shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    hopeless = trainer()

    def refuse(ids: torch.Tensor, start: int) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(hopeless, "_forward", refuse)
    with pytest.raises(OctavoError, match="does not fit into the memory") as caught:
        hopeless.update(batch_of(hopeless.settings))
    assert "--block-size" in str(caught.value)


def test_other_errors_under_torch_compile_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function: function)
    settings = resolve(**SMALL, vocab_size=20)
    failing = Trainer(GPT(settings), settings, dataclasses.replace(CPU, compile=True))

    def fail(ids: torch.Tensor, start: int) -> torch.Tensor:
        raise RuntimeError("something else")

    failing._forward = fail
    with pytest.raises(RuntimeError, match="something else"):
        failing.update(batch_of(failing.settings))
    assert failing.compiled
    assert failing.notices == []


def test_where_compiling_fails_steps_run_uncompiled_and_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: object) -> Callable:
        def raises(ids: torch.Tensor, start: int) -> torch.Tensor:
            raise InductorError(RuntimeError("no working C++ compiler\nwith more lines"), None)

        return raises

    plain = trainer()
    monkeypatch.setattr(torch, "compile", broken)
    settings = resolve(**SMALL, vocab_size=20)
    falling = Trainer(GPT(settings, torch.Generator().manual_seed(0)), settings, dataclasses.replace(CPU, compile=True))
    batch = batch_of(settings)
    assert falling.update(batch)[0] == plain.update(batch)[0]
    assert falling.notices == ["torch.compile failed, so steps run uncompiled: RuntimeError: no working C++ compiler"]


def test_a_system_that_knows_no_compiler_at_all_trains_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(function: object) -> Callable:
        raise RuntimeError("torch.compile is not supported here")

    monkeypatch.setattr(torch, "compile", unknown)
    settings = resolve(**SMALL, vocab_size=20)
    trainer = Trainer(GPT(settings), settings, dataclasses.replace(CPU, compile=True))
    trainer.update(batch_of(settings))
    assert trainer.notices == ["torch.compile failed, so steps run uncompiled: torch.compile is not supported here"]


def test_other_errors_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    failing = trainer()

    def raises(ids: torch.Tensor, start: int) -> torch.Tensor:
        raise RuntimeError("something else")

    monkeypatch.setattr(failing, "_forward", raises)
    with pytest.raises(RuntimeError, match="something else"):
        failing.update(batch_of(failing.settings))


# The schedule


def rates(**changes: object) -> list[float]:
    settings = resolve(max_steps=100, warmup_steps=10, learning_rate=1.0, min_learning_rate=0.1, **changes)
    return [schedule.learning_rate(step, settings) for step in range(101)]


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd", "constant"])
def test_every_schedule_warms_up_peaks_and_never_rises_again(name: str) -> None:
    line = rates(schedule=name)
    assert line[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert line[10] == pytest.approx(1.0)
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(line[10:]))
    assert line[-1] == pytest.approx(1.0 if name == "constant" else 0.1)


def test_the_schedules_differ_where_they_should() -> None:
    assert rates(schedule="cosine")[55] == pytest.approx(0.55)
    assert rates(schedule="linear")[55] == pytest.approx(0.55)
    assert rates(schedule="cosine")[32] > rates(schedule="linear")[32]
    assert rates(schedule="wsd")[81] == pytest.approx(1.0)
    assert rates(schedule="wsd")[91] == pytest.approx(0.55)


def test_the_cosine_is_nanogpts() -> None:
    line = rates(schedule="cosine")
    for step in range(10, 101):
        ratio = (step - 10) / 90
        assert line[step] == pytest.approx(0.1 + 0.5 * (1 + math.cos(math.pi * ratio)) * 0.9)


# The stream of events, and what lies in the run afterwards


def test_a_run_tells_its_story_in_order_and_writes_it_down() -> None:
    events = run_events(sample_every=6, log_every=2)
    run = finished(events).run
    assert isinstance(events[0], training.Started)
    assert [e.step for e in found(events, training.Step)] == [1, 2, 4, 6, 8, 10, 12]
    assert [e.step for e in found(events, training.Evaluated)] == [4, 8, 12]
    assert [e.step for e in found(events, training.Saved)] == [4, 8, 12]
    assert [e.step for e in found(events, training.Sampled)] == [6, 12]
    lines = octavo.Run(run).lines("metrics")
    keys = {"step", "tokens", "seconds", "loss", "learning_rate", "grad_norm", "tokens_per_second", "memory_bytes"}
    for line in lines:
        evaluated = {"train_loss", "val_loss", "bits_per_byte"} if line["step"] in (4, 8, 12) else set()
        assert set(line) == keys | evaluated
        assert line["tokens"] == line["step"] * 6 * 16
    held = [line["memory_bytes"] for line in lines]
    assert held == sorted(held)
    assert 1 << 26 < held[0] < 1 << 36
    assert [line["step"] for line in octavo.Run(run).lines("samples")] == [6, 12]
    assert (run / "settings.toml").is_file()
    assert octavo.Run(run).settings == events[0].settings


def test_the_reported_validation_loss_is_that_of_the_checkpoint() -> None:
    ended = finished(run_events())
    from octavo.evaluation import evaluate

    assert evaluate(ended.checkpoint).loss == ended.val_loss


def test_training_learns_a_text_by_heart() -> None:
    ended = finished(run_events(max_steps=250, eval_every=250, n_embd=32))
    assert ended.val_loss is not None
    assert ended.val_loss < 0.3
    assert " brown fox jumps" in octavo.generate(ended.run, "The quick", max_new_tokens=40, temperature=0)[0].text


def test_the_log_spaced_checkpoints_hold_weights_and_only_the_last_can_go_on() -> None:
    run = finished(run_events(keep_checkpoints=4)).run
    kept = list(octavo.Run(run).steps.values())
    assert [path.name for path in kept] == ["step-000001", "step-000002", "step-000005", "step-000012"]
    assert [path.name for path in kept if (path / "trainer.json").exists()] == ["step-000012"]
    for path in kept:
        checkpoint.load(path)
    with pytest.raises(OctavoError, match="only weights"):
        run_events(resume=kept[0])


def test_best_stays_when_later_steps_are_worse() -> None:
    # On random characters, whatever is learnt of the training split makes validation worse.
    noise = "".join(chr(97 + i) for i in np.random.default_rng(0).integers(0, 26, 600))
    Path("text.txt").write_text(noise, encoding="utf-8")
    ended = finished(run_events(max_steps=120, eval_every=10, n_embd=32))
    run = octavo.Run(ended.run)
    assert run.best is not None
    assert run.best != run.last
    evaluations = {line["step"]: line["val_loss"] for line in run.lines("metrics") if "val_loss" in line}
    assert run.best.name == f"step-{min(evaluations, key=evaluations.__getitem__):06d}"
    assert octavo.load(ended.run).folder == run.best


def test_patience_ends_a_run_that_gets_no_better() -> None:
    noise = "".join(chr(97 + i) for i in np.random.default_rng(0).integers(0, 26, 600))
    Path("text.txt").write_text(noise, encoding="utf-8")
    ended = finished(run_events(max_steps=400, eval_every=10, n_embd=32, patience=2))
    assert ended.reason == "patience"
    assert ended.step < 400
    assert octavo.Run(ended.run).last == ended.checkpoint


def test_no_steps_at_all_still_make_a_model() -> None:
    ended = finished(run_events(max_steps=0))
    assert ended.step == 0
    assert octavo.load(ended.run).model.settings.n_layer == 2


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    update = Trainer.update

    def breaks(self: Trainer, batch: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        loss, norm = update(self, batch)
        return (loss * torch.nan if self.step == 10 else loss), norm

    monkeypatch.setattr(Trainer, "update", breaks)
    with pytest.raises(OctavoError, match=r"diverged at step 10.*step-000008"):
        run_events()
    last = octavo.Run("runs/text-1").last
    assert last is not None
    assert last.name == "step-000008"
    checkpoint.load_trainer(last)


def test_a_mistake_leaves_nothing_behind(folder: Path) -> None:
    Path("text.txt").write_text("A short text. ", encoding="utf-8")
    with pytest.raises(OctavoError, match="a window needs"):
        run_events()
    assert not (folder / "runs").exists()


def test_auto_is_resolved_when_a_run_is_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = finished(run_events(stop_after=4, precision="bf16"))
    values = json.loads((ended.checkpoint / "trainer.json").read_text())
    assert {k: values[k] for k in ("device", "precision", "compile", "micro_batch")} == {
        "device": "cpu", "precision": "bf16", "compile": "off", "micro_batch": 6,
    }  # fmt: skip
    text = (ended.run / "settings.toml").read_text().replace('precision = "bf16"', 'precision = "auto"')
    (ended.run / "settings.toml").write_text(text)
    monkeypatch.setattr("octavo.device._best_precision", lambda device: "fp32")
    started = run_events(resume=ended.run)[0]
    assert isinstance(started, training.Started)
    assert started.precision == "bf16"


# Starting from other weights


def test_fine_tuning_starts_from_the_other_models_loss_and_tokenizer() -> None:
    base = finished(run_events(max_steps=60, eval_every=60))
    events = [*training.events(training.plan("text.txt", init=base.run, **{**RECIPE, "max_steps": 1, "eval_every": 1,
              "learning_rate": 1e-9, "min_learning_rate": 0.0}))]  # fmt: skip
    assert found(events, training.Evaluated)[0].val_loss == pytest.approx(base.val_loss, abs=1e-4)
    assert octavo.load(finished(events).run).tokenizer.fingerprint == octavo.load(base.run).tokenizer.fingerprint


def test_the_shape_comes_with_the_weights_and_saying_another_is_an_error() -> None:
    base = finished(run_events()).run
    with pytest.raises(OctavoError, match="n_layer comes with the weights"):
        training.plan("text.txt", init=base, n_layer=3)


def test_a_shorter_block_crops_the_position_table_and_says_so() -> None:
    base = finished(run_events()).run
    planned = training.plan("text.txt", init=base, **{**RECIPE, "block_size": 8, "max_steps": 0})
    events = [*training.events(planned)]
    assert [e.text for e in found(events, training.Notice)] == ["the position table is cropped from 16 to 8 positions"]
    before, after = (octavo.load(run).model.transformer.wpe.weight for run in (base, finished(events).run))
    assert torch.equal(after, before[:8])


def test_a_hugging_face_gpt2_folder_can_be_fine_tuned(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    donor = octavo.load(finished(run_events(tokenizer="bpe:270")).run)
    config = transformers.GPT2Config(vocab_size=270, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder / "hf")
    donor.tokenizer.save(folder / "hf")
    planned = training.plan("text.txt", init="hf", **{**RECIPE, "max_steps": 4})
    ended = finished([*training.events(planned)])
    model = octavo.load(ended.run).model
    assert (model.settings.n_layer, model.settings.block_size, model.settings.vocab_size) == (1, 16, 270)


# Devices


@pytest.mark.parametrize(("settings", "message"), [
    ({"device": "tpu9"}, "no device"), ({"device": "cuda:99"}, "no device"), ({"precision": "fp16"}, "fp16"),
])  # fmt: skip
def test_a_device_or_precision_that_is_not_there_is_an_error(settings: dict, message: str) -> None:
    with pytest.raises(OctavoError, match=message):
        resolve_runtime(dataclasses.replace(TrainingSettings(device="cpu"), **settings))


def test_auto_takes_bf16_on_a_cpu_only_where_it_is_fast_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for has, expected in (({"avx512_bf16": True}, "bf16"), ({"avx2": True}, "fp32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: has)
        place = resolve_runtime(TrainingSettings(device="cpu"))
        assert place.precision == expected
        assert bool(place.notes) == (expected == "bf16")


# Signals


@pytest.fixture
def long_run(folder: Path) -> Iterator[subprocess.Popen]:
    words = ["--n-layer", "1", "--n-head", "1", "--n-embd", "8", "--block-size", "8", "--max-steps", "1000000",
             "--device", "cpu", "--precision", "fp32", "--sample-every", "0", "--keep-checkpoints", "0"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "octavo", "train", "text.txt", *words], cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    yield process
    process.kill()
    process.communicate()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_a_run_with_a_checkpoint_from_which_it_goes_on(long_run: subprocess.Popen, number: int) -> None:
    metrics = Path("runs/text-1/metrics.jsonl")
    deadline = time.monotonic() + 60
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    long_run.send_signal(number)
    out, err = long_run.communicate(timeout=60)
    assert long_run.returncode == 130, err
    assert "Traceback" not in err
    assert "octavo train --resume" in out
    run = octavo.Run("runs/text-1")
    assert run.last is not None
    step = json.loads((run.last / "trainer.json").read_text())["step"]
    resumed = [*training.events(training.plan(resume=run.folder, max_steps=step + 2))]
    assert finished(resumed).step == step + 2


# Scripts other than Latin


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe:600"])
def test_arabic_and_hindi_are_sampled_in_whole_characters(tokenizer: str, shared: Path) -> None:
    ended = finished(run_events(source=str(shared / "notes"), tokenizer=tokenizer, block_size=32, n_embd=64,
                                max_steps=150, eval_every=150))  # fmt: skip
    for prompt in ("التضمين", "एम्बेडिंग"):
        texts = [each.text for each in octavo.generate(ended.run, prompt, max_new_tokens=200, num_samples=5)]
        assert "\ufffd" not in "".join(texts)
        assert any("\u0600" <= c <= "\u06ff" or "\u0900" <= c <= "\u097f" for c in "".join(texts))


def test_short_windows_train_every_position_and_micro_batches_change_nothing() -> None:
    settings = resolve(**RECIPE, n_layer=1, n_head=1, n_embd=8, vocab_size=30, weight_init="noise", weight_decay=0.0,
                       schedule="constant")  # fmt: skip
    batch = np.random.default_rng(0).integers(0, 30, (24, 5))  # a quarter of the block
    trainers = [
        Trainer(GPT(settings, torch.Generator().manual_seed(0)), dataclasses.replace(settings, micro_batch=rows), CPU)
        for rows in (6, 1)
    ]
    before = trainers[0].model.transformer.wpe.weight.detach().clone()
    moved = torch.zeros(16, dtype=torch.bool)
    for _ in range(30):
        old = trainers[0].model.transformer.wpe.weight.detach().clone()
        whole, cut = (trainer.update(batch)[0] for trainer in trainers)
        torch.testing.assert_close(whole, cut, atol=1e-4, rtol=0)
        now = (trainers[0].model.transformer.wpe.weight.detach() != old).any(1)
        assert now.any()
        moved |= now
    assert moved.all()
    assert not torch.equal(before, trainers[0].model.transformer.wpe.weight)


@pytest.mark.parametrize(("characters", "steps"), [(100, 100), (1000, 100), (4000, 300), (20_000, 1000)])
def test_a_small_text_gets_fewer_steps_and_is_told_so(characters: int, steps: int) -> None:
    Path("text.txt").write_text((TEXT * 10)[:characters], encoding="utf-8")
    shape = dict(n_layer=1, n_head=1, n_embd=2, block_size=8, batch_size=12, device="cpu")
    origin = result(set_up(training.plan("text.txt", **shape)))
    assert origin.settings.max_steps == steps
    assert origin.settings.eval_every == min(250, steps // 4)
    assert (steps == 1000) == (not origin.notices)
    epochs = steps * 8 * 12 / origin.data.info["tokens"]["train"]
    assert all(f"{steps} steps suffice for a text of this size, {epochs:,.1f} epochs" in n for n in origin.notices)


def test_whoever_names_the_steps_gets_them() -> None:
    for given in ({"max_steps": 5000}, {"preset": "nanogpt-tiny"}, {"max_epochs": 0}):
        planned = training.plan("text.txt", **{"block_size": 8, "device": "cpu", **given})
        assert result(set_up(planned)).settings.max_steps == planned.settings.max_steps


def test_training_does_not_wait_for_pytorchs_compiler_to_be_imported() -> None:
    """Three quarters of a second that only `torch.compile` needs."""
    script = (
        "import octavo, sys; octavo.train('text.txt', max_steps=1, n_embd=8, n_head=1, device='cpu'); "
        "print([name for name in sys.modules if name.startswith(('torch._dynamo', 'torch._inductor'))])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
