"""The update: gradient accumulation, clipping, dropout, out of memory, torch.compile, curriculum; the schedules."""

import dataclasses
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch._inductor.exc import InductorError

from octavo.device import Runtime
from octavo.errors import MachineError, OctavoError
from octavo.fused_step import FusedStep
from octavo.model import GPT
from octavo.settings import Settings, resolve
from octavo.training import optimizers, schedule
from octavo.training.layout import Layout, norm
from octavo.training.step import Trainer
from small_runs import RECIPE, SMALL

CPU = Runtime(torch.device("cpu"))


def random_batch(settings: Settings, rows: int = 6) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 20, (rows, settings.block_size + 1))


def small_trainer(**changes: object) -> Trainer:
    settings = resolve(**{**SMALL, "vocab_size": 20, **changes})
    return Trainer(GPT(settings, torch.Generator().manual_seed(0)), settings, CPU)


@pytest.mark.parametrize("micro_batch", [1, 2, 4, 5])
def test_gradient_accumulation_does_not_change_the_update(micro_batch: int) -> None:
    trainer, accumulating = small_trainer(), small_trainer(micro_batch=micro_batch)
    batch = random_batch(trainer.settings)
    for _ in range(3):
        (loss, norm), (accumulated_loss, accumulated_norm) = trainer.update(batch), accumulating.update(batch)
        torch.testing.assert_close(accumulated_loss, loss, atol=1e-5, rtol=0)
        torch.testing.assert_close(accumulated_norm, norm, atol=1e-4, rtol=0)


def test_dropout_depends_only_on_seed_step_and_row() -> None:
    first, second = small_trainer(dropout=0.5), small_trainer(dropout=0.5)
    torch.manual_seed(123)
    torch.rand(7)
    batch = random_batch(first.settings)
    assert first.update(batch)[0] == second.update(batch)[0]
    other = small_trainer(dropout=0.5, seed=2)
    assert other.update(batch)[0] != small_trainer(dropout=0.5).update(batch)[0]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("changes", [{}, {"curriculum_splits": 4}], ids=["", "curriculum"])
def test_activation_checkpointing_changes_no_bit(precision: str, changes: dict[str, object]) -> None:
    def train(checkpoint_activations: bool) -> list[torch.Tensor]:
        changed = {"dropout": 0.2, "attention_dropout": 0.1, "micro_batch": 2, **changes}
        settings = resolve(**{**SMALL, **changed}, vocab_size=20, checkpoint_activations=checkpoint_activations)
        runtime = Runtime(torch.device("cpu"), precision)
        trainer = Trainer(GPT(settings, torch.Generator().manual_seed(0)), settings, runtime)
        losses = [each for _ in range(3) for each in trainer.update(random_batch(settings))]
        return losses + list(trainer.model.parameters())

    kept, computed_again = train(False), train(True)
    assert all(torch.equal(first, second) for first, second in zip(kept, computed_again, strict=True))


def test_gradients_are_clipped_to_grad_clip() -> None:
    unclipped, clipped = (
        small_trainer(grad_clip=0.0, optimizer="adamw"),
        small_trainer(grad_clip=0.1, optimizer="adamw"),
    )
    batch = random_batch(unclipped.settings)
    norms: list[float] = []
    for each in (unclipped, clipped):
        (adamw,) = each.optimizers
        step = adamw.step

        def record_norm(*args: object, each: Trainer = each, step: Callable = step, **kwargs: object) -> object:
            gradients = [p.grad.flatten() for p in each.model.parameters() if p.grad is not None]
            norms.append(torch.cat(gradients).norm().item())
            return step(*args, **kwargs)

        adamw.step = record_norm
        _, norm = each.update(batch)
        assert norm.item() > 0.1
    assert norms[0] > 0.1
    assert norms[1] == pytest.approx(0.1, rel=1e-3)


def test_the_gradient_norm_is_exact_and_does_not_depend_on_how_rows_are_divided() -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(shape, generator=generator) for shape in ((5000, 96), (65, 96), (96, 384), (96,), (3,))]
    exact = math.sqrt(sum(gradient.double().square().sum().item() for gradient in gradients))
    assert norm(gradients).item() == pytest.approx(exact, rel=1e-7)
    for parts in (2, 3, 8, 64):
        divided = [each for gradient in gradients for each in gradient.chunk(parts)]
        assert norm(divided).float() == norm(gradients).float()


def test_only_matrices_have_weight_decay() -> None:
    model = GPT(resolve(**SMALL, vocab_size=20))
    (optimizer,) = optimizers.build_optimizers(
        Layout(dict(model.named_parameters())), resolve(weight_decay=0.3, optimizer="adamw")
    )
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in decayed) == (parameter.dim() >= 2), name
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.3, 0.0}


