"""Resuming a run, and fine-tuning from the weights of another."""

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import octavo
import small_runs
from checkpoints import edit_json
from folders import contents
from octavo import checkpoint, loss, training
from octavo.errors import OctavoError, OctavoWarning
from octavo.runs import Run, step_of
from octavo.training.interrupt import Stop
from reliability.torture import IS_TORTURE
from small_runs import RECIPE, SMALL, TEXT, events_of, finished_event, kill_after, losses, run_events, weights


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return small_runs.enter_folder(tmp_path, monkeypatch)


@pytest.mark.parametrize("stop_after", [1, 4, 7, 11])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dropout": 0.2, "attention_dropout": 0.1, "micro_batch": 4},
        {"precision": "bf16", "schedule": "wsd", "bias": False},
        {"optimizer": "adamw", "weight_init": "noise"},
        {"curriculum_splits": 4, "curriculum_fraction": 0.7},
        {"curriculum_splits": 2, "dropout": 0.1, "micro_batch": 2},
    ],
    ids=["plain", "dropout", "bf16", "adamw", "curriculum", "curriculum-dropout"],
)
def test_resume_is_bit_identical(stop_after: int, changes: dict) -> None:
    uninterrupted = finished_event(run_events(**changes)).run
    stopped = finished_event(run_events(stop_after, **changes))
    assert (stopped.reason, stopped.step) == ("stopped", stop_after)
    resumed = finished_event(run_events(resume=stopped.run))
    assert (resumed.reason, resumed.step) == ("done", 12)
    assert losses(resumed.run) == losses(uninterrupted)
    for name, value in weights(uninterrupted).items():
        assert torch.equal(value, weights(resumed.run)[name]), name


