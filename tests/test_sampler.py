"""The sampler: every window once an epoch, in an order that is arithmetic, from a file that stays on disk."""

import itertools
import os
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import example, given
from hypothesis import settings as options
from hypothesis import strategies as st

from octavo.data.sampler import Sampler, batches, permute
from octavo.data.shards import Shards, open_npy
from octavo.errors import OctavoError
from octavo.settings import resolve

SEEDS = st.integers(0, 2**63 - 1)
EPOCHS = st.integers(0, 2**40)
law = options(derandomize=True, deadline=None)


def order(size: int, seed: int, epoch: int) -> list[int]:
    """Where the permutation puts 0, 1, 2 and so on."""
    return [int(i) for i in permute(np.arange(size, dtype=np.uint64), size, seed, epoch)]


# The permutation


@law
@given(size=st.integers(1, 3000), seed=SEEDS, epoch=EPOCHS)
def test_the_permutation_is_one_for_any_size(size: int, seed: int, epoch: int) -> None:
    assert sorted(order(size, seed, epoch)) == list(range(size))


@pytest.mark.parametrize("size", range(1, 70))  # each power of two, and what lies beside it
def test_the_permutation_is_one_for_every_small_size(size: int) -> None:
    assert sorted(order(size, seed=1337, epoch=0)) == list(range(size))


@law
@given(size=st.integers(10**6, 2**48), seed=SEEDS, epoch=EPOCHS, data=st.data())
def test_the_permutation_of_more_than_can_be_counted_stays_within_and_meets_nothing_twice(
    size: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    index = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, unique=True)), dtype=np.uint64)
    out = permute(index, size, seed, epoch)
    assert int(out.max()) < size
    assert len(np.unique(out)) == len(index)
    for one, where in zip(index, out, strict=True):  # each by itself, whoever is asked beside it
        assert permute(np.array([one]), size, seed, epoch)[0] == where


def test_the_order_differs_between_epochs_and_between_seeds() -> None:
    assert len({tuple(order(100, 1337, epoch)) for epoch in range(50)}) == 50
    assert len({tuple(order(100, seed, 0)) for seed in range(50)}) == 50


def test_no_epoch_of_a_seed_has_the_order_of_another_seeds_epoch() -> None:
    assert len({tuple(order(100, seed, epoch)) for seed in range(16) for epoch in range(16)}) == 256


