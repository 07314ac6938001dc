"""Several processes divide a batch and an evaluation: their parts add up to what one process computes.

Here each part is computed in this process, one after the other. `tests/reliability/test_processes.py` starts processes.
"""

import copy
import dataclasses
import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
from torch import Tensor

from commands import SMALL as COMMAND
from commands import AssertRejected, RunCommand
from octavo import distributed, training
from octavo.data.sampler import batches
from octavo.data.shards import Shards, open_npy
from octavo.device import Runtime
from octavo.distributed import ALONE, World
from octavo.errors import MachineError, OctavoError
from octavo.loss import StoppedError, split_loss
from octavo.model import GPT
from octavo.settings import Settings, resolve
from octavo.training.setup import check_same_setup, set_up
from octavo.training.step import Trainer
from preparing import error_of
from small_runs import SMALL, enter_folder


class Part(World):
    """One of several processes, without the others: it keeps what it would exchange."""

    def __init__(self, rank: int, size: int, others: Any = None) -> None:
        self.rank, self.size, self.others = rank, size, others
        self.exchanged: list[Tensor] = []

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        self.exchanged += [tensor.clone() for tensor in tensors]

    def all_gather_object(self, value: Any) -> list[Any]:
        return [value, *[value if self.others is None else self.others] * (self.size - 1)]


def parts(size: int) -> list[Part]:
    return [Part(rank, size) for rank in range(size)]


def small_trainer(world: World, **changes: Any) -> Trainer:
    settings = resolve(**{**SMALL, "batch_size": 24, "vocab_size": 20, **changes})
    return Trainer(GPT(settings, torch.Generator().manual_seed(0)), settings, Runtime(torch.device("cpu")), world)


def batch_of(settings: Settings) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 20, (settings.batch_size, settings.block_size + 1))


def gradients(trainer: Trainer) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in trainer.model.named_parameters() if parameter.grad is not None}


# The batch


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("changes", [{}, {"curriculum_splits": 4, "curriculum_fraction": 0.5}], ids=["", "curriculum"])
def test_the_rows_of_all_processes_are_the_batch(size: int, changes: dict[str, Any], tmp_path: Path) -> None:
    settings = resolve(**{**SMALL, "batch_size": 8, **changes})
    np.save(tmp_path / "tokens.npy", np.arange(5000, dtype=np.uint16))
    tokens = Shards([open_npy(tmp_path / "tokens.npy")])
    whole = batches(tokens, settings)
    divided = [batches(tokens, settings, part) for part in parts(size)]
    for step in range(settings.max_steps):
        rows = [batch_of_step(step) for batch_of_step in divided]
        assert len({len(each) for each in rows}) == 1
        assert (np.concatenate(rows) == whole(step)).all()


def test_a_batch_that_cannot_be_divided_is_rejected() -> None:
    assert error_of(lambda: Part(0, 3).rows(32)).hint == "--batch-size 30"
    assert error_of(lambda: Part(0, 3).rows(2)).hint == "--batch-size 3"


# Gradients


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("micro_batch", [1, 3, 5])
def test_gradients_of_uneven_micro_batches_add_up_to_those_of_the_whole_batch(size: int, micro_batch: int) -> None:
    trainers = [small_trainer(part, micro_batch=micro_batch) for part in parts(size)]
    settings, model = trainers[0].settings, copy.deepcopy(trainers[0].model).double()
    batch = batch_of(settings)
    ids = torch.from_numpy(batch)
    logits = model(ids[:, :-1]).flatten(0, 1)
    exact_loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
    exact_loss.backward()
    loss = sum(float(each.compute_gradients(batch[each.world.rows(len(batch))])) for each in trainers)
    assert loss == pytest.approx(exact_loss.item(), abs=1e-6)
    for name, parameter in model.named_parameters():
        summed = sum(gradients(trainer)[name].double() for trainer in trainers)
        assert parameter.grad is not None
        torch.testing.assert_close(summed, parameter.grad, atol=1e-6, rtol=0)


@pytest.mark.parametrize("attention_dropout", [0.0, 0.1])  # in C, in autograd
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_processes_have_the_bits_of_one_with_the_same_micro_batch(precision: str, attention_dropout: float) -> None:
    changes = {"micro_batch": 12, "dropout": 0.2, "attention_dropout": attention_dropout, "precision": precision}
    alone, *divided = [small_trainer(world, **changes) for world in (ALONE, *parts(2))]
    batch = batch_of(alone.settings)
    losses = [each.compute_gradients(batch[each.world.rows(len(batch))]) for each in (alone, *divided)]
    assert torch.equal(losses[0], losses[1] + losses[2])
    for name, gradient in gradients(alone).items():
        assert torch.equal(gradient, gradients(divided[0])[name] + gradients(divided[1])[name]), name


def test_what_is_exchanged_is_the_loss_and_every_gradient() -> None:
    [part, _] = parts(2)
    trainer = small_trainer(part)
    loss = trainer.compute_gradients(batch_of(trainer.settings)[:12])
    assert torch.equal(part.exchanged[0], loss)
    assert [each.shape for each in part.exchanged[1:]] == [p.shape for p in trainer.model.parameters()]


