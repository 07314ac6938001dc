"""Large datasets: many shards are one sequence, documents stay whole, and an interrupted preparation continues."""

import errno
import itertools
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import filelock
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as options
from hypothesis import strategies as st

from folders import contents, file_size_limit, flip_bit, truncate
from octavo import tokenizers
from octavo.data.build import BuildInputs, train_tokenizer
from octavo.data.dataset import Dataset, open_dataset
from octavo.data.limits import DEFAULT_LIMITS, Limits
from octavo.data.prepare import prepare_dataset, prepare_into_folder
from octavo.data.sampler import Sampler
from octavo.data.shards import Shards, open_npy
from octavo.data.sources import open_source
from octavo.errors import MachineError, OctavoError, SourceChangedError
from octavo.progress import Preparation
from octavo.tokenizers import END_OF_TEXT
from preparing import data_settings, error_of, read_corpus, write, write_jsonl
from small_models import without_end_of_text

SPLITS = ("train", "val")
SMALL = Limits(chunk=100, shard_characters=1000, progress_seconds=0)


def prepare(source: Path, out: Path, spec: str = "bpe:300", limits: Limits = DEFAULT_LIMITS, **changes: Any) -> Dataset:
    return prepare_into_folder(data_settings(source, spec, **changes), out, limits).result


def prepare_cached(source: Path, spec: str = "bpe:300", limits: Limits = DEFAULT_LIMITS) -> Dataset:
    return prepare_dataset(data_settings(source, spec), limits=limits).result


def sentences(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    words = ["the", "cat", "sat", "on", "a", "mat", "öäü", "naïve", "end.", "so\nit", "was "]
    return [" ".join(rng.choices(words, k=rng.randint(1, 30))) for _ in range(count)]


def replace(path: Path, content: bytes) -> None:
    """As most editors write: a thread that reads has all of the old text or all of the new one."""
    write(path.with_suffix(".new"), content).replace(path)


def decode_splits(data: Dataset) -> list[str]:
    return [data.tokenizer.decode(data.tokens[split]) for split in SPLITS]


def documents(data: Dataset, split: str) -> list[str]:
    """The texts between the end-of-text tokens."""
    ids, end = np.asarray(data.tokens[split]), data.tokenizer.end_of_text
    parts = np.split(ids, np.flatnonzero(ids == end) + 1)
    assert len(parts.pop()) == 0
    return [data.tokenizer.decode(part[:-1].tolist()) for part in parts]


# Many shards are one sequence


@pytest.fixture(scope="module")
def ids_and_shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, Shards]:
    """997 ids, and shards of different lengths that hold them."""
    folder = tmp_path_factory.mktemp("shards")
    ids = np.random.default_rng(0).integers(0, 1000, 997).astype(np.uint16)
    ends = [0, 1, 2, 300, 301, 640, 996, 997]
    for i, (start, end) in enumerate(itertools.pairwise(ends)):
        np.save(folder / f"{i}.npy", ids[start:end])
    return ids, Shards([open_npy(folder / f"{i}.npy") for i in range(len(ends) - 1)])


@options(derandomize=True, deadline=None)
@given(start=st.integers(-1100, 1100), stop=st.integers(-1100, 1100))
def test_a_slice_of_shards_equals_the_slice_of_their_ids(
    ids_and_shards: tuple[np.ndarray, Shards], start: int, stop: int
) -> None:
    ids, shards = ids_and_shards
    assert shards[start:stop].tolist() == ids[start:stop].tolist()


def test_shards_behave_like_one_sequence(ids_and_shards: tuple[np.ndarray, Shards]) -> None:
    ids, shards = ids_and_shards
    assert (len(shards), shards.max()) == (997, int(ids.max()))
    assert list(shards) == np.asarray(shards).tolist() == ids.tolist()
    assert [len(block) for block in shards.blocks(400)] == [400, 400, 197]


@pytest.mark.parametrize("block_size", [1, 7, 300])
def test_batches_do_not_depend_on_the_number_of_shards(
    ids_and_shards: tuple[np.ndarray, Shards], tmp_path: Path, block_size: int
) -> None:
    ids, shards = ids_and_shards
    np.save(tmp_path / "all.npy", ids)
    one_shard = Shards([open_npy(tmp_path / "all.npy")])
    many, one = (Sampler(each, block_size, 5, seed=3) for each in (shards, one_shard))
    for step in range(60):
        assert many.batch(step).tolist() == one.batch(step).tolist()


