"""Every parser of a file that may be damaged or forged gets mutated files: it reads them, or raises an `OctavoError`.

An input may take 10 seconds of CPU time and 1 GiB of memory. Each parser gets a few dozen inputs in CI, and
thousands with `make torture`: 100,000 in all.
"""

import contextlib
import gzip
import json
import os
import pickle
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from backports import zstd

import documents
import octavo
from checkpoints import TRAINER, list_in_manifest, remove_octavo_files, save
from octavo import checkpoint, files, lens, tokenizers
from octavo.checkpoint import TrainerState
from octavo.cli.parser import read_text_file
from octavo.data.converters import worker
from octavo.data.dataset import open_dataset
from octavo.data.file_state import FileProperties
from octavo.data.scan import load_scan_summary, scan_corpus
from octavo.data.shards import Shards, open_npy
from octavo.data.sources import open_source
from octavo.errors import OctavoError
from octavo.server import read_keys
from octavo.server.runs_api import JsonLines
from octavo.settings import resolve
from octavo.training.trainer_values import check_trainer_values
from preparing import data_settings
from reliability import mutations
from reliability.mutations import Format
from reliability.torture import IS_TORTURE, TEXT, Report

INPUTS = 100_000 if IS_TORTURE else 1_600  # of all parsers together
MEMORY = 1 << 30  # bytes of address space that an input may use
SECONDS = 10  # of CPU time


@dataclass(frozen=True)
class Target:
    """A file, its format, and what reads it."""

    path: Path
    format: Format
    read: Callable[[], object]


def checkpoint_file(name: str, format: Format, foreign: bool = False) -> Callable[[Path], Target]:
    """A file of a checkpoint that `load` reads, and which its manifest lists if it is not a `foreign` one."""

    def target(folder: Path) -> Target:
        save(folder / "step-000007", trainer=TrainerState(TRAINER.tensors, TRAINER_VALUES))
        if foreign:
            remove_octavo_files(folder / "step-000007")
        path = folder / "step-000007" / name

        def read() -> None:
            list_in_manifest(path)
            checkpoint.load(path.parent)
            if not foreign:
                check_trainer_values(checkpoint.load_trainer(path.parent).values, path.parent)

        return Target(path, format, read)

    return target


def tokenizer_file(name: str, format: Format, spec: str) -> Callable[[Path], Target]:
    """A file of a tokenizer, with which text is encoded."""

    def target(folder: Path) -> Target:
        tokenizer = tokenizers.build(spec, TEXT)
        tokenizer.save(folder)
        if name in ("vocab.json", "merges.txt"):
            tokenizer.backend.model.save(str(folder))
            (folder / "tokenizer.json").unlink()

        def read() -> None:
            loaded = tokenizers.load(folder)
            text = "The quick brown fox, 12 ducks: é😀\0<|endoftext|>"
            for unknown in ("skip", "replace"):
                with contextlib.suppress(OctavoError):
                    loaded.decode(loaded.encode(text, unknown=unknown))
            loaded.decode(range(loaded.vocab_size))

        return Target(folder / name, format, read)

    return target


def dataset_file(name: str, format: Format) -> Callable[[Path], Target]:
    """A file of a prepared dataset. Its `dataset.json` lists the file, so that not only the sha256 finds the damage."""

    def target(folder: Path) -> Target:
        (folder / "text.txt").write_text(TEXT, encoding="utf-8")
        dataset = folder / "tokens"
        octavo.prepare(folder / "text.txt", out=dataset)

        def read() -> None:
            list_in_manifest(dataset / name)
            read_tokens(dataset)

        return Target(dataset / name, format, read)

    return target


