"""NaN in a loss, a gradient, a weight or a batch: it is never saved, and each policy acts, the same way every time."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

import octavo
import small_runs
from checkpoints import list_in_manifest
from octavo import training
from octavo.device import Runtime
from octavo.distributed import World
from octavo.errors import DivergenceError, SettingError
from octavo.model import GPT
from octavo.settings import resolve
from octavo.training import divergence
from octavo.training.divergence import MAX_ROLLBACKS, MAX_SKIPS, MAX_SKIPS_IN_A_ROW, SPIKE_WINDOW, DivergencePolicy
from octavo.training.step import Trainer
from reliability.torture import IS_TORTURE, Outcome, Report
from small_runs import SMALL, events_of, finished_event, kill_after, run_events

FAULTY_STEP = 7  # counted from 1; checkpoints are at steps 4, 8 and 12


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return small_runs.enter_folder(tmp_path, monkeypatch)


@pytest.fixture(autouse=True)
def check_saved_files(folder: Path) -> Iterator[None]:
    """After each test, every tensor of every checkpoint must be finite, and every line of metrics valid JSON."""
    yield
    saved = list(folder.rglob("*.safetensors"))
    for path in saved:
        for name, value in safetensors.torch.load_file(path).items():
            assert value.isfinite().all(), (path, name)
    for path in folder.rglob("*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} in metrics or samples"))


Plant = Callable[..., None]


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Plant:
    """A function that plants a fault of a kind. A faulty batch is faulty in every step.

    The other faults are in step FAULTY_STEP, and gone at a lower learning rate unless `always`.
    """
    compute_gradients = Trainer.compute_gradients

    def plant(kind: str, always: bool = False) -> None:
        faulty_batches: list[bytes] = []

        def compute(self: Trainer, batch: np.ndarray) -> Tensor:
            is_faulty = self.step + 1 == FAULTY_STEP and (always or self.learning_rate_scale == 1)
            if kind == "batch":
                if is_faulty and not faulty_batches:
                    faulty_batches.append(batch.tobytes())
                is_faulty = batch.tobytes() in faulty_batches
            position_table = self.model.transformer.wpe.weight
            if kind == "weights" and is_faulty:
                position_table.data[0, 0] = math.nan
            loss = compute_gradients(self, batch)
            if kind == "gradient" and is_faulty:
                assert position_table.grad is not None
                position_table.grad[0, 0] = math.inf
            return loss * math.nan if kind in ("loss", "batch") and is_faulty else loss

        monkeypatch.setattr(Trainer, "compute_gradients", compute)

    return plant


KINDS = ["loss", "gradient", "weights", "batch"]


@pytest.mark.parametrize("kind", KINDS)
def test_by_default_training_stops_at_the_step_and_names_the_last_good_checkpoint(kind: str, plant: Plant) -> None:
    plant(kind)
    with pytest.raises(DivergenceError, match=rf"diverged at step {FAULTY_STEP}: .*step-000004") as caught:
        run_events(log_every=1000)
    assert caught.value.step == FAULTY_STEP
    assert caught.value.exit_code == 2
    assert "--on-divergence rollback" in str(caught.value)


@pytest.mark.parametrize("step", [5, 8])  # of a log-spaced copy of the weights, and of a checkpoint
def test_weights_that_an_update_makes_nan_are_not_saved(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    apply_gradients = Trainer.apply_gradients

    def apply(self: Trainer, grad_norm: Tensor) -> None:
        apply_gradients(self, grad_norm)
        if self.step + 1 == step:
            self.model.transformer.wte.weight.data[3, 3] = math.nan

    monkeypatch.setattr(Trainer, "apply_gradients", apply)
    with pytest.raises(DivergenceError, match=f"diverged at step {step}"):
        run_events(log_every=1000, keep_checkpoints=4)
    last = octavo.Run("runs/text-1").last
    assert last is not None
    assert last.name == "step-000004"


@pytest.mark.parametrize("kind", ["loss", "gradient", "batch"])
def test_skip_does_not_apply_the_update(kind: str, plant: Plant) -> None:
    plant(kind)
    events = run_events(on_divergence="skip")
    assert finished_event(events).reason == "done"
    [notice] = [event.text for event in events_of(events, training.Notice) if "skipped" in event.text]
    assert f"step {FAULTY_STEP}" in notice
    steps = events_of(events, training.Step)
    assert [step.step for step in steps] == list(range(1, 13))
    assert [step.skipped_steps for step in steps] == [0] * 6 + [1] * 6
    faulty = steps[FAULTY_STEP - 1]
    assert (faulty.loss is None) == (kind != "gradient")
    assert (faulty.grad_norm is None) == (kind == "gradient")


def test_a_skipped_update_leaves_weights_and_optimizer_as_they_were(plant: Plant) -> None:
    settings = resolve(**SMALL, vocab_size=20)
    trainer = Trainer(GPT(settings, torch.Generator().manual_seed(0)), settings, Runtime(torch.device("cpu")))
    batches = np.random.default_rng(0).integers(0, 20, (3, 6, 17))
    trainer.update(batches[0])
    before = {name: value.clone() for name, value in trainer.state().tensors.items()}
    weights = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.compute_gradients(batches[1])
    trainer.clip_gradients()
    trainer.end_step()
    assert trainer.step == 2
    assert all(torch.equal(value, before[name]) for name, value in trainer.state().tensors.items())
    assert all(torch.equal(a, b) for a, b in zip(trainer.model.parameters(), weights, strict=True))
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_skip_ends_if_the_weights_are_the_cause(plant: Plant) -> None:
    plant("weights")
    message = f"diverged at step {FAULTY_STEP + MAX_SKIPS_IN_A_ROW}.*{MAX_SKIPS_IN_A_ROW} skipped updates in a row"
    with pytest.raises(DivergenceError, match=message):
        run_events(on_divergence="skip", max_steps=50, eval_every=50, keep_checkpoints=0)


@pytest.mark.parametrize("kind", KINDS)
def test_rollback_leaves_out_the_faulty_batches_and_halves_the_learning_rate(kind: str, plant: Plant) -> None:
    clean = events_of(run_events(), training.Step)
    plant(kind)
    events = run_events(on_divergence="rollback")
    ended = finished_event(events)
    assert (ended.reason, ended.step) == ("done", 12)
    [notice] = [event.text for event in events_of(events, training.Notice) if "Rollback" in event.text]
    assert f"diverged at step {FAULTY_STEP}" in notice
    assert "step 4" in notice
    lines = octavo.Run(ended.run).lines("metrics")
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [line["rollbacks"] for line in lines] == [0] * 4 + [1] * 8
    for line, step in zip(lines, clean, strict=True):
        scale = 1 if step.step <= 4 else 0.5
        assert line["learning_rate"] == step.learning_rate * scale
        assert (line["loss"] == step.loss) == (step.step <= 4)
    values = json.loads((ended.checkpoint / "trainer.json").read_text(encoding="utf-8"))
    assert values["divergence"]["skipped_batches"] == FAULTY_STEP - 4


@pytest.mark.parametrize("kind", KINDS if IS_TORTURE else ["loss"])
def test_rollback_before_the_first_checkpoint_starts_again(kind: str, plant: Plant) -> None:
    plant(kind)
    events = run_events(on_divergence="rollback", eval_every=12)
    assert finished_event(events).step == 12
    [notice] = [event.text for event in events_of(events, training.Notice) if "Rollback" in event.text]
    assert "continues at step 0" in notice


def test_rollback_in_the_first_step_after_a_resume_returns_to_the_checkpoint_that_was_resumed(plant: Plant) -> None:
    run = finished_event(run_events(max_steps=9, eval_every=3)).run
    newest, earlier = octavo.Run(run).resumable
    assert (newest.name, earlier.name) == ("step-000009", f"step-{FAULTY_STEP - 1:06d}")
    plant("loss")
    events = run_events(resume=earlier, on_divergence="rollback")
    [notice] = [event.text for event in events_of(events, training.Notice) if "Rollback" in event.text]
    assert f"continues at step {FAULTY_STEP - 1}" in notice
    assert [line["rollbacks"] for line in octavo.Run(run).lines("metrics")] == [0] * 6 + [1] * 3


def test_processes_look_for_a_checkpoint_after_rank_0_has_removed_the_newer_ones(plant: Plant) -> None:
    run = finished_event(run_events(max_steps=9, eval_every=3)).run
    resumable: list[list[str]] = []  # at each barrier

    class Observed(World):
        def barrier(self) -> None:
            resumable.append([folder.name for folder in octavo.Run(run).resumable])

    plant("loss")
    plan = training.plan(resume=octavo.Run(run).resumable[1], on_divergence="rollback")
    list(training.events(plan, world=Observed()))
    assert resumable == [["step-000009", "step-000006"], ["step-000006"]]


def test_rollback_ends_after_a_few(plant: Plant) -> None:
    plant("loss", always=True)
    with pytest.raises(DivergenceError, match=f"after {MAX_ROLLBACKS} rollbacks.*step-000004") as caught:
        run_events(on_divergence="rollback")
    assert "rollback" not in str(caught.value.hint)


def test_rollback_removes_the_copies_of_weights_that_it_returns_from(plant: Plant) -> None:
    plant("loss")
    copies = {1, 2, 5, 12}
    events = training.events(
        training.plan("text.txt", **SMALL | {"keep_checkpoints": 4, "eval_every": 4, "on_divergence": "rollback"})
    )
    for event in events:
        if isinstance(event, training.Notice) and "Rollback" in event.text:
            break
    assert set(octavo.Run("runs/text-1").checkpoints) == {0, 1, 2, 4}
    assert finished_event([*events]).step == 12
    assert copies <= set(octavo.Run("runs/text-1").checkpoints)


POLICIES = [("skip", "gradient"), ("rollback", "batch")]
KILLS = [6, 9]  # the last step before the kill
if IS_TORTURE:
    POLICIES = [("skip", "loss"), ("skip", "gradient"), ("skip", "batch"), *(("rollback", kind) for kind in KINDS)]
    KILLS = [5, 6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"] if IS_TORTURE else ["muon"])
@pytest.mark.parametrize(("policy", "kind"), POLICIES)
def test_policies_act_the_same_way_twice_and_after_a_kill(
    policy: str, kind: str, optimizer: str, plant: Plant, report: Report
) -> None:
    plant(kind)
    settings = {"on_divergence": policy, "optimizer": optimizer, "dropout": 0.1, "keep_checkpoints": 4}
    first = Outcome.of(finished_event(run_events(**settings)).run)
    assert Outcome.of(finished_event(run_events(**settings)).run) == first
    for run, last_step in enumerate(KILLS, start=3):
        kill_after(last_step, training.events(training.plan("text.txt", **SMALL | settings)))
        resumed = run_events(resume=Path(f"runs/text-{run}"))
        assert Outcome.of(finished_event(resumed).run) == first, last_step
    report(
        "NaN or infinity in a loss, gradient, weight or batch, twice and with a kill", len(KILLS) + 2, other_results=0
    )


@pytest.mark.parametrize("kind", KINDS if IS_TORTURE else ["batch"])
def test_an_accelerator_reads_losses_later_and_rolls_back_the_same_way(
    kind: str, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(kind)
    settings = {"on_divergence": "rollback", "log_every": 4}
    every_step = Outcome.of(finished_event(run_events(**settings)).run)
    read_losses_late(monkeypatch)
    assert Outcome.of(finished_event(run_events(**settings)).run) == every_step
    with pytest.raises(DivergenceError, match=f"diverged at step {FAULTY_STEP}: .*step-000004"):
        run_events(log_every=1000)


def read_losses_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read losses when they are due to be logged or saved, as on an accelerator."""
    build = DivergencePolicy.__init__

    def build_late(self: DivergencePolicy, trainer: Trainer) -> None:
        build(self, trainer)
        self.reads_every_step = False

    monkeypatch.setattr(DivergencePolicy, "__init__", build_late)