def test_a_shard_that_is_removed_or_shortened_while_it_is_in_use_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "0.npy", np.arange(1000).astype(np.uint16))
    shards = Shards([open_npy(tmp_path / "0.npy")])
    assert shards[990:].tolist() == list(range(990, 1000))
    os.truncate(tmp_path / "0.npy", 1000)
    for act in (lambda: shards[990:], lambda: shards.sequences(np.array([0, 990]), 5)):
        assert "0.npy was removed or changed" in error_of(act).message
    other = Shards(shards.shards)
    (tmp_path / "0.npy").unlink()
    assert "0.npy was removed or changed" in error_of(lambda: other[:5]).message


def test_more_shards_than_files_may_be_open_are_read_by_several_threads(tmp_path: Path) -> None:
    np.save(tmp_path / "0.npy", np.arange(10).astype(np.uint16))
    shards = Shards([open_npy(tmp_path / "0.npy")] * 1000)
    starts = np.random.default_rng(0).permutation(9990)
    with ThreadPoolExecutor(4) as threads:
        for rows in threads.map(lambda _: shards.sequences(starts, 7), range(4)):
            assert (rows == (starts[:, None] + np.arange(7)) % 10).all()
    if os.path.exists("/dev/fd"):
        assert len(os.listdir("/dev/fd")) < 300


@pytest.mark.parametrize("spec", ["char", "byte", "word:300", "bpe:300"])
def test_tokens_do_not_depend_on_the_sizes_of_shards_and_chunks(tmp_path: Path, spec: str) -> None:
    write(tmp_path / "text.txt", "\n".join(sentences(300)))
    write_jsonl(tmp_path / "rows.jsonl", sentences(300))
    for source in (tmp_path / "text.txt", tmp_path / "rows.jsonl"):
        one = prepare(source, tmp_path / f"one {source.suffix}", spec)
        many = prepare(source, tmp_path / f"many {source.suffix}", spec, SMALL)
        assert len(one.tokens["train"].shards) == 1
        assert len(many.tokens["train"].shards) > 5
        assert one.fingerprint == many.fingerprint
        for split in SPLITS:
            assert list(one.tokens[split]) == list(many.tokens[split])
            assert list(open_dataset(many.folder).tokens[split]) == list(many.tokens[split])


# Documents


def test_documents_stay_whole_and_copies_are_in_the_same_split(tmp_path: Path) -> None:
    texts = sentences(400)
    data = prepare(write_jsonl(tmp_path / "a.jsonl", texts), tmp_path / "out", val_fraction=0.2)
    train, val = (documents(data, split) for split in SPLITS)
    assert Counter(train + val) == Counter(texts)
    assert train == [text for text in texts if text in set(train)]  # in their order
    assert set(train).isdisjoint(val)
    assert 0.19 < len("".join(val)) / len("".join(texts)) <= 0.2
    assert data.info["split"] == {"by": "document", "val_fraction": 0.2}
    assert data.info["text"]["documents"] == 400


def test_the_split_of_a_document_is_random_but_independent_of_the_order(tmp_path: Path) -> None:
    texts = [f"document number {i}" for i in range(1000)]
    data = prepare(write_jsonl(tmp_path / "a.jsonl", texts), tmp_path / "out")
    reverse = prepare(write_jsonl(tmp_path / "b.jsonl", texts[::-1]), tmp_path / "reverse")
    val = documents(data, "val")
    assert 95 <= len(val) <= 105
    assert set(val) == set(documents(reverse, "val"))
    assert 400 < np.mean([texts.index(text) for text in val]) < 600


def test_at_least_one_of_many_documents_is_for_validation(tmp_path: Path) -> None:
    texts = [f"document number {i}" for i in range(100)]
    data = prepare(write_jsonl(tmp_path / "a.jsonl", texts), tmp_path / "out", val_fraction=0.0001)
    assert len(documents(data, "val")) == 1


def test_a_document_longer_than_the_validation_split_is_for_training(tmp_path: Path) -> None:
    texts = [*sentences(150), "a whole book. " * 60_000]
    for edition in range(5):
        source = write_jsonl(tmp_path / "a.jsonl", [*texts, f"{edition}"])
        data = prepare(source, tmp_path / f"out {edition}")
        assert "a whole book" in "".join(documents(data, "train"))
        assert documents(data, "val")