def nanogpt_file(name: str, format: Format) -> Callable[[Path], Target]:
    def target(folder: Path) -> Target:
        for split in ("train", "val"):
            (np.arange(300, dtype=np.uint16) % 65).tofile(folder / f"{split}.bin")
        characters = [chr(code) for code in range(32, 97)]
        stoi = {character: id for id, character in enumerate(characters)}
        meta = {"vocab_size": 65, "itos": dict(enumerate(characters)), "stoi": stoi}
        (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
        return Target(folder / name, format, lambda: read_tokens(folder))

    return target


def read_tokens(folder: Path) -> None:
    dataset = open_dataset(folder)
    for tokens in dataset.tokens.values():
        dataset.tokenizer.decode(tokens[:100])


def run_file(name: str, format: Format, content: bytes = b"") -> Callable[[Path], Target]:
    """A file of a run folder, with everything that reads it."""

    def target(folder: Path) -> Target:
        (folder / "settings.toml").write_text("n_layer = 1\n", encoding="utf-8")
        save(folder / "checkpoints" / "step-000007")
        for pointer in ("last", "best"):
            (folder / pointer).write_text("step-000007\n", encoding="utf-8")
        if content:
            (folder / name).write_bytes(content)

        def read() -> None:
            run = octavo.Run(folder)
            assert run.settings.n_layer > 0
            assert all(path.parent.parent == folder for path in (run.last, run.best, *run.resumable) if path)
            run.lines("metrics")
            with contextlib.suppress(OctavoError):  # there may be no losses
                lens.losses(run)
            JsonLines(folder / "metrics.jsonl").read(0)
            octavo.runs.find_checkpoint(run)

        return Target(folder / name, format, read)

    return target


def text_file(name: str, format: Format, content: bytes) -> Callable[[Path], Target]:
    """A text that becomes chunks of documents."""

    def target(folder: Path) -> Target:
        path = folder / name
        path.write_bytes(content)
        return Target(path, format, lambda: sum(len(chunk.text) for chunk in open_source(data_settings(path)).chunks()))

    return target


def file_of(name: str, format: Format, content: bytes, read: Callable[[Path], object]) -> Callable[[Path], Target]:
    def target(folder: Path) -> Target:
        (folder / name).write_bytes(content)
        return Target(folder / name, format, lambda: read(folder / name))

    return target


def npy_file(folder: Path) -> Target:
    path = folder / "train-00000.npy"
    np.save(path, np.arange(40, dtype=np.uint16))
    return Target(path, mutations.NPY, lambda: Shards([open_npy(path)]).max())


def parquet_file(folder: Path) -> Target:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"id": list(range(30)), "text": [f"text {i} é" for i in range(30)]})
    pyarrow.parquet.write_table(table, folder / "rows.parquet")
    return text_file("rows.parquet", mutations.BYTES, (folder / "rows.parquet").read_bytes())(folder)


def document_file(name: str, content: bytes, format: Format = mutations.BYTES) -> Callable[[Path], Target]:
    """A file of another program, converted in this process, whose limits the test sets."""

    def target(folder: Path) -> Target:
        path = folder / name
        path.write_bytes(content)
        modules = {".docx": "word", ".epub": "epub", ".html": "html", ".ipynb": "notebook", ".pdf": "pdf"}
        request = {"module": modules[path.suffix], "name": name, "encoding": "utf-8"}
        return Target(path, format, lambda: worker.answer(request, path.read_bytes()).encode())

    return target


def scan_record(folder: Path) -> Target:
    """The cache's record of a text. A damaged one counts as missing."""
    path = folder / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    os.utime(path, (1, 1))
    corpus = open_source(data_settings(path))
    scan_corpus(corpus).result  # noqa: B018
    (record,) = (files.cache_dir() / "scans").iterdir()
    return Target(record, mutations.JSON, lambda: load_scan_summary(corpus))


def verified_record(folder: Path) -> Target:
    """The cache's record of files whose sha256 was verified. A damaged one counts as missing."""
    path = folder / "train-00000.npy"
    np.save(path, np.arange(40, dtype=np.uint16))
    os.utime(path, (1, 1))
    shard = open_npy(path)

    def read() -> FileProperties:
        properties = FileProperties(folder)
        properties.sha256(path.name)
        properties.largest_id(shard)
        return properties

    read().save()
    (record,) = (files.cache_dir() / "verified").iterdir()
    return Target(record, mutations.JSON, read)


ROWS = b"".join(json.dumps({"id": i, "text": f"text {i} é😀"}).encode() + b"\n" for i in range(20))
METRICS = b"".join(
    json.dumps({"step": i, "loss": 3.5, "learning_rate": 1e-3, "val_loss": 3.6 if i % 3 == 0 else None}).encode()
    + b"\n"
    for i in range(1, 12)
)
TRAINER_VALUES = {
    "step": 7,
    "device": "cpu",
    "precision": "fp32",
    "compile": "off",
    "micro_batch": 4,
    "threads": 1,
    "torch": "2.11.0",
    "scaler": {},
    "best_val_loss": 3.5,
    "evaluations_since_best": 1,
    "newest_evaluation": {"step": 6, "train_loss": 3.5, "val_loss": 3.6, "bits_per_byte": 2.5, "best": False},
    "elapsed_seconds": 2.5,
    "update_seconds": 2.0,
}
CONFIG = b'preset = "tiny"\n[model]\nn_layer = 2\nbias = false\n[training]\nlearning_rate = 1e-3\nseed = 7\n'

