"""A model that is divided among processes is trained and evaluated like a whole one.

Here FSDP2 runs in a world of one process; `tests/reliability/test_processes.py` starts several.
"""

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import octavo
from octavo import fused_step, scaling, training
from octavo.device import Runtime, check_model_fits, total_memory
from octavo.distributed import ALONE, Group, LostProcessError, World, check_shard, rows_of_rank
from octavo.errors import MachineError, OctavoError
from octavo.estimate import Memory
from octavo.loss import split_loss
from octavo.model import GPT
from octavo.settings import Settings, resolve
from octavo.training import loop
from octavo.training.layout import Layout
from octavo.training.optimizers.muon import Muon
from octavo.training.sharding import Sharded
from octavo.training.silent_recorder import SilentRecorder
from octavo.training.step import Trainer
from preparing import error_of
from small_runs import SMALL, enter_folder, losses

VARIANTS: dict[str, dict[str, Any]] = {
    "muon": {"dropout": 0.2, "attention_dropout": 0.1},
    "adamw": {"optimizer": "adamw", "grad_clip": 0.1},
    "bf16": {"precision": "bf16", "dropout": 0.2, "micro_batch": 2},
    "checkpointed activations": {"checkpoint_activations": True, "dropout": 0.2},
}


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A world of one process, connected to itself."""
    store = dist.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield Group(0, 1, 0, store, timeout=60)
    dist.destroy_process_group()


def settings_of(**changes: Any) -> Settings:
    return resolve(**{**SMALL, "vocab_size": 65, **changes})


def new_trainer(settings: Settings, world: World = ALONE, shard: int = 0) -> Trainer:
    runtime = Runtime(torch.device("cpu"), settings.precision)
    trainer = Trainer(GPT(settings, torch.Generator().manual_seed(0)), settings, runtime, world, shard)
    trainer.fused_step = None  # a sharded model runs in autograd, whose last bits differ from those of the C code
    return trainer


def batch(settings: Settings, number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 65, (settings.batch_size, settings.block_size + 1))


def whole_tensors(trainer: Trainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.tensors(trainer.state())}


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_sharded_model_has_the_bits_of_a_whole_one(
    variant: str, group: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In updates, in evaluations between them, after restoring a checkpoint and after loading other weights."""
    monkeypatch.setattr("octavo.loss.forward_loss", lambda model: None)  # autograd's forward for both, as in a step
    settings = settings_of(**VARIANTS[variant])
    whole, sharded = new_trainer(settings), new_trainer(settings, group, shard=1)
    tokens = np.random.default_rng(0).integers(0, 65, 300)
    start = whole_tensors(sharded)
    for number in range(3):
        for first, second in zip(
            whole.update(batch(settings, number)), sharded.update(batch(settings, number)), strict=True
        ):
            assert torch.equal(first, second)
        assert split_loss(whole.model, tokens, 16) == split_loss(sharded.model, tokens, 16, world=group)
    assert_equal(whole_tensors(whole), whole_tensors(sharded))
    moved = whole_tensors(sharded)["transformer.wte.weight"] != start["transformer.wte.weight"]
    assert moved.any(1).all()  # the head is tied to wte: its rows are all trained

    state = whole.state()
    for trainer in (whole, sharded):
        trainer.load_weights(GPT(settings, torch.Generator().manual_seed(1)))
        trainer.restore(copy.deepcopy(state))
    assert split_loss(whole.model, tokens, 16) == split_loss(sharded.model, tokens, 16, world=group)
    whole.update(batch(settings, 3))
    sharded.update(batch(settings, 3))
    assert_equal(whole_tensors(whole), whole_tensors(sharded))
    assert_equal(dict(whole.model.named_parameters()), dict(sharded.whole_model().named_parameters()))


@pytest.fixture
def small_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory has a small text."""
    enter_folder(tmp_path, monkeypatch)


@pytest.fixture
def any_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow groups of one process, which have no use, but save a test the others."""
    for module in (loop, scaling):
        monkeypatch.setattr(module, "check_shard", lambda *arguments: None)


@pytest.mark.usefixtures("small_folder", "any_shard")
def test_a_sharded_run_writes_the_files_of_a_whole_one_also_after_a_rollback(
    group: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused_step, "is_supported", lambda settings: False)  # the C code has other last bits
    compute_gradients = Trainer.compute_gradients
    diverged = set()

    def compute_nan_once(trainer: Trainer, batch: np.ndarray) -> Tensor:
        loss = compute_gradients(trainer, batch)
        if trainer.step != 6 or trainer.shard in diverged:
            return loss
        diverged.add(trainer.shard)
        return loss * torch.nan

    monkeypatch.setattr(Trainer, "compute_gradients", compute_nan_once)
    plan = {"source": "text.txt", **SMALL, "sample_every": 4, "on_divergence": "rollback"}
    for shard, name in ((0, "whole"), (1, "sharded")):
        list(training.events(training.plan(**plan, out=name), world=group, shard=shard))
    assert diverged == {0, 1}
    assert octavo.Run("whole").lines("samples") == octavo.Run("sharded").lines("samples")
    assert losses(Path("whole")) == losses(Path("sharded"))
    names = sorted(path.relative_to("whole") for path in Path("whole").rglob("*.safetensors"))
    assert len(names) > 5
    assert all(Path("whole", name).read_bytes() == Path("sharded", name).read_bytes() for name in names)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 7, 65, 64])
def test_rows_are_divided_as_torch_does(count: int, size: int) -> None:
    rows = torch.arange(count)
    parts = [rows[rows_of_rank(count, rank, size)] for rank in range(size)]
    assert torch.equal(torch.cat(parts), rows)
    chunks = torch.chunk(rows, size)
    assert all(torch.equal(part, chunk) for part, chunk in zip(parts, chunks, strict=False))