def test_fewer_than_100_documents_are_split_by_position(tmp_path: Path) -> None:
    texts = sentences(99)
    data = prepare(write_jsonl(tmp_path / "a.jsonl", texts), tmp_path / "out", val_fraction=0.3)
    assert data.info["split"]["by"] == "position"
    train, val = (text.split(END_OF_TEXT) for text in decode_splits(data))
    assert [*train[:-1], train[-1] + val[0], *val[1:]] == [*texts, ""]
    assert len("".join(train)) == int(0.7 * len("".join(texts)))


@pytest.mark.parametrize("spec", ["char", "byte", "word:300", "bpe:300"])
@pytest.mark.parametrize("count", [3, 150])
def test_every_kind_has_a_token_that_ends_each_document(tmp_path: Path, spec: str, count: int) -> None:
    texts = [text + "\n" * (i % 3 == 0) for i, text in enumerate(sentences(count))]
    data = prepare(write_jsonl(tmp_path / "a.jsonl", texts), tmp_path / "out", spec)
    assert data.tokenizer.beginning_of_text == data.tokenizer.end_of_text == data.tokenizer.vocab_size - 1
    if count < 100:  # one sequence, whose end is for validation
        assert "".join(decode_splits(data)) == "".join(text + END_OF_TEXT for text in texts)
        ids = [id for split in SPLITS for id in data.tokens[split]]
        assert ids.count(data.tokenizer.end_of_text) == count
    else:
        assert Counter(documents(data, "train") + documents(data, "val")) == Counter(texts)


@pytest.mark.parametrize("spec", ["char", "byte", "word:300"])
@pytest.mark.parametrize("count", [3, 150])
def test_without_an_end_of_text_token_newlines_separate_documents(tmp_path: Path, spec: str, count: int) -> None:
    texts = [text + "\n" * (i % 3 == 0) for i, text in enumerate(sentences(count))]
    of_model = without_end_of_text(tokenizers.build(spec, "".join(texts)))
    source = data_settings(write_jsonl(tmp_path / "a.jsonl", texts), spec)
    train, val = decode_splits(prepare_dataset(source, of_model).result)
    lines = [text if text.endswith("\n") else text + "\n" for text in texts]
    if count < 100:
        whole = "".join(lines).removesuffix("" if texts[-1].endswith("\n") else "\n")
        assert train + val == whole
        assert len(train) == int(0.9 * len(whole))
    else:
        rest = train
        for line in lines:
            if rest.startswith(line):
                rest = rest[len(line) :]
        assert rest in ("", lines[-1].rstrip("\n"))
        assert len(train + val) in (len("".join(lines)), len("".join(lines)) - 1)


def test_a_char_tokenizer_has_the_characters_of_the_documents_and_no_other(tmp_path: Path) -> None:
    names = ["emma", "olivia", "ava"] * 9
    data = prepare_cached(write_jsonl(tmp_path / "a.jsonl", names), "auto")
    assert b"".join(data.tokenizer.token_bytes).decode() == "aeilmov" + END_OF_TEXT
    assert "".join(decode_splits(data)) == "".join(name + END_OF_TEXT for name in names)


def test_a_single_text_has_no_end_of_text_token(tmp_path: Path) -> None:
    data = prepare(write(tmp_path / "a.txt", " ".join(sentences(50))), tmp_path / "out")
    assert data.tokenizer.end_of_text is not None
    assert data.tokenizer.end_of_text not in [id for split in SPLITS for id in data.tokens[split]]


@pytest.mark.parametrize("count", [30, 300])
def test_deduplicate_leaves_out_copies(tmp_path: Path, count: int) -> None:
    texts = [f"document number {i % (count // 2)} and more" for i in range(count)]
    source = write_jsonl(tmp_path / "a.jsonl", texts)
    with_copies = prepare(source, tmp_path / "with copies")
    data = prepare(source, tmp_path / "without copies", deduplicate=True)
    assert with_copies.info["text"]["left_out"] == 0
    assert data.info["text"]["left_out"] == count // 2
    assert with_copies.fingerprint != data.fingerprint
    end = data.tokenizer.end_of_text
    ids = [id for split in SPLITS for id in data.tokens[split]]
    assert ids.count(end) == count // 2
    assert data.tokenizer.decode([id for id in ids if id != end]).count("document") == count // 2