TARGETS: dict[str, Callable[[Path], Target]] = {
    "config.json": checkpoint_file("config.json", mutations.JSON, foreign=True),
    "model.safetensors": checkpoint_file("model.safetensors", mutations.SAFETENSORS, foreign=True),
    "octavo.json": checkpoint_file("octavo.json", mutations.JSON),
    "trainer.json": checkpoint_file("trainer.json", mutations.JSON),
    "trainer.safetensors": checkpoint_file("trainer.safetensors", mutations.SAFETENSORS),
    "manifest.json": checkpoint_file("manifest.json", mutations.JSON),
    "tokenizer.json, char": tokenizer_file("tokenizer.json", mutations.JSON, "char"),
    "tokenizer.json, bpe": tokenizer_file("tokenizer.json", mutations.JSON, "bpe:300"),
    "tokenizer.json, word": tokenizer_file("tokenizer.json", mutations.JSON, "word:300"),
    "tokenizer_config.json": tokenizer_file("tokenizer_config.json", mutations.JSON, "bpe:300"),
    "vocab.json": tokenizer_file("vocab.json", mutations.JSON, "bpe:300"),
    "merges.txt": tokenizer_file("merges.txt", mutations.BYTES, "bpe:300"),
    "dataset.json": dataset_file("dataset.json", mutations.JSON),
    "train-00000.npy": dataset_file("train-00000.npy", mutations.NPY),
    "a .npy": npy_file,
    "train.bin": nanogpt_file("train.bin", mutations.BYTES),
    "meta.pkl": nanogpt_file("meta.pkl", mutations.PICKLE),
    "settings.toml": run_file("settings.toml", mutations.TOML, CONFIG),
    "metrics.jsonl": run_file("metrics.jsonl", mutations.JSON_LINES, METRICS),
    "last": run_file("last", mutations.BYTES),
    "best": run_file("best", mutations.BYTES),
    "a config": file_of("my.toml", mutations.TOML, CONFIG, lambda path: resolve(config=path)),
    "API keys": file_of("keys", mutations.BYTES, b"# mine\nsk-1234567890123\nann sk-6543210987654\n", read_keys),
    "a prompt": file_of(
        "prompt", mutations.BYTES, "The é".encode(), lambda path: read_text_file(str(path), "--prompt")
    ),
    "a text": text_file("a.txt", mutations.BYTES, TEXT.encode() + "é😀\u2028".encode()),
    "JSON lines": text_file("a.jsonl", mutations.JSON_LINES, ROWS),
    "gzip": text_file("a.txt.gz", mutations.BYTES, gzip.compress(TEXT.encode())),
    "gzip of JSON lines": text_file("a.jsonl.gz", mutations.GZIP_LINES, gzip.compress(ROWS)),
    "zstd": text_file("a.txt.zst", mutations.BYTES, zstd.compress(TEXT.encode())),
    "Parquet": parquet_file,
    "a chat": text_file("a.jsonl", mutations.JSON_LINES, json.dumps(documents.chatgpt_export()[0]).encode() + b"\n"),
    "HTML": document_file("a.html", b"<!doctype html><html><body><p>A <b>b</b>&amp;<pre> c</pre></body></html>"),
    "PDF": document_file("a.pdf", documents.pdf("One owl.", "Two owls.")),
    "Word": document_file("a.docx", documents.word(documents.paragraph("An owl.") * 20)),
    "EPUB": document_file("a.epub", documents.epub("One.", "Two.")),
    "notebook": document_file("a.ipynb", documents.notebook("# Owls", ["a", "b"]).encode(), mutations.JSON),
    "ZIP": text_file("a.zip", mutations.BYTES, documents.zip_of({"a.txt": TEXT, "b.csv": "text\na\n"})),
    "tar": text_file("a.tar", mutations.BYTES, documents.tar_of({"a.txt": TEXT.encode(), "b.csv": b"text\na\n"})),
    "scan record": scan_record,
    "record of verified files": verified_record,
}


@pytest.mark.parametrize("name", TARGETS)
def test_a_mutated_file_is_read_or_is_an_octavo_error(name: str, tmp_path: Path, report: Report) -> None:
    target, refused = TARGETS[name](tmp_path), 0
    content = target.path.read_bytes()
    target.read()  # the valid file
    for number in range(INPUTS // len(TARGETS)):
        generator = random.Random(f"{name} {number}")
        mutated = target.format.mutate(content, generator)
        target.path.write_bytes(mutated)
        start = time.process_time()
        try:
            with limit_address_space(MEMORY):
                target.read()
        except OctavoError:
            refused += 1
        except BaseException as error:
            error.add_note(f"input {number} of {name}: {mutated[:400]!r} ({len(mutated)} bytes)")
            raise
        assert time.process_time() - start < SECONDS, f"input {number} of {name}"
    count = INPUTS // len(TARGETS)
    report("a mutated file that a parser reads", count, refused=refused, read=count - refused, other_errors=0)


@contextlib.contextmanager
def limit_address_space(size: int) -> Iterator[None]:
    """Let the process map at most `size` more bytes. Windows has no such limit."""
    if os.name == "nt":
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
