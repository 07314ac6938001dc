"""The sampler: every sequence once per epoch, in an order that is computed, from files that are not held in memory."""

import itertools
import math
import os
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import example, given
from hypothesis import settings as options
from hypothesis import strategies as st

from octavo.data.prefetch import Prefetch
from octavo.data.sampler import Sampler, batches, permute
from octavo.data.shards import Shard, Shards, open_npy
from octavo.distributed import World
from octavo.errors import OctavoError
from octavo.settings import resolve

SEEDS = st.integers(0, 2**63 - 1)
EPOCHS = st.integers(0, 2**40)
law = options(derandomize=True, deadline=None)


def permutation(size: int, seed: int, epoch: int) -> list[int]:
    """The images of 0, 1, 2 and so on."""
    return [int(i) for i in permute(np.arange(size, dtype=np.uint64), size, seed, epoch)]


# The permutation


@law
@given(size=st.integers(1, 3000), seed=SEEDS, epoch=EPOCHS)
def test_permute_is_a_permutation(size: int, seed: int, epoch: int) -> None:
    assert sorted(permutation(size, seed, epoch)) == list(range(size))


@pytest.mark.parametrize("size", range(1, 70))  # includes each power of two and its neighbors
def test_permute_is_a_permutation_of_every_small_size(size: int) -> None:
    assert sorted(permutation(size, seed=1337, epoch=0)) == list(range(size))


@law
@given(size=st.integers(10**6, 2**48), seed=SEEDS, epoch=EPOCHS, data=st.data())
def test_permute_is_injective_for_large_sizes_and_each_image_depends_on_its_index_alone(
    size: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    indices = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, unique=True)), dtype=np.uint64)
    images = permute(indices, size, seed, epoch)
    assert int(images.max()) < size
    assert len(np.unique(images)) == len(indices)
    for index, image in zip(indices, images, strict=True):
        assert permute(np.array([index]), size, seed, epoch)[0] == image


def test_the_order_differs_between_epochs_and_between_seeds() -> None:
    assert len({tuple(permutation(100, 1337, epoch)) for epoch in range(50)}) == 50
    assert len({tuple(permutation(100, seed, 0)) for seed in range(50)}) == 50


def test_no_two_seeds_share_the_order_of_an_epoch() -> None:
    assert len({tuple(permutation(100, seed, epoch)) for seed in range(16) for epoch in range(16)}) == 256


@pytest.mark.parametrize(
    ("size", "order"),
    [  # 4 and 16 are the largest sizes for their number of bits, 5 and 17 the smallest
        (4, [2, 1, 0, 3]),
        (5, [4, 3, 0, 1, 2]),
        (10, [6, 3, 9, 1, 2, 8, 4, 5, 7, 0]),
        (16, [6, 3, 9, 1, 2, 12, 4, 5, 15, 11, 8, 0, 10, 14, 13, 7]),
        (17, [14, 3, 12, 10, 16, 9, 0, 6, 8, 11, 1, 13, 4, 2, 7, 5, 15]),
    ],
)
def test_the_order_is_that_of_earlier_versions(size: int, order: list[int]) -> None:
    """A run that an earlier version began is resumed with the same batches."""
    assert permutation(size, seed=1337, epoch=3) == order