def test_a_checkpoint_without_the_state_of_divergence_can_be_resumed() -> None:
    undisturbed = finished_event(run_events()).run
    stopped = finished_event(run_events(stop_after=4))
    path = stopped.checkpoint / "trainer.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    del values["divergence"]
    path.write_text(json.dumps(values), encoding="utf-8")
    list_in_manifest(path)
    assert Outcome.of(finished_event(run_events(resume=stopped.run)).run).weights == Outcome.of(undisturbed).weights


# Spikes


def multiply_losses(monkeypatch: pytest.MonkeyPatch, factors: dict[int, float]) -> None:
    """Multiply the reported loss of some steps."""
    compute_gradients = Trainer.compute_gradients
    monkeypatch.setattr(
        Trainer,
        "compute_gradients",
        lambda self, batch: compute_gradients(self, batch) * factors.get(self.step + 1, 1),
    )


TINY = dict(n_layer=1, n_head=1, n_embd=8, block_size=8, batch_size=2, keep_checkpoints=0)
LONG = TINY | dict(max_steps=SPIKE_WINDOW + 12, eval_every=70, log_every=3, learning_rate=1e-3)
SPIKES = {SPIKE_WINDOW + 3: 20.0, SPIKE_WINDOW + 8: 100.0}


def test_a_spike_is_reported_and_counted_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = Outcome.of(finished_event(run_events(**LONG)).run)
    multiply_losses(monkeypatch, SPIKES)
    events = run_events(**LONG)
    notices = [event.text for event in events_of(events, training.Notice) if "spike" in event.text]
    assert [f"step {step}:" in notice for step, notice in zip(SPIKES, notices, strict=True)] == [True, True]
    for step in events_of(events, training.Step):
        assert (step.spikes, step.skipped_steps) == (sum(step.step >= spike for spike in SPIKES), 0)
    assert Outcome.of(finished_event(events).run).weights == undisturbed.weights
    read_losses_late(monkeypatch)
    late = run_events(**LONG)
    assert events_of(late, training.Notice) == events_of(events, training.Notice)
    assert Outcome.of(finished_event(late).run) == Outcome.of(finished_event(events).run)