def test_documents_that_are_all_copies_are_rejected(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", ["the same"] * 200)
    assert "copies of one another" in error_of(lambda: prepare(source, tmp_path / "out")).message


def test_a_validation_split_of_one_token_is_too_short(tmp_path: Path) -> None:
    texts = ["\n", *(f"document number {number}\n" for number in range(200))]
    of_model = without_end_of_text(tokenizers.build("char", "".join(texts)))
    settings = data_settings(write_jsonl(tmp_path / "a.jsonl", texts), val_fraction=0.0001)
    error = error_of(lambda: prepare_dataset(settings, of_model).result)
    for name in ("too few", "val", "1 tokens"):
        assert name in error.message
    assert "--val-fraction" in str(error.hint)


def test_a_tokenizer_is_trained_on_chunks_from_all_of_a_large_text(tmp_path: Path) -> None:
    text = ("alpha beta " * 200) + "\n" + ("gamma delta " * 200) + "\n" + ("omega sigma " * 200) + "\n"
    data = prepare_cached(write(tmp_path / "a.txt", text), "word:300", Limits(chunk=100, tokenizer_characters=3000))
    assert {b"alpha", b"gamma", b"omega"} <= set(data.tokenizer.token_bytes[256:])


# Interruptions

PREPARE_AND_PRINT = """
import sys
from octavo.data import shards
from octavo.data.limits import Limits
from octavo.data.prepare import prepare_into_folder
from octavo.settings import DataSettings
write_npy = shards.write_npy
def write_and_print(path, ids):
    write_npy(path, ids)
    print(path.name, flush=True)
shards.write_npy = write_and_print
print("ready", flush=True)
limits = Limits(shard_characters=10_000, chunk=2_000, single_process_characters=0)  # several processes too
prepare_into_folder(DataSettings(source=sys.argv[1], tokenizer="bpe:600"), sys.argv[2], limits).result
"""


@pytest.mark.torture  # half a minute; tests/reliability/test_kills.py kills a training in CI
def test_a_preparation_killed_twenty_times_gives_a_bit_identical_dataset(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", sentences(40_000))
    out, staging = tmp_path / "out", tmp_path / ".out.preparing"
    command = [sys.executable, "-c", PREPARE_AND_PRINT, str(source)]

    def printed_lines(out: Path) -> list[str]:
        done = subprocess.run([*command, str(out)], stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout.splitlines()

    uninterrupted = printed_lines(tmp_path / "uninterrupted")
    assert len(uninterrupted) > 200  # shards
    rng, continued = random.Random(1), 0
    for _ in range(20):
        before = set(staging.glob("*.npy"))
        continued += bool(before)
        with subprocess.Popen([*command, str(out)], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(rng.randint(1, 4)):  # lines: "ready", and one for each shard that was written
                process.stdout.readline()
            time.sleep(rng.uniform(0, 0.02))
            process.kill()
        assert before <= set(staging.glob("*.npy"))
        assert not out.exists()
    assert continued > 10
    assert len(printed_lines(out)) < len(uninterrupted)  # finished shards are not written again
    assert contents(out) == contents(tmp_path / "uninterrupted")
    assert not staging.exists()


def test_a_preparation_that_fails_while_it_writes_dataset_json_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, write_text = write(tmp_path / "a.txt", "the cat sat on the mat\n" * 300), Path.write_text

    def fail(path: Path, text: str, **options: Any) -> int:
        if path.name != "dataset.json":
            return write_text(path, text, **options)
        write_text(path, text[:100], **options)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", fail)
        with pytest.raises(MachineError, match="disk is full"):
            prepare(source, tmp_path / "out")
    assert (tmp_path / ".out.preparing" / "dataset.json").exists()
    prepare(source, tmp_path / "out")
    prepare(source, tmp_path / "undisturbed")
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def prepare_shards(source: Path, out: Path, count: int) -> tuple[Preparation[Dataset], Path]:
    """Prepare until `count` shards are written. Returns the unfinished preparation and its staging folder."""
    staging = out.with_name(f".{out.name}.preparing")
    preparation = prepare_into_folder(data_settings(source, "bpe:300"), out, SMALL)
    steps = iter(preparation)
    while len(list(staging.glob("*.npy"))) < count:
        next(steps)
    return preparation, staging


def interrupt(source: Path, out: Path, after: int) -> Path:
    """Interrupt a preparation after it has written that many shards. Returns its staging folder."""
    preparation, staging = prepare_shards(source, out, after)
    with pytest.raises(KeyboardInterrupt):
        iter(preparation).throw(KeyboardInterrupt())
    return staging


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "a.jsonl", sentences(300))


@pytest.fixture
def uninterrupted(source: Path, tmp_path: Path) -> dict[str, bytes]:
    """The files of a dataset whose preparation was not interrupted."""
    return contents(prepare(source, tmp_path / "uninterrupted", limits=SMALL).folder)


def test_finished_shards_are_not_written_again(
    source: Path, uninterrupted: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    staging = interrupt(source, out, after=4)
    times = {path.name: path.stat().st_mtime_ns for path in staging.glob("*.npy")}
    assert len(times) == 4
    monkeypatch.setattr(tokenizers, "build", None)  # the tokenizer is not trained again either
    prepare(source, out, limits=SMALL)
    assert contents(out) == uninterrupted
    assert {name: (out / name).stat().st_mtime_ns for name in times} == times


def test_a_finished_shard_of_a_text_that_changed_meanwhile_is_not_used(
    source: Path, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    """The source changes while it is read, the preparation is interrupted, and the source gets its old text again."""
    out, text = tmp_path / "out", source.read_bytes()
    preparation, staging = prepare_shards(source, out, 0)
    steps = iter(preparation)
    while next(steps).stage == "reading":
        pass
    replace(source, text.replace(b" cat", b" dog"))
    while len(list(staging.glob("*.npy"))) < 3:
        next(steps)
    with pytest.raises(KeyboardInterrupt):
        steps.throw(KeyboardInterrupt())
    replace(source, text)
    assert staging.exists()
    assert "changed" in error_of(lambda: prepare(source, out, limits=SMALL)).message
    prepare(source, out, limits=SMALL)
    assert contents(out) == uninterrupted


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip_bit, empty, Path.unlink])
def test_a_preparation_continues_at_the_first_missing_or_damaged_shard(
    source: Path, uninterrupted: dict[str, bytes], tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    damage(interrupt(source, tmp_path / "out", after=6) / "train-00001.npy")
    assert contents(prepare(source, tmp_path / "out", limits=SMALL).folder) == uninterrupted


def test_a_preparation_of_another_text_starts_again(source: Path, tmp_path: Path) -> None:
    interrupt(source, tmp_path / "out", after=4)
    write_jsonl(source, sentences(300, seed=1))
    data = prepare(source, tmp_path / "out")
    assert Counter(text for split in SPLITS for text in documents(data, split)) == Counter(sentences(300, seed=1))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on file size")
def test_finished_shards_survive_a_full_disk(source: Path, uninterrupted: dict[str, bytes], tmp_path: Path) -> None:
    preparation, staging = prepare_shards(source, tmp_path / "out", 5)
    with file_size_limit(100), pytest.raises(OctavoError, match="disk is full"):
        _ = preparation.result
    assert not (tmp_path / "out").exists()
    assert len(list(staging.glob("*.npy"))) == 5
    assert contents(prepare(source, tmp_path / "out", limits=SMALL).folder) == uninterrupted


def test_a_disk_with_too_little_space_is_reported_before_anything_is_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    message = error_of(lambda: prepare(source, tmp_path / "out")).message
    assert str(tmp_path) in message
    assert "1 kB free" in message
    assert list(tmp_path.iterdir()) == [source]


# Other processes, and a source that changes


def test_two_processes_do_not_write_the_same_folder(source: Path, tmp_path: Path, own_cache: Path) -> None:
    prepare(source, tmp_path / "out")
    (lock,) = (own_cache / "locks").iterdir()
    shutil.rmtree(tmp_path / "out")
    with filelock.FileLock(lock):
        assert "another process is preparing" in error_of(lambda: prepare(source, tmp_path / "out")).message
    prepare(source, tmp_path / "out")


def test_training_waits_for_a_process_that_prepares_the_same_text(
    source: Path, tmp_path: Path, own_cache: Path
) -> None:
    folder = prepare_cached(source).folder
    (lock_path,) = (own_cache / "locks").iterdir()
    folder.rename(tmp_path / "aside")
    lock = filelock.FileLock(lock_path)
    lock.acquire()
    preparation = prepare_dataset(data_settings(source, "bpe:300"))
    for progress in preparation:
        if progress.stage.startswith("waiting"):
            break
    (tmp_path / "aside").rename(folder)  # the other process has finished
    lock.release()
    assert preparation.result.folder == folder


def test_a_folder_that_appears_during_the_scan_is_not_overwritten(source: Path, tmp_path: Path) -> None:
    preparation = prepare_into_folder(data_settings(source), tmp_path / "out", SMALL)
    next(iter(preparation))
    precious = write(tmp_path / "out" / "precious.txt", "mine")
    assert "not empty" in error_of(lambda: preparation.result).message
    assert precious.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("later", [sentences(31), sentences(29), sentences(30, seed=1), [*sentences(29), "x" * 40], []])
def test_a_text_that_changes_during_the_preparation_is_an_error(tmp_path: Path, later: list[str]) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", sentences(30))
    preparation = prepare_into_folder(
        data_settings(source, "word:300"), tmp_path / "out", Limits(chunk=100, shard_characters=500)
    )
    stages = []

    def run() -> None:
        for progress in preparation:
            stages.append(progress.stage)
            if progress.stage == "training the tokenizer":
                replace(source, write_jsonl(tmp_path / "later", later).read_bytes())

    with pytest.raises(SourceChangedError):
        run()
    assert "training the tokenizer" in stages
    (tmp_path / "later").unlink()
    assert list(tmp_path.iterdir()) == [source]  # no shard of either text is kept


@pytest.mark.parametrize("rest", ["", '{"text": "half a line', '{"text": ""}\n', "\0"])
def test_a_file_that_is_being_written_has_changed(tmp_path: Path, rest: str) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", sentences(30))
    for corpus in [open_source(data_settings(source)), open_source(data_settings((str(source), str(source))))]:
        read_corpus(corpus)
        write(source, rest)
        with pytest.raises(SourceChangedError, match="changed while it was read"):
            read_corpus(corpus)
        write_jsonl(source, sentences(30))


# Progress


def test_progress_has_each_stage_and_counts_up(source: Path) -> None:
    reports = list(prepare_dataset(data_settings(source, "bpe:300"), limits=Limits(progress_seconds=0)))
    stages = list(dict.fromkeys(each.stage for each in reports))
    assert stages == ["reading", "training the tokenizer", "writing tokens"]
    for stage in ("reading", "writing tokens"):
        counts = [each.done for each in reports if each.stage == stage]
        assert counts == sorted(counts)
    assert reports[-1].done == reports[-1].total == sum(map(len, sentences(300)))


def test_a_preparation_has_its_result_after_any_number_of_steps(source: Path) -> None:
    for steps in range(5):
        preparation = prepare_dataset(data_settings(source, "word"), limits=Limits(progress_seconds=0))
        for _, _ in zip(range(steps), preparation, strict=False):
            pass
        assert preparation.result is preparation.result
        assert list(preparation) == []


def test_training_a_tokenizer_ends_at_once_when_it_is_stopped() -> None:
    """The text of this source never ends."""

    def chunks() -> Iterator[tuple[str, bool]]:
        while True:
            yield "the cat sat on the mat", False

    scan = SimpleNamespace(characters=10**9)
    corpus, settings = SimpleNamespace(chunks=chunks), data_settings("text.txt", "bpe:300")
    work = train_tokenizer(BuildInputs(corpus, scan, settings, None, SMALL))  # type: ignore[arg-type]
    first = next(work)
    while (progress := next(work)).done == 0:
        pass
    assert first.stage == progress.stage == "training the tokenizer"
    assert progress.done < progress.total == 10**9
    work.close()


def test_a_preparation_removes_old_temporary_files_from_the_cache(source: Path, own_cache: Path) -> None:
    """A process that is killed leaves them. A young one may belong to a process that is still writing."""
    expected = []
    for folder in ("scans", "converted", "prepared"):
        old = write(own_cache / folder / ".old.json.0123abcd.partial", "half")
        os.utime(old, (0, 0))
        write(own_cache / folder / ".folder.partial" / "file", "half")
        os.utime(own_cache / folder / ".folder.partial", (0, 0))
        expected.append(write(own_cache / folder / ".young.json.0123abcd.partial", "half"))
    prepare_cached(source)
    assert sorted(own_cache.glob("*/.*.partial")) == sorted(expected)