@pytest.mark.parametrize("size", [2, 3, 10, 30])
def test_every_index_is_equally_frequent_at_every_position(size: int) -> None:
    epochs = 200 * size
    orders = np.array([permutation(size, 1337, epoch) for epoch in range(epochs)])  # (epochs, size)
    for position in range(0, size, max(1, size // 10)):
        counts = np.bincount(orders[:, position], minlength=size)
        assert abs(counts - 200).max() < 75  # five standard deviations of uniform sampling


# Epochs

BLOCK_AND_LENGTH = st.integers(1, 40).flatmap(
    lambda block_size: st.tuples(st.just(block_size), st.integers(block_size + 1, 60 * block_size + 60))
)


def open_shard(path: Path) -> Shards:
    return Shards([open_npy(path)])


def write_positions(folder: Path, length: int) -> Shards:
    """A token file in which the id of each token is its position."""
    np.save(folder / "train.npy", np.arange(length).astype(np.uint16))
    return open_shard(folder / "train.npy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokens")


@law
@given(shape=BLOCK_AND_LENGTH, batch_size=st.integers(1, 9), seed=SEEDS, epoch=st.integers(0, 1000))
def test_an_epoch_visits_each_sequence_once(
    folder: Path, shape: tuple[int, int], batch_size: int, seed: int, epoch: int
) -> None:
    block_size, length = shape
    sampler = Sampler(write_positions(folder, length), block_size, batch_size, seed)
    per_epoch = sampler.sequences_per_epoch
    first, last = epoch * per_epoch, (epoch + 1) * per_epoch  # sequences are numbered through all epochs
    steps = range(first // batch_size, -(-last // batch_size))
    starts = np.concatenate([sampler.starts(step) for step in steps])
    starts = np.sort(starts[first - steps.start * batch_size :][:per_epoch])
    assert starts[0] >= 0
    assert starts[-1] + block_size + 1 <= length
    assert (np.diff(starts) == block_size).all()  # adjacent: no sequence is repeated or left out
    assert length - per_epoch * block_size <= 2 * block_size  # only the ends of the text are left out


@law
@given(shape=BLOCK_AND_LENGTH, batch_size=st.integers(1, 9), seed=SEEDS, step=st.integers(0, 10**9))
def test_targets_are_the_inputs_shifted_by_one(
    folder: Path, shape: tuple[int, int], batch_size: int, seed: int, step: int
) -> None:
    block_size, length = shape
    sampler = Sampler(write_positions(folder, length), block_size, batch_size, seed)
    batch = sampler.batch(step)
    assert batch.shape == (batch_size, block_size + 1)
    assert batch.dtype == np.int64
    assert sampler.starts(step).dtype == np.int64
    assert (batch[:, 0] == sampler.starts(step)).all()
    assert (batch[:, 1:] == batch[:, :-1] + 1).all()


def test_epochs_start_at_every_offset_and_the_offsets_depend_on_the_seed(folder: Path) -> None:
    def offsets(seed: int) -> list[int]:
        sampler = Sampler(write_positions(folder, 100), 8, 1, seed)
        return [int(sampler.starts(epoch * sampler.sequences_per_epoch)[0]) % 8 for epoch in range(200)]

    assert set(offsets(1337)) == set(range(8))
    assert max(offsets(1337).count(offset) for offset in range(8)) < 60
    assert len({tuple(offsets(seed)) for seed in range(20)}) == 20


def test_sequences_are_not_visited_in_the_order_of_the_text(folder: Path) -> None:
    def epoch_orders(seed: int) -> list[tuple[int, ...]]:
        sampler = Sampler(write_positions(folder, 1000), 8, 1, seed)
        n = sampler.sequences_per_epoch
        return [tuple(int(sampler.starts(epoch * n + i)[0] // 8) for i in range(n)) for epoch in range(5)]

    orders = [order for seed in range(4) for order in epoch_orders(seed)]
    assert len(set(orders)) == 20
    for order in orders:
        neighbors = sum(after == before + 1 for before, after in itertools.pairwise(order))
        assert neighbors < 8  # of 121; one is expected


# Batches


def test_the_batches_are_those_of_earlier_versions(folder: Path) -> None:
    batch = Sampler(write_positions(folder, 101), 8, 5, seed=1337).batch(6)  # of two epochs
    assert batch[:, 0].tolist() == [19, 27, 43, 53, 29]


def test_a_batch_depends_on_nothing_but_its_step(folder: Path) -> None:
    tokens = write_positions(folder, 1000)
    steps = [7, 0, 10**6, 3, 7, 0]
    first, second = (Sampler(tokens, 8, 5, seed=1) for _ in range(2))
    in_order = {step: first.batch(step) for step in sorted(set(steps))}
    for step in steps:
        assert (second.batch(step) == in_order[step]).all()
        assert (first.batch(step) == in_order[step]).all()
    assert not (Sampler(tokens, 8, 5, seed=2).batch(0) == in_order[0]).all()


@law
@given(size=st.sampled_from([1, 2, 3, 4, 6, 8, 12, 24, 48]), length=st.integers(9, 2000), seed=SEEDS)
def test_sequences_do_not_depend_on_the_batch_size(folder: Path, size: int, length: int, seed: int) -> None:
    tokens = write_positions(folder, length)
    large_batch = Sampler(tokens, 8, 48, seed).batch(0)
    small = Sampler(tokens, 8, size, seed)
    assert (np.concatenate([small.batch(step) for step in range(48 // size)]) == large_batch).all()


def test_writing_to_a_batch_does_not_change_the_file(folder: Path) -> None:
    sampler = Sampler(write_positions(folder, 100), 8, 4, seed=1)
    before = sampler.batch(0)
    sampler.batch(0)[:] = -1
    assert (sampler.batch(0) == before).all()


@pytest.mark.parametrize(("dtype", "largest"), [(np.uint16, 2**16 - 1), (np.uint32, 2**31)])
def test_large_ids_are_unchanged(tmp_path: Path, dtype: type, largest: int) -> None:
    np.save(tmp_path / "train.npy", np.array([largest - 1, largest, 0, largest], dtype=dtype))
    sampler = Sampler(open_shard(tmp_path / "train.npy"), 3, 2, seed=1)
    assert sampler.batch(5).tolist() == [[largest - 1, largest, 0, largest]] * 2


def test_a_dataset_of_a_trillion_tokens_needs_no_memory(tmp_path: Path) -> None:
    """30,000 shards, all of them one file without content; then positions instead of ids, to see which are read."""
    with open(tmp_path / "zeros", "wb") as file:
        file.truncate(2**26)
    tokens = Shards([Shard(tmp_path / "zeros", np.dtype(np.uint16), 0, 2**25)] * 30_000)
    assert len(tokens) > 10**12
    tracemalloc.start()
    sampler = Sampler(tokens, 1024, 480, seed=1337)
    assert sampler.batch(10**7).shape == (480, 1025)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24
    steps = [0, 1, 2**21, 2**40]  # in the first epoch, in the second, and in the 540,000th
    starts = np.concatenate([sampler.starts(step) for step in steps])
    assert len(np.unique(starts)) == 480 * len(steps)
    assert starts.min() >= 0
    assert starts.max() + 1025 <= len(tokens)
    assert starts.min() < len(tokens) / 100 < len(tokens) * 0.99 < starts.max()
    assert len(np.unique(starts % 1024)) == 4 - 1  # an offset for each epoch


# Building batches ahead


class Recorded:
    """Batches that say their step, the steps they were built for, and the threads that built them."""

    def __init__(self) -> None:
        self.built, self.threads = list[int](), set[int]()

    def __call__(self, step: int, skipped: int = 0) -> np.ndarray:
        self.built.append(step + skipped)
        self.threads.add(threading.get_ident())
        if step + skipped == 7:
            raise OctavoError("seven", "another step")
        return np.array([step + skipped])


@pytest.mark.parametrize("worth", [0.0, math.inf])
def test_batches_that_are_built_ahead_are_those_that_are_asked_for(worth: float) -> None:
    asked = [(0, 0), (1, 0), (2, 0), (3, 0), (1, 3), (2, 3), (6, 0)]  # with a rollback, and a step left out
    recorded = Recorded()
    with Prefetch(recorded, max_steps=7, worth=worth) as batch_of_step:
        assert [int(batch_of_step(*each)[0]) for each in asked] == [sum(each) for each in asked]
    assert 7 not in recorded.built  # the last step has no next one
    assert (len(recorded.threads) == 1) == (worth == math.inf)


def test_an_error_is_raised_by_the_call_that_asks_for_the_batch() -> None:
    with Prefetch(Recorded(), max_steps=100, worth=0.0) as batch_of_step:
        for step in range(4, 7):
            batch_of_step(step)
        with pytest.raises(OctavoError, match="seven"):
            batch_of_step(7)
        assert batch_of_step(8) == 8


# Short texts


@pytest.mark.parametrize("block_size", [1, 2, 7, 64])
def test_a_text_of_one_sequence_is_repeated(folder: Path, block_size: int) -> None:
    sampler = Sampler(write_positions(folder, block_size + 1), block_size, 3, seed=1)
    for step in (0, 1, 999):
        assert (sampler.batch(step) == np.arange(block_size + 1)).all()


@law
@given(block_size=st.integers(1, 2000), data=st.data())
@example(block_size=64, data=None)
def test_a_text_shorter_than_a_sequence_is_rejected_with_a_block_size_that_works(
    folder: Path, block_size: int, data: st.DataObject | None
) -> None:
    length = data.draw(st.integers(1, block_size)) if data else block_size
    tokens = write_positions(folder, length)
    with pytest.raises(OctavoError) as caught:
        Sampler(tokens, block_size, 1, seed=1)
    assert f"{length} tokens" in caught.value.message
    assert f"block_size + 1 = {block_size + 1}" in caught.value.message
    smaller = int(str(caught.value.hint).split("--block-size ")[1])
    assert smaller == max(1, length // 8)  # so that an epoch has several sequences
    if length > 1:
        Sampler(tokens, smaller, 1, seed=1).batch(0)


# Memory


def test_resident_memory_is_flat_over_10_000_batches_of_a_500_mb_file(tmp_path: Path) -> None:
    path = tmp_path / "train.npy"
    part = np.arange(25_000_000, dtype=np.uint32).astype(np.uint16)
    tokens = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint16, shape=(10 * len(part),))
    offset = tokens.offset
    del tokens  # pages that are written through a mapping would stay resident
    with open(path, "r+b") as file:
        file.seek(offset)
        for _ in range(10):
            part.tofile(file)
    try:
        assert path.stat().st_size == offset + 500_000_000
        sampler = Sampler(open_shard(path), block_size=64, batch_size=12, seed=1337)
        process = psutil.Process(os.getpid())
        resident = []
        for step in range(10_001):
            batch = sampler.batch(step)
            if step in (10, 1_000, 10_000):  # not step 0: Linux may map megabytes around the first access
                resident.append(process.memory_info().rss)
        assert (np.diff(batch) % 2**16 == 1).all()  # the ids were really read
        assert max(resident) - resident[0] < 20_000_000
    finally:
        path.unlink()


# The curriculum


def test_the_curriculum_uses_short_sequences_first_with_equally_many_tokens(tmp_path: Path) -> None:
    np.save(tmp_path / "tokens.npy", np.arange(2000, dtype=np.uint16))
    tokens = open_shard(tmp_path / "tokens.npy")
    shape = dict(block_size=20, batch_size=3, max_steps=10, seed=5)
    batch = batches(tokens, resolve(**shape, curriculum_splits=4, curriculum_fraction=0.5))
    full_batch = batches(tokens, resolve(**shape))
    for step in range(10):
        assert batch(step).shape == ((12, 6) if step < 5 else (3, 21))
        assert (np.diff(batch(step)) == 1).all()
        assert step < 5 or (batch(step) == full_batch(step)).all()


# The batches of a run


def test_batches_leave_out_those_that_are_skipped_and_each_process_gets_its_rows(folder: Path) -> None:
    tokens = write_positions(folder, 2000)
    settings = resolve(block_size=20, batch_size=6, max_steps=10, seed=5)
    second = World()
    second.rank, second.size = 1, 2
    for step in range(10):
        whole = Sampler(tokens, 20, 6, seed=5).batch(step)
        assert (batches(tokens, settings)(step) == whole).all()
        assert (batches(tokens, settings, second)(step) == whole[3:]).all()
        assert (batches(tokens, settings)(step, skipped=3) == batches(tokens, settings)(step + 3)).all()