def test_skip_spikes_skips_them_the_same_way_twice_and_after_a_kill(monkeypatch: pytest.MonkeyPatch) -> None:
    multiply_losses(monkeypatch, SPIKES)
    applied = Outcome.of(finished_event(run_events(**LONG)).run)
    events = run_events(**LONG, skip_spikes=True)
    assert events_of(events, training.Step)[-1].skipped_steps == 2
    first = Outcome.of(finished_event(events).run)
    assert first.weights != applied.weights
    kill_after(SPIKE_WINDOW + 4, training.events(training.plan("text.txt", **SMALL | LONG | {"skip_spikes": True})))
    resumed = run_events(resume=Path("runs/text-3"))
    assert Outcome.of(finished_event(resumed).run) == first


def test_a_spike_is_six_standard_deviations_above_a_full_window() -> None:
    window = [1.0, 3.0] * (SPIKE_WINDOW // 2)  # mean 2, standard deviation 1
    assert not divergence.is_spike(7.99, window)
    assert divergence.is_spike(8.01, window)
    assert not divergence.is_spike(100.0, window[1:])
    assert not divergence.is_spike(-100.0, window)


def test_a_loss_that_stays_high_stops_being_a_spike() -> None:
    window, spikes = [1.0, 1.1] * (SPIKE_WINDOW // 2), 0
    while divergence.is_spike(100.0, window):
        spikes += 1
        window = [*window, 100.0][-SPIKE_WINDOW:]
    assert spikes == 4


# Bounds


def decide(policy: DivergencePolicy, losses: list[float]) -> list[bool]:
    norm = torch.ones(())
    return [policy.approves(step, torch.tensor(loss), norm) for step, loss in enumerate(losses, start=1)]


def small_policy(precision: str = "fp32", **changes: object) -> DivergencePolicy:
    settings = resolve(**{**SMALL, "vocab_size": 20, "on_divergence": "skip", **changes})
    runtime = Runtime(torch.device("cpu"), precision)
    return DivergencePolicy(Trainer(GPT(settings, torch.Generator().manual_seed(0)), settings, runtime))


def test_skips_are_bounded_in_a_row_and_in_all() -> None:
    decisions = decide(small_policy(), [*[math.nan] * MAX_SKIPS_IN_A_ROW, 1.0] * 9)
    assert decisions == [*[False] * MAX_SKIPS_IN_A_ROW, True] * 9
    with pytest.raises(DivergenceError, match=f"diverged at step {MAX_SKIPS_IN_A_ROW + 1}: "):
        decide(small_policy(), [math.nan] * (MAX_SKIPS_IN_A_ROW + 1))
    with pytest.raises(DivergenceError, match=f"step {2 * MAX_SKIPS + 1}: .*{MAX_SKIPS} skipped updates"):
        decide(small_policy(), [math.inf, 1.0] * (MAX_SKIPS + 1))


# Loss scaling


@pytest.mark.parametrize("policy", ["stop", "skip", "rollback"])
def test_gradients_that_overflow_in_fp16_are_left_to_loss_scaling(policy: str) -> None:
    fp16 = small_policy("fp16", on_divergence=policy)
    trainer = fp16.trainer
    batch = np.random.default_rng(0).integers(0, 20, (6, 17))
    scales = []
    for step in range(1, 5):
        loss = trainer.compute_gradients(batch)
        if step in (2, 3):
            gradient = trainer.model.transformer.wpe.weight.grad
            assert gradient is not None
            gradient[0, 0] = math.inf
        grad_norm = trainer.clip_gradients()
        before = trainer.model.transformer.wpe.weight.detach().clone()
        if fp16.approves(step, loss, grad_norm):
            trainer.apply_gradients(grad_norm)
        trainer.end_step()
        assert torch.equal(trainer.model.transformer.wpe.weight, before) == (step in (2, 3))
        scales.append(trainer.scaler.get_scale())
    assert scales == [65536, 32768, 16384, 16384]
    assert (fp16.state.skipped_steps, fp16.take_notices()) == (0, [])


def test_a_loss_scale_that_falls_without_end_is_divergence() -> None:
    fp16 = small_policy("fp16")
    fp16.trainer.scaler = torch.amp.GradScaler("cpu", init_scale=5e-5)
    fp16.trainer.scaler.scale(torch.ones(()))  # creates the scale
    assert not fp16.approves(1, torch.ones(()), torch.tensor(math.inf))
    assert "loss scale" in fp16.take_notices()[0]
    assert small_policy("fp16").approves(1, torch.ones(()), torch.tensor(math.inf))


# Absurd settings: training diverges or not, but ends with a clear message and without a checkpoint that is not finite

ABSURD: list[dict[str, object]] = [
    {"learning_rate": 100.0},
    {"learning_rate": 100.0, "optimizer": "adamw", "grad_clip": 0.0},
    {"learning_rate": 10.0, "weight_decay": 50.0, "optimizer": "adamw"},
    {"learning_rate": 100.0, "weight_decay": 100.0},
    {"muon_learning_rate": 100.0},
    {"muon_learning_rate": 100.0, "muon_weight_decay": 100.0, "momentum": 0.99999},
    {"learning_rate": 0.0, "muon_learning_rate": 0.0},
    {"learning_rate": 1e-300, "muon_learning_rate": 100.0},
    {"beta1": 0.0, "beta2": 0.0, "learning_rate": 100.0, "optimizer": "adamw"},
    {"beta1": 0.99999, "beta2": 0.0, "learning_rate": 10.0, "optimizer": "adamw"},
    {"grad_clip": 1e-300},
    {"grad_clip": 1e9, "learning_rate": 100.0, "optimizer": "adamw"},
    {"dropout": 0.99, "attention_dropout": 0.99, "learning_rate": 100.0},
    {"learning_rate": 100.0, "precision": "bf16", "optimizer": "adamw", "weight_decay": 100.0},
    {"n_embd": 2, "n_head": 2, "learning_rate": 100.0, "weight_decay": 50.0},
]
if not IS_TORTURE:
    ABSURD = ABSURD[:4]


@pytest.mark.parametrize("policy", ["stop", "skip", "rollback"] if IS_TORTURE else ["stop"])
@pytest.mark.parametrize("absurd", ABSURD, ids=lambda absurd: " ".join(f"{k}={v}" for k, v in absurd.items()))
def test_absurd_settings_end_with_a_message(absurd: dict[str, object], policy: str, report: Report) -> None:
    changes = {"warmup_steps": 0, "schedule": "constant", "max_steps": 60, "eval_every": 25, "keep_checkpoints": 30}
    try:
        events = run_events(**changes, log_every=1000, on_divergence=policy, **absurd)
    except DivergenceError:
        report("absurd settings", 1, ends_with_a_message=1, finite_to_the_end=0)
        return
    assert math.isfinite(finished_event(events).val_loss or math.nan)
    report("absurd settings", 1, ends_with_a_message=0, finite_to_the_end=1)


@pytest.mark.parametrize(
    "invalid",
    [
        {"learning_rate": 1e6},
        {"learning_rate": -1.0},
        {"learning_rate": math.nan},
        {"learning_rate": math.inf},
        {"weight_decay": math.inf},
        {"batch_size": 0},
        {"batch_size": -1},
        {"block_size": 0},
        {"max_steps": -1},
        {"grad_clip": -1.0},
        {"dropout": 1.0},
        {"beta2": 1.0},
        {"log_every": 0},
        {"on_divergence": "ignore"},
        {"skip_spikes": 1},
    ],
    ids=str,
)
def test_settings_outside_their_bounds_are_rejected(invalid: dict[str, object], folder: Path) -> None:
    with pytest.raises(SettingError) as caught:
        run_events(**invalid)
    assert caught.value.names == tuple(invalid)
    assert caught.value.hint
    assert not (folder / "runs").exists()