class Recorder(World):
    """One of several processes, which keeps what it would put together with the others' parts."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.parts: list[Tensor] = []

    def all_gather(self, part: Tensor, count: int, group: Any = None) -> Tensor:
        self.parts.append(part)
        return part.new_zeros(count, *part.shape[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [16, 96])
@pytest.mark.parametrize("size", [2, 3, 8, 40])
def test_processes_that_divide_muons_squares_compute_the_bits_of_one(size: int, width: int, dtype: torch.dtype) -> None:
    def squares(world: Recorder) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        shapes = 2 * [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)]
        matrices = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
        for matrix in matrices:
            matrix.grad = torch.randn(matrix.shape, generator=generator)
        Muon(matrices, dtype=dtype, layout=Layout({}, world)).step()
        return torch.cat(world.parts)

    divided = torch.cat([squares(Recorder(rank, size)) for rank in range(size)])
    assert torch.equal(divided, squares(Recorder(0, 1)))


@pytest.mark.parametrize(
    ("shard", "processes", "hint"),
    [(-1, 4, "--shard 2"), (2, 1, "--processes 2"), (3, 4, "--shard 4"), (9, 6, "--shard 6")],
)
def test_groups_that_cannot_be_formed_are_rejected(shard: int, processes: int, hint: str) -> None:
    assert error_of(lambda: check_shard(shard, processes)).hint == hint
    check_shard(0, processes)


def test_a_sharded_model_needs_several_processes() -> None:
    with pytest.raises(OctavoError, match="--processes 2"):
        next(training.events(training.plan("text.txt", **SMALL), shard=2))


def test_a_model_that_is_too_large_for_one_process_may_be_divided() -> None:
    device = torch.device("cpu")
    total = total_memory(device)
    if total is not None:  # Windows does not report it
        parameters = total // 10  # of 16 bytes each
        assert "to train" in error_of(lambda: check_model_fits(parameters, device)).message
        check_model_fits(parameters, device, parts=2)
        assert "divided among 2 processes" in error_of(lambda: check_model_fits(2 * parameters, device, 2)).message


def test_a_sharded_model_does_not_try_again_with_a_smaller_micro_batch(
    group: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other processes would wait: they are in the middle of the model."""
    trainer = new_trainer(settings_of(), group, shard=1)

    def fail(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer.model, "embed", fail)
    with pytest.raises(MachineError) as caught:
        trainer.update(batch(trainer.settings, 0))
    assert caught.value.hint is not None
    assert "--micro-batch 3" in caught.value.hint


def test_an_error_inside_a_sharded_model_names_the_collective(group: World) -> None:
    with pytest.raises(LostProcessError, match="a collective has failed: Connection closed"), group.translate_errors():
        raise RuntimeError("Connection closed by peer\nmore")


@pytest.mark.parametrize(
    "message",
    [
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:1234",
        "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 10000ms for recv",
        dist.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:94, remote process exited"),
        dist.DistStoreError("Socket Timeout"),
        TimeoutError("timed out after 600 s"),
    ],
)
def test_an_error_of_a_collective_inside_a_sharded_model_is_recognized(message: str | Exception, group: World) -> None:
    error = message if isinstance(message, Exception) else RuntimeError(message)
    with pytest.raises(LostProcessError), group.translate_errors(only_collectives=False):
        raise error


def test_another_error_inside_a_sharded_model_is_not_called_a_failed_exchange(group: World) -> None:
    with pytest.raises(RuntimeError, match="shapes"), group.translate_errors(only_collectives=False):
        torch.zeros(2, 3) @ torch.zeros(2, 3)


@pytest.mark.usefixtures("small_folder", "any_shard")
@pytest.mark.parametrize("rank", ["first", "another"])
def test_too_little_memory_to_gather_a_checkpoint_is_one_message(
    rank: str, group: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    if rank == "another":
        monkeypatch.setattr(loop, "Recorder", SilentRecorder)

    def fail(*arguments: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr(Sharded, "gather", fail)
    with pytest.raises(MachineError, match="to gather the"):
        list(training.events(training.plan("text.txt", **SMALL, out="run"), world=group, shard=1))


@pytest.mark.usefixtures("small_folder", "any_shard")
def test_a_sharded_run_reports_the_memory_of_a_part(group: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    memory = scaling.memory

    def ask(*arguments: Any) -> Memory:
        asked.append(arguments[4].shard)
        return memory(*arguments)

    monkeypatch.setattr(scaling, "memory", ask)
    events = training.events(training.plan("text.txt", **SMALL, out="run"), world=group, shard=1)
    next(event for event in events if isinstance(event, training.Started))
    events.close()
    assert asked == [1]


def test_replicas_are_compared_with_the_process_that_has_the_same_part() -> None:
    trainer = new_trainer(settings_of())
    world = Recorder(0, 4)
    trainer.world, trainer.layout.parts = world, 2
    for values, different in (
        ([1, 2, 1, 2], None),
        ([1, 2, 1, 3], "process 3 has other weights than process 1"),
        ([1, 2, 3, 4], "process 2 has other weights than process 0, process 3 has other weights than process 1"),
    ):
        world.all_gather_object = lambda value, values=values: values  # type: ignore[method-assign]
        if different is None:
            trainer.check_replicas()
            continue
        with pytest.raises(MachineError, match=different):
            trainer.check_replicas()


def test_no_setting_is_saved_of_how_a_model_is_divided() -> None:
    assert "shard" not in {field.name for field in dataclasses.fields(Settings)}
