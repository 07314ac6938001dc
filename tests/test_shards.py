"""Large preparations: many shards are one row, documents keep ends and sides, what is interrupted goes on."""

import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as options
from hypothesis import strategies as st

from octavo import tokenizers
from octavo.data import shard_writer
from octavo.data.dataset import Dataset, open_dataset
from octavo.data.limits import DEFAULT_LIMITS, Limits
from octavo.data.prepare import prepare_dataset, prepare_folder
from octavo.data.sampler import Sampler
from octavo.data.shards import Shards, open_npy
from octavo.errors import OctavoError, SourceChangedError
from octavo.settings import DataSettings
from octavo.tokenizers import END_OF_TEXT

SPLITS = ("train", "val")


SMALL = Limits(chunk=100, shard=1000)


def prepare(settings: DataSettings, out: Path, limits: Limits = DEFAULT_LIMITS) -> Dataset:
    return prepare_folder(settings, out, limits).result


def dataset(settings: DataSettings, limits: Limits = DEFAULT_LIMITS) -> Dataset:
    return prepare_dataset(settings, limits=limits).result


def sentences(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    words = ["the", "cat", "sat", "on", "a", "mat", "öäü", "naïve", "end.", "so\nit", "was "]
    return [" ".join(rng.choices(words, k=rng.randint(1, 30))) for _ in range(count)]


def rows(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def of(source: Path, tokenizer: str = "bpe:300", **how: Any) -> DataSettings:
    return DataSettings(source=str(source), tokenizer=tokenizer, **how)


def documents(data: Dataset, split: str) -> list[str]:
    """The texts between the ends of documents."""
    ids, end = np.asarray(data.tokens(split)), data.tokenizer.end_of_text
    parts = np.split(ids, np.flatnonzero(ids == end) + 1)
    assert len(parts.pop()) == 0
    return [data.tokenizer.decode(part[:-1].tolist()) for part in parts]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Many shards, one row


@pytest.fixture(scope="module")
def cut_up(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, Shards]:
    folder = tmp_path_factory.mktemp("cut")
    ids = np.random.default_rng(0).integers(0, 1000, 997).astype(np.uint16)
    ends = [0, 1, 2, 300, 301, 640, 996, 997]
    for i, (start, end) in enumerate(itertools.pairwise(ends)):
        np.save(folder / f"{i}.npy", ids[start:end])
    return ids, Shards([open_npy(folder / f"{i}.npy") for i in range(len(ends) - 1)])


@options(derandomize=True, deadline=None)
@given(start=st.integers(-1100, 1100), stop=st.integers(-1100, 1100))
def test_a_stretch_is_the_same_however_the_row_is_cut(cut_up: tuple[np.ndarray, Shards], start: int, stop: int) -> None:
    ids, shards = cut_up
    assert shards[start:stop].tolist() == ids[start:stop].tolist()


def test_a_row_of_shards_is_read_like_one(cut_up: tuple[np.ndarray, Shards]) -> None:
    ids, shards = cut_up
    assert (len(shards), shards.max()) == (997, int(ids.max()))
    assert list(shards) == np.asarray(shards).tolist() == ids.tolist()
    assert [len(piece) for piece in shards.blocks(400)] == [400, 400, 197]


@pytest.mark.parametrize("block_size", [1, 7, 300])
def test_windows_epochs_and_order_do_not_depend_on_how_many_shards_there_are(
    cut_up: tuple[np.ndarray, Shards], tmp_path: Path, block_size: int
) -> None:
    ids, shards = cut_up
    np.save(tmp_path / "all.npy", ids)
    many, one = (Sampler(each, block_size, 5, seed=3) for each in (shards, Shards([open_npy(tmp_path / "all.npy")])))
    for step in range(60):
        assert many.batch(step).tolist() == one.batch(step).tolist()


@pytest.mark.parametrize("tokenizer", ["char", "byte", "word:300", "bpe:300"])
def test_tokens_do_not_depend_on_the_sizes_of_shards_and_chunks(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "text.txt").write_text("\n".join(sentences(300)), encoding="utf-8")
    rows(tmp_path / "rows.jsonl", sentences(300))
    sources = [tmp_path / "text.txt", tmp_path / "rows.jsonl"]
    whole = [prepare(of(source, tokenizer), tmp_path / f"whole {source.suffix}") for source in sources]
    parts = [prepare(of(source, tokenizer), tmp_path / f"parts {source.suffix}", SMALL) for source in sources]
    for one, many in zip(whole, parts, strict=True):
        assert (len(one.shards["train"]), len(many.shards["train"]) > 5) == (1, True)
        assert one.fingerprint == many.fingerprint
        for split in SPLITS:
            assert list(one.tokens(split)) == list(many.tokens(split))
            assert list(open_dataset(many.folder).tokens(split)) == list(many.tokens(split))


# Documents


def test_documents_keep_their_ends_and_go_whole_to_one_side(tmp_path: Path) -> None:
    texts = sentences(400)
    data = prepare(of(rows(tmp_path / "a.jsonl", texts), val_fraction=0.2), tmp_path / "out")
    train, val = (documents(data, split) for split in SPLITS)
    assert Counter(train + val) == Counter(texts)
    assert train == [text for text in texts if text in set(train)]  # in their order
    assert set(train).isdisjoint(val)  # copies stand together
    assert 0.19 < len("".join(val)) / len("".join(texts)) <= 0.2
    assert data.info["split"] == {"by": "document", "val_fraction": 0.2}
    assert data.info["text"]["documents"] == 400


def test_a_side_is_as_good_as_drawn_by_lot_and_depends_on_no_order(tmp_path: Path) -> None:
    texts = [f"document number {i}" for i in range(1000)]
    one = prepare(of(rows(tmp_path / "a.jsonl", texts)), tmp_path / "one")
    other = prepare(of(rows(tmp_path / "b.jsonl", texts[::-1])), tmp_path / "other")
    val = documents(one, "val")
    assert 95 <= len(val) <= 105
    assert set(val) == set(documents(other, "val"))
    places = [texts.index(text) for text in val]
    assert 400 < np.mean(places) < 600


def test_of_many_documents_at_least_one_is_for_validation(tmp_path: Path) -> None:
    texts = [f"document number {i}" for i in range(100)]
    data = prepare(of(rows(tmp_path / "a.jsonl", texts), val_fraction=0.0001), tmp_path / "out")
    assert len(documents(data, "val")) == 1


def test_few_documents_are_split_by_position(tmp_path: Path) -> None:
    texts = sentences(99)
    data = prepare(of(rows(tmp_path / "a.jsonl", texts), val_fraction=0.3), tmp_path / "out")
    assert data.info["split"]["by"] == "position"
    train, val = (data.tokenizer.decode(data.tokens(split)).split(END_OF_TEXT) for split in SPLITS)
    assert [*train[:-1], train[-1] + val[0], *val[1:]] == [*texts, ""]
    assert len("".join(train)) == int(0.7 * len("".join(texts)))


@pytest.mark.parametrize("tokenizer", ["char", "byte", "word:300"])
@pytest.mark.parametrize("count", [3, 150])
def test_without_an_end_of_text_documents_stand_on_lines_of_their_own(
    tmp_path: Path, tokenizer: str, count: int
) -> None:
    texts = [text + "\n" * (i % 3 == 0) for i, text in enumerate(sentences(count))]
    data = prepare(of(rows(tmp_path / "a.jsonl", texts), tokenizer), tmp_path / "out")
    train, val = (data.tokenizer.decode(data.tokens(split)) for split in SPLITS)
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


@pytest.mark.parametrize("count", [30, 300])
def test_copies_are_left_out_where_that_is_asked_for(tmp_path: Path, count: int) -> None:
    texts = [f"document number {i % (count // 2)} and more" for i in range(count)]
    source = rows(tmp_path / "a.jsonl", texts)
    kept = prepare(of(source), tmp_path / "kept")
    data = prepare(of(source, deduplicate=True), tmp_path / "without")
    assert [each.info["text"]["left_out"] for each in (kept, data)] == [0, count // 2]
    assert kept.fingerprint != data.fingerprint
    end = data.tokenizer.end_of_text
    ids = [id for split in SPLITS for id in data.tokens(split)]
    assert ids.count(end) == count // 2
    assert data.tokenizer.decode([id for id in ids if id != end]).count("document") == count // 2


def test_one_text_has_no_end_of_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" ".join(sentences(50)), encoding="utf-8")
    data = prepare(of(tmp_path / "a.txt"), tmp_path / "out")
    assert data.tokenizer.end_of_text is not None
    assert data.tokenizer.end_of_text not in [id for split in SPLITS for id in data.tokens(split)]


# Interrupted

KILLED = """
import sys
from octavo.data import shard_writer
from octavo.data.limits import Limits
from octavo.data.prepare import prepare_folder
from octavo.settings import DataSettings
write_npy = shard_writer.shards.write_npy
def write_and_print(path, ids):
    write_npy(path, ids)
    print(path.name, flush=True)
shard_writer.shards.write_npy = write_and_print
print("ready", flush=True)
limits = Limits(shard=10_000, chunk=2_000, single_process_characters=0)  # several processes too
prepare_folder(DataSettings(source=sys.argv[1], tokenizer="bpe:600"), sys.argv[2], limits).result
"""


def test_a_preparation_killed_at_twenty_moments_ends_with_the_same_bits(tmp_path: Path) -> None:
    source = rows(tmp_path / "a.jsonl", sentences(40_000))
    out, aside = tmp_path / "out", tmp_path / ".out.preparing"
    command = [sys.executable, "-c", KILLED, str(source)]
    whole = subprocess.run([*command, str(tmp_path / "whole")], stdout=subprocess.PIPE, text=True, check=True).stdout
    assert len(whole.splitlines()) > 200  # shards
    rng, went_on = random.Random(1), 0
    for _ in range(20):
        before = set(aside.glob("*.npy"))
        went_on += bool(before)
        with subprocess.Popen([*command, str(out)], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(rng.randint(1, 4)):  # lines: "ready", and one for each shard that was written
                process.stdout.readline()
            time.sleep(rng.uniform(0, 0.02))
            process.kill()
        assert before <= set(aside.glob("*.npy"))
        assert not out.exists()
    assert went_on > 10
    last = subprocess.run([*command, str(out)], stdout=subprocess.PIPE, text=True, check=True).stdout
    assert len(last.splitlines()) < len(whole.splitlines())  # what was there was not made again
    assert contents(out) == contents(tmp_path / "whole")
    assert not aside.exists()


def interrupt(settings: DataSettings, out: Path, shards: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Interrupt a preparation after it has written some shards, and return its staging folder."""
    written = 0
    write_npy = shard_writer.shards.write_npy

    def write_or_interrupt(path: Path, ids: np.ndarray) -> None:
        nonlocal written
        if written == shards:
            raise KeyboardInterrupt
        written += 1
        write_npy(path, ids)

    with monkeypatch.context() as patch:
        patch.setattr(shard_writer.shards, "write_npy", write_or_interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare(settings, out, SMALL)
    return out.with_name(f".{out.name}.preparing")


def test_finished_shards_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = of(rows(tmp_path / "a.jsonl", sentences(300)))
    whole = contents(prepare(settings, tmp_path / "whole", SMALL).folder)
    folder = interrupt(settings, tmp_path / "out", 4, monkeypatch)
    times = {path: path.stat().st_mtime_ns for path in folder.glob("*.npy")}
    assert len(times) == 4
    monkeypatch.setattr(tokenizers, "build", None)  # nor is the tokenizer learnt again
    out = tmp_path / "out"
    prepare(settings, out, SMALL)
    assert contents(out) == whole
    assert {path: (out / path.name).stat().st_mtime_ns for path in times} == times


@pytest.mark.parametrize("damage", ["cut", "gone", "empty"])
def test_it_goes_on_at_the_first_shard_that_is_missing_or_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    settings = of(rows(tmp_path / "a.jsonl", sentences(300)))
    whole = contents(prepare(settings, tmp_path / "whole", SMALL).folder)
    folder = interrupt(settings, tmp_path / "out", 6, monkeypatch)
    shard = folder / "train-00001.npy"
    match damage:
        case "cut":
            os.truncate(shard, shard.stat().st_size // 2)
        case "gone":
            shard.unlink()
        case _:
            shard.write_bytes(b"")
    assert contents(prepare(settings, tmp_path / "out", SMALL).folder) == whole


def test_another_text_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = rows(tmp_path / "a.jsonl", sentences(300))
    interrupt(of(source), tmp_path / "out", 4, monkeypatch)
    rows(source, sentences(300, seed=1))
    data = prepare(of(source), tmp_path / "out")
    assert Counter(text for split in SPLITS for text in documents(data, split)) == Counter(sentences(300, seed=1))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit")
def test_a_disk_that_fills_keeps_what_was_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = of(rows(tmp_path / "a.jsonl", sentences(300)))
    whole = contents(prepare(settings, tmp_path / "whole", SMALL).folder)
    write_npy, count = shard_writer.shards.write_npy, 0

    def full(path: Path, ids: np.ndarray) -> None:
        nonlocal count
        count += 1
        if count > 5:
            import resource

            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
            try:
                write_npy(path, ids)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
        write_npy(path, ids)

    with monkeypatch.context() as patch:
        patch.setattr(shard_writer.shards, "write_npy", full)
        with pytest.raises(OctavoError, match="the disk is full"):
            prepare(settings, tmp_path / "out", SMALL)
    assert not (tmp_path / "out").exists()
    assert len(list((tmp_path / ".out.preparing").glob("*.npy"))) == 5
    assert contents(prepare(settings, tmp_path / "out", SMALL).folder) == whole


def test_a_disk_with_too_little_room_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = of(rows(tmp_path / "a.jsonl", sentences(300)))
    monkeypatch.setattr(shard_writer.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OctavoError, match=r"the disk of .* has 0 MB free"):
        prepare(settings, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_two_processes_do_not_write_the_same_folder(tmp_path: Path, own_cache: Path) -> None:
    import filelock

    settings = of(rows(tmp_path / "a.jsonl", sentences(30)))
    prepare(settings, tmp_path / "out")
    (lock,) = (own_cache / "locks").iterdir()
    shutil.rmtree(tmp_path / "out")
    with filelock.FileLock(lock), pytest.raises(OctavoError, match="another process is preparing"):
        prepare(settings, tmp_path / "out")
    prepare(settings, tmp_path / "out")


def test_a_training_waits_for_another_that_prepares_the_same_text(tmp_path: Path, own_cache: Path) -> None:
    import filelock

    settings = of(rows(tmp_path / "a.jsonl", sentences(30)))
    made = dataset(settings)
    (lock,) = (own_cache / "locks").iterdir()
    other = made.folder.rename(tmp_path / "aside")
    held = filelock.FileLock(lock)
    held.acquire()
    preparation = prepare_dataset(settings)
    for progress in preparation:
        if progress.stage.startswith("waiting"):
            break
    other.rename(made.folder)  # the other process has finished
    held.release()
    assert preparation.result.folder == made.folder


def test_a_folder_that_appears_during_the_scan_is_not_overwritten(tmp_path: Path) -> None:
    source = rows(tmp_path / "a.jsonl", sentences(30))
    preparation = prepare_folder(of(source), tmp_path / "out", Limits(progress_seconds=0))
    next(iter(preparation))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(OctavoError, match="not empty"):
        _ = preparation.result
    assert (tmp_path / "out" / "precious.txt").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("later", [sentences(31), sentences(29), sentences(30, seed=1), [*sentences(29), "x" * 40]])
def test_a_text_that_changes_during_the_preparation_is_an_error(tmp_path: Path, later: list[str]) -> None:
    source = rows(tmp_path / "a.jsonl", sentences(30))
    preparation = prepare_folder(of(source, "word:300"), tmp_path / "out", Limits(chunk=100, shard=500))
    stages = []

    def run() -> None:
        for progress in preparation:
            stages.append(progress.stage)
            if progress.stage == "training the tokenizer":
                rows(source, later)

    with pytest.raises(SourceChangedError):
        run()
    assert "training the tokenizer" in stages
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]  # no shard of either text is kept


def test_a_shard_that_was_damaged_while_it_lay_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = of(rows(tmp_path / "a.jsonl", sentences(300)))
    whole = contents(prepare(settings, tmp_path / "whole", SMALL).folder)
    shard = interrupt(settings, tmp_path / "out", 6, monkeypatch) / "train-00001.npy"
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(content)
    assert contents(prepare(settings, tmp_path / "out", SMALL).folder) == whole


def test_rows_without_a_line_end_can_have_characters(tmp_path: Path) -> None:
    data = dataset(of(rows(tmp_path / "a.jsonl", ["emma", "olivia", "ava"] * 9), "auto"))
    text = "".join(data.tokenizer.decode(data.tokens(split)) for split in SPLITS)
    assert text == "\n".join(["emma", "olivia", "ava"] * 9)


def test_a_document_larger_than_all_that_validates_is_for_training(tmp_path: Path) -> None:
    texts = [*sentences(150), "a whole book. " * 60_000]
    for edition in range(5):
        data = prepare(of(rows(tmp_path / "a.jsonl", [*texts, f"{edition}"])), tmp_path / f"out {edition}")
        assert "a whole book" in "".join(documents(data, "train"))
        assert documents(data, "val")


def test_copies_alone_are_told(tmp_path: Path) -> None:
    with pytest.raises(OctavoError, match="copies of one another"):
        prepare(of(rows(tmp_path / "a.jsonl", ["the same"] * 200)), tmp_path / "out")


def test_progress_has_each_stage_and_counts_up(tmp_path: Path) -> None:
    source = rows(tmp_path / "a.jsonl", sentences(300))
    reports = list(prepare_dataset(of(source), limits=Limits(progress_seconds=0)))
    assert list(dict.fromkeys(each.stage for each in reports)) == [
        "reading", "training the tokenizer", "writing tokens"
    ]  # fmt: skip
    for stage in ("reading", "writing tokens"):
        counts = [each.done for each in reports if each.stage == stage]
        assert counts == sorted(counts)
    assert reports[-1].done == reports[-1].total == sum(map(len, sentences(300)))


def test_a_vocabulary_is_trained_on_chunks_from_all_of_a_large_text(tmp_path: Path) -> None:
    parts = [("alpha beta " * 200) + "\n", ("gamma delta " * 200) + "\n", ("omega sigma " * 200) + "\n"]
    (tmp_path / "a.txt").write_text("".join(parts), encoding="utf-8")
    data = dataset(of(tmp_path / "a.txt", "word:300"), Limits(chunk=100, tokenizer_characters=3000))
    words = {token.decode() for token in data.tokenizer.token_bytes[256:]}
    assert {"alpha", "gamma", "omega"} <= words


def test_a_preparation_gives_its_result_after_any_number_of_steps(tmp_path: Path) -> None:
    source = rows(tmp_path / "a.jsonl", sentences(30))
    for steps in range(5):
        preparation = prepare_dataset(of(source, "word"), limits=Limits(progress_seconds=0))
        for _, _ in zip(range(steps), preparation, strict=False):
            pass
        assert preparation.result is preparation.result
        assert list(preparation) == []