def test_out_of_memory_halves_the_micro_batch_with_a_notice_and_the_same_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, limited = small_trainer(), small_trainer()
    batch = random_batch(plain.settings)
    allocate = FusedStep.allocate

    def fail_above_two_rows(step: FusedStep, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        if name == "ids" and shape[0] > 2 and step is limited.fused_step:
            raise torch.OutOfMemoryError("out of memory")
        return allocate(step, name, shape, dtype)

    monkeypatch.setattr(FusedStep, "allocate", fail_above_two_rows)
    torch.testing.assert_close(limited.update(batch)[0], plain.update(batch)[0], atol=1e-5, rtol=0)
    assert limited.micro_batch == 1
    assert [notice for notice in limited.notices if "out of memory" in notice]


def test_a_sequence_too_large_for_memory_is_an_error_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    too_large = small_trainer()

    def fail(*arguments: object) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(FusedStep, "allocate", fail)
    with pytest.raises(OctavoError, match="does not fit into the memory") as caught:
        too_large.update(random_batch(too_large.settings))
    assert "--block-size" in str(caught.value)


def test_an_optimizer_step_too_large_for_memory_is_an_error_about_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    too_large = small_trainer()

    def fail(*arguments: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(too_large.optimizers[0], "step", fail)
    with pytest.raises(MachineError, match="optimizer step") as caught:
        too_large.update(random_batch(too_large.settings))
    assert "--n-embd" in str(caught.value)


def test_other_runtime_errors_under_torch_compile_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function: function)
    settings = resolve(**SMALL, vocab_size=20)
    failing = Trainer(GPT(settings), settings, dataclasses.replace(CPU, compile=True))

    def fail(ids: torch.Tensor, start: int) -> torch.Tensor:
        raise RuntimeError("something else")

    monkeypatch.setattr(failing.model, "embed", fail)
    with pytest.raises(RuntimeError, match="something else"):
        failing.update(random_batch(failing.settings))
    assert failing.compiled
    assert failing.notices == []


def test_a_compile_failure_falls_back_to_uncompiled_steps_with_a_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_lazily(function: object) -> Callable:
        def fail(ids: torch.Tensor, start: int) -> torch.Tensor:
            raise InductorError(RuntimeError("no working C++ compiler\nwith more lines"), None)

        return fail

    plain = small_trainer()
    monkeypatch.setattr(torch, "compile", compile_lazily)
    settings = resolve(**SMALL, vocab_size=20)
    fallback = Trainer(
        GPT(settings, torch.Generator().manual_seed(0)), settings, dataclasses.replace(CPU, compile=True)
    )
    batch = random_batch(settings)
    torch.testing.assert_close(fallback.update(batch)[0], plain.update(batch)[0])  # plain runs in C
    (notice,) = fallback.notices
    assert notice.startswith("torch.compile failed")
    assert notice.endswith("no working C++ compiler")  # the first line


def test_a_system_without_torch_compile_trains_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(function: object) -> Callable:
        raise RuntimeError("torch.compile is not supported here")

    monkeypatch.setattr(torch, "compile", refuse)
    settings = resolve(**SMALL, vocab_size=20)
    trainer = Trainer(GPT(settings), settings, dataclasses.replace(CPU, compile=True))
    trainer.update(random_batch(settings))
    (notice,) = trainer.notices
    assert "torch.compile is not supported here" in notice


def test_other_runtime_errors_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    failing = small_trainer()

    def fail(*arguments: object) -> torch.Tensor:
        raise RuntimeError("something else")

    monkeypatch.setattr(FusedStep, "allocate", fail)
    with pytest.raises(RuntimeError, match="something else"):
        failing.update(random_batch(failing.settings))


def test_the_curriculum_trains_every_position() -> None:
    """Gradient accumulation does not change its losses."""
    shape = dict(n_layer=1, n_head=1, n_embd=8, vocab_size=30)
    settings = resolve(**RECIPE, **shape, weight_init="noise", weight_decay=0.0, schedule="constant")
    batch = np.random.default_rng(0).integers(0, 30, (24, 5))  # sequences of a quarter of the block
    trainers = [
        Trainer(GPT(settings, torch.Generator().manual_seed(0)), dataclasses.replace(settings, micro_batch=rows), CPU)
        for rows in (6, 1)
    ]
    before = trainers[0].model.transformer.wpe.weight.detach().clone()
    trained = torch.zeros(16, dtype=torch.bool)
    for _ in range(30):
        previous = trainers[0].model.transformer.wpe.weight.detach().clone()
        loss, accumulated_loss = (trainer.update(batch)[0] for trainer in trainers)
        torch.testing.assert_close(loss, accumulated_loss, atol=1e-4, rtol=0)
        changed = (trainers[0].model.transformer.wpe.weight.detach() != previous).any(1)
        assert changed.any()
        trained |= changed
    assert trained.all()
    assert not torch.equal(before, trainers[0].model.transformer.wpe.weight)


# The learning-rate schedule


def rates(**changes: object) -> list[float]:
    settings = resolve(max_steps=100, warmup_steps=10, learning_rate=1.0, min_learning_rate=0.1, **changes)
    return [schedule.learning_rate(step, settings) for step in range(101)]


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd", "constant"])
def test_every_schedule_warms_up_to_the_peak_and_then_never_rises(name: str) -> None:
    curve = rates(schedule=name)
    assert curve[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert curve[10] == pytest.approx(1.0)
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(curve[10:]))
    assert curve[-1] == pytest.approx(1.0 if name == "constant" else 0.1)


def test_each_schedule_has_its_shape() -> None:
    assert rates(schedule="cosine")[55] == pytest.approx(0.55)
    assert rates(schedule="linear")[55] == pytest.approx(0.55)
    assert rates(schedule="cosine")[32] > rates(schedule="linear")[32]
    assert rates(schedule="wsd")[81] == pytest.approx(1.0)
    assert rates(schedule="wsd")[91] == pytest.approx(0.55)


def test_the_cosine_schedule_matches_nanogpt() -> None:
    curve = rates(schedule="cosine")
    for step in range(10, 101):
        ratio = (step - 10) / 90
        assert curve[step] == pytest.approx(0.1 + 0.5 * (1 + math.cos(math.pi * ratio)) * 0.9)