@pytest.mark.parametrize("size", [2, 3, 10, 30])
def test_every_window_comes_everywhere_equally_often(size: int) -> None:
    epochs = 200 * size
    orders = np.array([order(size, 1337, epoch) for epoch in range(epochs)])  # (epochs, size)
    for place in range(0, size, max(1, size // 10)):
        counts = np.bincount(orders[:, place], minlength=size)
        assert abs(counts - 200).max() < 75  # five standard deviations of a fair draw


# Epochs

TEXTS = st.integers(1, 40).flatmap(lambda block: st.tuples(st.just(block), st.integers(block + 1, 60 * block + 60)))


def one(path: Path) -> Shards:
    return Shards([open_npy(path)])


def numbered(folder: Path, length: int, dtype: type = np.uint16) -> Shards:
    """A token file in which each token is its place."""
    np.save(folder / "train.npy", np.arange(length).astype(dtype))
    return one(folder / "train.npy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokens")


@law
@given(text=TEXTS, batch_size=st.integers(1, 9), seed=SEEDS, epoch=st.integers(0, 1000))
def test_an_epoch_visits_each_window_once_and_never_leaves_the_text(
    folder: Path, text: tuple[int, int], batch_size: int, seed: int, epoch: int
) -> None:
    block_size, length = text
    sampler = Sampler(numbered(folder, length), block_size, batch_size, seed)
    per_epoch = sampler.sequences_per_epoch
    first, last = epoch * per_epoch, (epoch + 1) * per_epoch  # in all epochs' windows, one after another
    steps = range(first // batch_size, -(-last // batch_size))
    flat = np.concatenate([sampler.starts(step) for step in steps])
    starts = np.sort(flat[first - steps.start * batch_size :][:per_epoch])
    assert starts[0] >= 0
    assert starts[-1] + block_size + 1 <= length
    assert (np.diff(starts) == block_size).all()  # beside one another: none twice, none left out
    assert length - per_epoch * block_size <= 2 * block_size  # and only the ends of the text are left out


@law
@given(text=TEXTS, batch_size=st.integers(1, 9), seed=SEEDS, step=st.integers(0, 10**9))
def test_targets_are_the_inputs_moved_by_one(
    folder: Path, text: tuple[int, int], batch_size: int, seed: int, step: int
) -> None:
    block_size, length = text
    sampler = Sampler(numbered(folder, length), block_size, batch_size, seed)
    batch = sampler.batch(step)
    assert batch.shape == (batch_size, block_size + 1)
    assert batch.dtype == np.int64
    assert (batch[:, 0] == sampler.starts(step)).all()
    assert (batch[:, 1:] == batch[:, :-1] + 1).all()


def test_epochs_start_at_every_phase_and_other_seeds_at_other_ones(folder: Path) -> None:
    def phases(seed: int) -> list[int]:
        sampler = Sampler(numbered(folder, 100), 8, 1, seed)
        return [int(sampler.starts(epoch * sampler.sequences_per_epoch)[0]) % 8 for epoch in range(200)]

    assert set(phases(1337)) == set(range(8))
    assert max(phases(1337).count(phase) for phase in range(8)) < 60
    assert len({tuple(phases(seed)) for seed in range(20)}) == 20


def test_an_epoch_goes_through_the_text_in_no_order_but_its_own(folder: Path) -> None:
    def walks(seed: int) -> list[tuple[int, ...]]:
        sampler = Sampler(numbered(folder, 1000), 8, 1, seed)
        per_epoch = sampler.sequences_per_epoch
        first = [[sampler.starts(e * per_epoch + i)[0] // 8 for i in range(per_epoch)] for e in range(5)]
        return [tuple(int(i) for i in walk) for walk in first]

    seen = [walk for seed in range(4) for walk in walks(seed)]
    assert len(set(seen)) == 20
    for walk in seen:
        assert sum(later == now + 1 for now, later in itertools.pairwise(walk)) < 8  # of 121; by chance, one


# Batches


def test_a_batch_is_a_pure_function_of_its_step(folder: Path) -> None:
    tokens = numbered(folder, 1000)
    steps = [7, 0, 10**6, 3, 7, 0]
    one, another = (Sampler(tokens, 8, 5, seed=1) for _ in range(2))
    forward = {step: one.batch(step) for step in sorted(set(steps))}
    for step in steps:
        assert (another.batch(step) == forward[step]).all()
        assert (one.batch(step) == forward[step]).all()
    assert not (Sampler(tokens, 8, 5, seed=2).batch(0) == forward[0]).all()


@law
@given(size=st.sampled_from([1, 2, 3, 4, 6, 8, 12, 24, 48]), length=st.integers(9, 2000), seed=SEEDS)
def test_micro_batches_cut_the_same_sequence_of_windows(folder: Path, size: int, length: int, seed: int) -> None:
    tokens = numbered(folder, length)
    whole = Sampler(tokens, 8, 48, seed).batch(0)
    pieces = Sampler(tokens, 8, size, seed)
    assert (np.concatenate([pieces.batch(step) for step in range(48 // size)]) == whole).all()


def test_what_is_done_to_a_batch_does_not_reach_the_file(folder: Path) -> None:
    sampler = Sampler(numbered(folder, 100), 8, 4, seed=1)
    before = sampler.batch(0)
    sampler.batch(0)[:] = -1
    assert (sampler.batch(0) == before).all()


@pytest.mark.parametrize(("dtype", "largest"), [(np.uint16, 2**16 - 1), (np.uint32, 2**31)])
def test_ids_come_as_they_are(tmp_path: Path, dtype: type, largest: int) -> None:
    np.save(tmp_path / "train.npy", np.array([largest - 1, largest, 0, largest], dtype=dtype))
    sampler = Sampler(one(tmp_path / "train.npy"), 3, 2, seed=1)
    assert sampler.batch(5).tolist() == [[largest - 1, largest, 0, largest]] * 2


# Short texts


@pytest.mark.parametrize("block_size", [1, 2, 7, 64])
def test_a_text_of_one_window_is_that_window(folder: Path, block_size: int) -> None:
    sampler = Sampler(numbered(folder, block_size + 1), block_size, 3, seed=1)
    for step in (0, 1, 999):
        assert (sampler.batch(step) == np.arange(block_size + 1)).all()


@law
@given(block_size=st.integers(1, 2000), data=st.data())
@example(block_size=64, data=None)
def test_a_text_shorter_than_a_window_is_told_with_a_block_that_fits(
    folder: Path, block_size: int, data: st.DataObject | None
) -> None:
    length = data.draw(st.integers(1, block_size)) if data else block_size
    tokens = numbered(folder, length)
    with pytest.raises(OctavoError) as caught:
        Sampler(tokens, block_size, 1, seed=1)
    assert f"{length} tokens" in caught.value.message
    assert f"block_size + 1 = {block_size + 1}" in caught.value.message
    smaller = int(str(caught.value.hint).split("--block-size ")[1])
    if length > 1:
        Sampler(tokens, smaller, 1, seed=1).batch(0)


# Memory


def test_resident_memory_is_flat_over_10_000_batches_of_a_500_mb_token_file(tmp_path: Path) -> None:
    path = tmp_path / "train.npy"
    piece = np.arange(25_000_000, dtype=np.uint32).astype(np.uint16)
    tokens = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint16, shape=(10 * len(piece),))
    offset = tokens.offset
    del tokens  # what is written through a mapping would stay resident
    with open(path, "r+b") as file:
        file.seek(offset)
        for _ in range(10):
            piece.tofile(file)
    try:
        assert path.stat().st_size == offset + 500_000_000
        sampler, process = Sampler(one(path), block_size=64, batch_size=12, seed=1337), psutil.Process(os.getpid())
        resident = []
        for step in range(10_001):
            batch = sampler.batch(step)
            if step in (10, 1_000, 10_000):  # from the first on: Linux may map megabytes around what is touched
                resident.append(process.memory_info().rss)
        assert (np.diff(batch) % 2**16 == 1).all()  # they were really read
        assert max(resident) - resident[0] < 20_000_000
    finally:
        path.unlink()


def test_short_windows_hold_as_many_tokens_and_give_way_to_whole_ones(tmp_path: Path) -> None:
    np.save(tmp_path / "tokens.npy", np.arange(2000, dtype=np.uint16))
    settings = resolve(block_size=20, batch_size=3, curriculum_splits=4, curriculum_fraction=0.5, max_steps=10, seed=5)
    batch = batches(one(tmp_path / "tokens.npy"), settings)
    plain = batches(one(tmp_path / "tokens.npy"), resolve(block_size=20, batch_size=3, max_steps=10, seed=5))
    for step in range(10):
        assert batch(step).shape == ((12, 6) if step < 5 else (3, 21))
        assert (np.diff(batch(step)) == 1).all()
        assert step < 5 or (batch(step) == plain(step)).all()