@pytest.mark.parametrize("changes", [{}, {"save_every": 3, "patience": 1}][: 2 if IS_TORTURE else 1])
def test_a_stop_at_any_moment_of_an_evaluation_changes_nothing(
    changes: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop before each batch in turn, which stays requested. The resumed run is stopped again at once."""
    monkeypatch.setattr(loss, "default_tokens_per_batch", lambda *arguments: 160 if IS_TORTURE else 400)
    settings = {"max_steps": 4, "eval_every": 2, "sample_every": 2, "keep_checkpoints": 0} | changes
    calls: list[str] = []  # the function that asks

    def should_stop() -> bool:
        calls.append(sys._getframe(1).f_code.co_name)
        return len(calls) >= stop_at

    def train(**start: object) -> training.Finished:
        return finished_event([*training.events(training.plan(**start), should_stop=should_stop)])

    stop_at = 10**9
    undisturbed = outcome(train(source="text.txt", **SMALL | settings))
    moments = [number for number, name in enumerate(calls, 1) if name == "split_loss"]
    assert len(moments) > 5
    for stop_at in moments[:: 1 if IS_TORTURE else 3]:
        calls.clear()
        stopped = train(source="text.txt", **SMALL | settings)
        assert (stopped.reason, len(calls)) == ("stopped", stop_at)
        assert octavo.load(stopped.checkpoint).info["step"] == stopped.step
        assert octavo.load(stopped.checkpoint).info["val_loss"] is None
        assert losses(stopped.run)[-1] == (stopped.step, losses(stopped.run)[-1][1], None)
        calls[:] = [""] * stop_at
        assert train(resume=stopped.run).step == stopped.step
        calls.clear()
        stop_at = 10**9
        assert outcome(train(resume=stopped.run)) == undisturbed


def outcome(finished: training.Finished) -> dict[str, object]:
    """What must not depend on how often a run was stopped."""
    run = Run(finished.run)
    assert run.last is not None
    assert run.best is not None
    return {
        "losses": losses(run.folder),
        "samples": run.lines("samples"),
        "checkpoints": (finished.reason, finished.best_val_loss, run.last.name, run.best.name),
        "info": [octavo.load(folder).info | {"settings": None} for folder in (run.last, run.best)],
        "weights": [(folder / "model.safetensors").read_bytes() for folder in (run.last, run.best)],
        "optimizer": (run.last / "trainer.safetensors").read_bytes(),
    }


def test_another_seed_gives_other_losses() -> None:
    one, other = (finished_event(run_events(seed=seed)).run for seed in (1, 2))
    assert losses(one) != losses(other)


def test_a_killed_run_resumes_from_its_last_checkpoint() -> None:
    uninterrupted = finished_event(run_events()).run
    kill_after(10, training.events(training.plan("text.txt", **SMALL)))
    killed = Path("runs/text-2")
    assert octavo.Run(killed).last == killed / "checkpoints" / "step-000008"
    resumed = finished_event(run_events(resume=killed))
    assert losses(resumed.run) == losses(uninterrupted)


def test_resume_with_more_steps_trains_longer() -> None:
    first = finished_event(run_events())
    longer = finished_event(run_events(resume=first.run, max_steps=16))
    assert longer.step == 16
    assert [step for step, _, _ in losses(longer.run)] == list(range(1, 17))


def test_fewer_steps_than_a_run_has_are_an_error_that_says_how_steps_count() -> None:
    first = finished_event(run_events()).run
    settings = octavo.Run(first).settings
    with pytest.raises(OctavoError, match="counts from the first step") as error:
        run_events(resume=first, max_steps=5)
    assert error.value.hint == f"--max-steps {settings.max_steps + 5}, for 5 more steps"
    assert octavo.Run(first).settings == settings
    assert finished_event(run_events(resume=first, max_steps=settings.max_steps)).step == settings.max_steps


def test_settings_changed_by_a_resume_stay_changed() -> None:
    uninterrupted = finished_event(run_events(max_steps=20, learning_rate=3e-3)).run
    first = finished_event(run_events(max_steps=12, learning_rate=3e-3, stop_after=4))
    longer = finished_event(run_events(stop_after=5, resume=first.run, max_steps=20))
    assert (longer.reason, longer.step) == ("stopped", 9)
    again = finished_event(run_events(resume=first.run))
    assert (again.reason, again.step) == ("done", 20)
    assert octavo.Run(first.run).settings == octavo.Run(uninterrupted).settings


def test_resume_with_more_steps_keeps_the_log_spaced_checkpoints() -> None:
    first = finished_event(run_events(keep_checkpoints=4))
    kept = [path.name for path in octavo.Run(first.run).checkpoints.values() if not checkpoint.has_trainer(path)]
    assert len(kept) == 3
    finished_event(run_events(resume=first.run, max_steps=40))
    assert set(kept) <= {path.name for path in octavo.Run(first.run).checkpoints.values()}


def test_resume_with_another_text_is_an_error(folder: Path) -> None:
    run = finished_event(run_events(stop_after=4)).run
    (folder / "other.txt").write_text(TEXT.upper(), encoding="utf-8")
    with pytest.raises(OctavoError, match=r"other.txt .*not the text"):
        run_events(resume=run, source="other.txt")


@pytest.mark.parametrize("change", ["grew", "removed"])
def test_a_run_whose_text_changed_is_not_resumed_and_not_touched(folder: Path, change: str) -> None:
    run = finished_event(run_events(stop_after=4)).run
    text = (folder / "text.txt").read_text(encoding="utf-8")
    if change == "grew":
        (folder / "text.txt").write_text(text + "more", encoding="utf-8")
    else:
        (folder / "text.txt").unlink()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(OctavoError, match=r"text\.txt") as caught:
        run_events(resume=run)
    assert "--init RUN" in str(caught.value.hint)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    (folder / "text.txt").write_text(text, encoding="utf-8")
    assert finished_event(run_events(resume=run)).step == 12


@pytest.mark.parametrize("change", [{"n_layer": 3}, {"tokenizer": "byte"}, {"block_size": 8}, {"val_fraction": 0.2}])
def test_resume_cannot_change_the_model_or_the_data(change: dict) -> None:
    run = finished_event(run_events(stop_after=4)).run
    with pytest.raises(OctavoError, match=next(iter(change))):
        run_events(resume=run, **change)


def test_resume_keeps_the_resolved_device_and_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = finished_event(run_events(stop_after=4, precision="bf16"))
    values = json.loads((ended.checkpoint / "trainer.json").read_text())
    assert {k: values[k] for k in ("device", "precision", "compile", "micro_batch")} == {
        "device": "cpu",
        "precision": "bf16",
        "compile": "off",
        "micro_batch": 6,
    }
    text = (ended.run / "settings.toml").read_text().replace('precision = "bf16"', 'precision = "auto"')
    (ended.run / "settings.toml").write_text(text)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)  # without bf16, so `auto` would be fp32
    started = run_events(resume=ended.run)[0]
    assert isinstance(started, training.Started)
    assert started.precision == "bf16"


def train_on_a_gpu(precision: str) -> Path:
    """A run whose files say that it was trained on a GPU. It was not."""
    ended = finished_event(run_events(stop_after=4))
    edit_json(ended.checkpoint / "trainer.json", device="cuda", precision=precision, compile="on", micro_batch=3)
    text = (ended.run / "settings.toml").read_text()
    for name, value in (("device", "cuda"), ("precision", precision), ("compile", "on")):
        text = re.sub(f"^{name} = .*$", f'{name} = "{value}"', text, flags=re.MULTILINE)
    (ended.run / "settings.toml").write_text(text)
    return ended.run


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_a_run_of_a_gpu_is_resumed_on_a_cpu_as_the_hint_says(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)  # without bf16
    run = train_on_a_gpu(precision)
    with pytest.raises(OctavoError, match="no device 'cuda'") as caught:
        run_events(resume=run)
    assert caught.value.hint == "--device auto"
    events = run_events(resume=run, device="auto")
    settings = events_of(events, training.Started)[0].settings
    assert (settings.device, settings.precision, settings.compile) == ("cpu", "fp32", "off")
    assert any("not on cuda" in event.text for event in events_of(events, training.Notice))
    values = json.loads((finished_event(events).checkpoint / "trainer.json").read_text())
    assert (values["device"], values["micro_batch"]) == ("cpu", 6)
    run_events(resume=run, max_steps=13)  # from now on it is a run of this machine


def test_a_precision_given_with_another_device_is_kept() -> None:
    run = train_on_a_gpu("fp16")
    started = run_events(resume=run, device="cpu", precision="bf16")[0]
    assert isinstance(started, training.Started)
    assert started.precision == "bf16"


# Signals


# A background job of a shell inherits an ignored SIGINT, which Octavo would respect.
OCTAVO = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
from octavo.cli import run_and_exit
run_and_exit()
"""


@pytest.fixture
def long_run(folder: Path) -> Iterator[subprocess.Popen]:
    """`octavo train` in another process, with more steps than a test waits for."""
    flags = (
        "--n-layer 1 --n-head 1 --n-embd 8 --block-size 8 --max-steps 1000000 "
        "--device cpu --precision fp32 --sample-every 0 --keep-checkpoints 0"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", OCTAVO, "train", "text.txt", *flags.split()],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_run_with_a_checkpoint_to_resume_from(long_run: subprocess.Popen, number: int) -> None:
    metrics = Path("runs/text-1/metrics.jsonl")
    deadline = time.monotonic() + 60
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    long_run.send_signal(number)
    out, err = long_run.communicate(timeout=60)
    assert long_run.returncode == 128 + number, err
    assert "Traceback" not in err
    assert "octavo train --resume" in out
    run = octavo.Run("runs/text-1")
    assert run.last is not None
    step = json.loads((run.last / "trainer.json").read_text())["step"]
    resumed = [*training.events(training.plan(resume=run.folder, max_steps=step + 2))]
    assert finished_event(resumed).step == step + 2


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
@pytest.mark.parametrize("pause", [0, 0.001, 0.1])
@pytest.mark.parametrize("numbers", [(signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGINT)])
def test_two_signals_close_together_end_a_run_with_a_checkpoint(
    long_run: subprocess.Popen, numbers: tuple[int, int], pause: float
) -> None:
    while not Path("runs/text-1/metrics.jsonl").exists():
        assert long_run.poll() is None
        time.sleep(0.05)
    long_run.send_signal(numbers[0])
    time.sleep(pause)
    long_run.send_signal(numbers[1])
    _, err = long_run.communicate(timeout=60)
    assert long_run.returncode in (128 + numbers[0], 128 + numbers[1]), err
    assert "Traceback" not in err
    assert octavo.Run("runs/text-1").last is not None


def test_a_signal_within_the_handling_of_another_does_not_block() -> None:
    stop = Stop()
    assert not stop()
    stop.handle(signal.SIGTERM, None)
    assert stop()
    stop.handle(signal.SIGINT, None)  # at once: the same request
    assert stop.signal == signal.SIGTERM


def test_ctrl_c_before_the_first_step_ends_at_once() -> None:
    with pytest.raises(KeyboardInterrupt):
        Stop().handle(signal.SIGINT, None)


def test_a_signal_before_the_first_step_calls_the_previous_handler() -> None:
    def terminate(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    with pytest.raises(SystemExit, match="143"):
        Stop({signal.SIGTERM: terminate}).handle(signal.SIGTERM, None)


# Damage


@pytest.mark.parametrize(
    "name", ["model.safetensors", "trainer.json", "trainer.safetensors", "manifest.json", "config.json"]
)
def test_resume_skips_a_damaged_checkpoint_and_says_so(name: str) -> None:
    uninterrupted = finished_event(run_events()).run
    stopped = finished_event(run_events(stop_after=10)).run
    newest, older = octavo.Run(stopped).resumable
    (newest / name).write_bytes((newest / name).read_bytes()[:-20])
    events = run_events(resume=stopped)
    notices = [event.text for event in events_of(events, training.Notice)]
    assert any(str(newest / name) in notice for notice in notices)
    assert any(str(older) in notice for notice in notices)
    assert losses(finished_event(events).run) == losses(uninterrupted)


def test_a_missing_pointer_costs_nothing() -> None:
    uninterrupted = finished_event(run_events()).run
    stopped = finished_event(run_events(stop_after=10)).run
    (stopped / "last").write_text("")
    assert losses(finished_event(run_events(resume=stopped)).run) == losses(uninterrupted)


@pytest.mark.parametrize("max_steps", [12, 16])
def test_pointers_that_a_killed_process_did_not_write_are_written_by_the_next(max_steps: int) -> None:
    run = Run(finished_event(run_events(keep_checkpoints=0)).run)
    newest, older = run.resumable
    assert run.best == newest
    for pointer in ("last", "best"):
        (run.folder / pointer).write_text(older.name)
    kill_after(max_steps, training.events(training.plan(resume=run.folder, max_steps=max_steps)))
    assert (run.last, run.best) == (newest, newest)


def test_a_run_killed_before_its_first_checkpoint_starts_again_in_its_folder() -> None:
    uninterrupted = finished_event(run_events()).run
    kill_after(2, training.events(training.plan("text.txt", **SMALL)))
    killed = Path("runs/text-2")
    assert octavo.Run(killed).resumable == []
    assert losses(finished_event(run_events(resume=killed)).run) == losses(uninterrupted)


@pytest.mark.parametrize("change", [{"optimizer": "adamw"}, {"batch_size": 0}])
def test_settings_that_fail_do_not_stay_in_the_run(change: dict) -> None:
    run = finished_event(run_events(stop_after=4)).run
    before = octavo.Run(run).settings
    with pytest.raises(OctavoError):
        run_events(resume=run, **change)
    assert octavo.Run(run).settings == before
    assert finished_event(run_events(resume=run)).step == 12


def test_resuming_from_an_older_checkpoint_changes_nothing_before_the_first_step() -> None:
    uninterrupted = finished_event(run_events()).run
    run = Run(finished_event(run_events(stop_after=11)).run)
    newest, older = run.resumable
    before = contents(run.folder)
    with pytest.raises(OctavoError, match="batch_size"):
        run_events(resume=older, batch_size=0)
    events = training.events(training.plan(resume=older))
    assert isinstance(next(events), training.Started)
    assert contents(run.folder) == before
    events.close()
    kill_after(9, training.events(training.plan(resume=older)))
    assert (run.last, newest.exists()) == (older, False)
    assert [step for step, _, _ in losses(run.folder)] == list(range(1, 9))
    assert losses(finished_event(run_events(resume=run.folder)).run) == losses(uninterrupted)


@pytest.mark.parametrize("point", range(6))
def test_a_crash_while_a_run_is_resumed_leaves_no_gap_and_no_duplicate(
    point: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies at one of the renames and removals with which training resumes from its oldest checkpoint."""
    uninterrupted = finished_event(run_events()).run
    run = Run(finished_event(run_events(stop_after=11)).run)
    calls = itertools.count()

    def crash(original: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any, **options: Any) -> None:
            if next(calls) == point:
                raise ZeroDivisionError
            original(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for owner, name in ((os, "replace"), (Path, "unlink")):
            patch.setattr(owner, name, crash(getattr(owner, name)))
        with contextlib.suppress(ZeroDivisionError, OctavoWarning):  # the warning, if a checkpoint was being written
            kill_after(step_of(run.resumable[-1]) + 2, training.events(training.plan(resume=run.resumable[-1])))
    lines = [step for step, _, _ in losses(run.folder)]
    assert lines == list(range(1, len(lines) + 1))
    assert len(lines) >= step_of(run.resumable[0])
    assert losses(finished_event(run_events(resume=run.folder)).run) == losses(uninterrupted)


# Fine-tuning


def test_fine_tuning_starts_with_the_loss_and_tokenizer_of_the_base_model() -> None:
    base = finished_event(run_events(max_steps=60, eval_every=60))
    almost_no_change = {"max_steps": 1, "eval_every": 1, "learning_rate": 1e-9, "min_learning_rate": 0.0}
    events = [*training.events(training.plan("text.txt", init=base.run, **RECIPE | almost_no_change))]
    assert events_of(events, training.Evaluated)[0].val_loss == pytest.approx(base.val_loss, abs=1e-4)
    assert octavo.load(finished_event(events).run).tokenizer.fingerprint == octavo.load(base.run).tokenizer.fingerprint


@pytest.mark.parametrize(
    "start", [{"resume": "tuned"}, {"continue_run": True, "out": "tuned"}], ids=["resume", "continue"]
)
def test_a_fine_tuning_killed_before_its_first_checkpoint_starts_again_from_the_same_weights(start: dict) -> None:
    base = finished_event(run_events(max_steps=30)).run
    uninterrupted = finished_event([*training.events(training.plan("text.txt", init=base, **RECIPE))])
    kill_after(2, training.events(training.plan("text.txt", init=base, out="tuned", **RECIPE)))
    assert Run("tuned").is_unstarted
    again = finished_event([*training.events(training.plan(**start))])
    assert again.run == Path("tuned")
    assert losses(again.run) == losses(uninterrupted.run)


def test_new_weights_replace_those_of_a_fine_tuning_killed_before_its_first_checkpoint() -> None:
    base = finished_event(run_events(max_steps=4)).run
    kill_after(2, training.events(training.plan("text.txt", init=base, out="tuned", **RECIPE)))
    kill_after(2, training.events(training.plan("text.txt", out="tuned", **RECIPE)))
    assert training.plan(resume="tuned").init is None


def test_a_shorter_block_crops_the_position_table_with_a_notice() -> None:
    base = finished_event(run_events()).run
    planned = training.plan("text.txt", init=base, **{**RECIPE, "block_size": 8, "max_steps": 0})
    events = [*training.events(planned)]
    [notice] = events_of(events, training.Notice)
    assert "16 to 8" in notice.text
    before, after = (octavo.load(run).model.transformer.wpe.weight for run in (base, finished_event(events).run))
    assert torch.equal(after, before[:8])


def test_a_hugging_face_folder_can_be_fine_tuned(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    donor = octavo.load(finished_event(run_events(tokenizer="bpe:270")).run)
    config = transformers.GPT2Config(vocab_size=270, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder / "hf")
    donor.tokenizer.save(folder / "hf")
    planned = training.plan("text.txt", init="hf", **{**RECIPE, "max_steps": 4})
    ended = finished_event([*training.events(planned)])
    model = octavo.load(ended.run).model
    assert (model.settings.n_layer, model.settings.block_size, model.settings.vocab_size) == (1, 16, 270)