def test_other_weights_than_those_of_the_first_process_are_an_error() -> None:
    small_trainer(Part(0, 3)).check_replicas()
    trainer = small_trainer(Part(0, 3, others=1))
    expected = "process 1 has other weights than process 0, process 2 has other weights than process 0"
    with pytest.raises(MachineError, match=expected):
        trainer.check_replicas()


# Evaluation


@pytest.mark.parametrize("tokens", [2, 17, 1000])
def test_the_loss_of_a_split_does_not_depend_on_the_number_of_processes(tokens: int) -> None:
    model = small_trainer(ALONE).model
    ids = np.random.default_rng(0).integers(0, 20, tokens)
    exact = split_loss(model, ids, 16, tokens_per_batch=64)
    for size in (2, 3):
        world = parts(size)
        for part in world:
            split_loss(model, ids, 16, tokens_per_batch=64, world=part)
        total = sum(each.exchanged[0] for each in world)
        assert float(total) / (tokens - 1) == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_all_processes_ask_whether_to_stop_in_the_same_rounds(stop_at: int) -> None:
    """Two processes compute four of the five batches in two rounds, and one of them computes the last."""
    model = small_trainer(ALONE).model
    ids = np.random.default_rng(0).integers(0, 20, 5 * 64 + 1)
    for part in parts(2):
        rounds: list[bool] = []

        def should_stop(rounds: list[bool] = rounds) -> bool:
            rounds.append(True)
            return len(rounds) == stop_at

        with pytest.raises(StoppedError):
            split_loss(model.train(), ids, 16, tokens_per_batch=64, world=part, should_stop=should_stop)
        assert len(rounds) == stop_at
        assert model.training
        assert part.exchanged == []


# What the processes start with


@pytest.mark.parametrize(
    ("name", "changes"),
    [("the text and its tokens", {"the text and its tokens": "another"}), ("the settings", {"the settings": {}})],
)
def test_processes_that_start_with_different_things_are_rejected(
    name: str, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter_folder(tmp_path, monkeypatch)
    setup = set_up(training.plan("text.txt", **SMALL)).result
    recorder = Part(0, 2)
    monkeypatch.setattr(recorder, "all_gather_object", lambda value: [value, value | changes])
    assert name in error_of(lambda: check_same_setup(setup, recorder)).message
    check_same_setup(setup, Part(0, 2))
    with_fp16 = dataclasses.replace(setup, settings=dataclasses.replace(setup.settings, precision="fp16"))
    assert "fp16" in error_of(lambda: check_same_setup(with_fp16, Part(0, 2))).message
    check_same_setup(with_fp16, ALONE)
    on_mps = dataclasses.replace(setup, runtime=Runtime(torch.device("mps")))
    assert "mps" in error_of(lambda: check_same_setup(on_mps, Part(0, 2))).message


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({"WORLD_SIZE": "2"}, "RANK"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": ""}, "LOCAL_RANK"),
        (
            {
                "WORLD_SIZE": "2",
                "RANK": "0",
                "LOCAL_RANK": "0",
                "TORCHELASTIC_MAX_RESTARTS": "3",
                "TORCHELASTIC_USE_AGENT_STORE": "True",
            },
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1",
        ),
    ],
)
def test_variables_of_a_launcher_that_are_missing_or_wrong_are_named(
    variables: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(OctavoError) as caught:
        distributed.join()
    assert name in str(caught.value)


def test_a_signal_ends_a_process_that_waits_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch waits for them in C++, where a handler in Python would not be called."""
    seen = []

    def wait_for_others(*arguments: object, **options: object) -> None:
        seen.append([signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)])
        raise RuntimeError("timed out")

    monkeypatch.setattr(torch.distributed, "init_process_group", wait_for_others)
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)

    def handle(number: int, frame: object) -> None:
        raise AssertionError

    before = signal.signal(signal.SIGTERM, handle)
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(MachineError, match="process 0 of 2"):
            distributed.join()
        assert seen == [[signal.SIG_DFL, signal.SIG_IGN]]
        assert signal.getsignal(signal.SIGTERM) is handle
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, ignored)


def test_an_error_of_pytorch_without_a_message_is_named_by_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(torch.distributed, "init_process_group", fail)
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(MachineError, match="process 0 of 2 can't reach the others: RuntimeError"):
        distributed.join()


def test_one_process_of_a_launcher_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert distributed.join() is ALONE


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["--processes", "3"], "2 sequences"),
        (["--processes", "0"], "--processes 0"),
        (["--processes", "2", "--shard", "3"], "--shard 2"),
        (["--processes", "2", "--shard", "-1"], "--shard -1"),
        (["--shard", "2"], "--processes 2"),
        (["--processes", "2", "--optimizer", "sgd"], "sgd"),
        (["--continue"], "--name"),
    ],
)
def test_mistakes_are_reported_before_a_process_is_started(
    words: list[str], name: str, assert_rejected: AssertRejected
) -> None:
    assert_rejected(["train", "text.txt", *COMMAND, *words], name)


def test_continue_creates_a_run_and_then_resumes_it(run_command: RunCommand) -> None:
    words = ["train", "text.txt", *COMMAND, "--name", "mine", "--continue"]
    assert run_command(*words, "--json").json["step"] == 4
    assert run_command(*words, "--max-steps", 6, "--json").json["step"] == 6
    steps = [json.loads(line)["step"] for line in Path("runs/mine/metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert run_command(*words, "--n-layer", 2).code == 2
