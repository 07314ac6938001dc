"""Sources by URL: they are copied into the cache, and copied again if they have changed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

import octavo
from octavo import remote
from octavo.data.dataset import open_dataset
from octavo.data.prepare import prepare_dataset, prepare_into_folder
from octavo.errors import MachineError
from octavo.progress import PreparationProgress, listen
from octavo.remote import Storage
from preparing import data_settings, decode, decode_splits, error_of, read_source, write

TEXT = "The quick brown fox jumps over the lazy dog.\n" * 20


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryFileSystem]:
    """`memory://`, an empty object store that records in `read` what is copied from it."""
    system = MemoryFileSystem()
    system.store.clear()
    get_file, read = MemoryFileSystem.get_file, list[str]()

    def record(self: MemoryFileSystem, path: str, local: str, **options: Any) -> None:
        read.append(path)
        get_file(self, path, local, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", record)
    monkeypatch.setattr(MemoryFileSystem, "read", read, raising=False)
    yield system
    system.store.clear()


def test_a_file_is_copied_once_and_again_when_it_has_changed(storage: MemoryFileSystem) -> None:
    storage.pipe("/bucket/my.text.txt", TEXT.encode())
    url = "memory://bucket/my.text.txt"
    data = prepare_dataset(data_settings(url)).result
    assert (data.name, data.info["source"], decode(data)) == ("my.text", url, TEXT)
    assert prepare_dataset(data_settings(url)).result.folder == data.folder
    assert storage.read == ["/bucket/my.text.txt"]
    storage.pipe("/bucket/my.text.txt", TEXT.replace("quick", "quiet").encode())
    assert "quiet" in decode(prepare_dataset(data_settings(url)).result)
    assert len(storage.read) == 2


@pytest.mark.parametrize("name", ["files.json", ".lock", "copy", "files"])
def test_a_file_may_have_any_name(storage: MemoryFileSystem, name: str) -> None:
    storage.pipe(f"/bucket/{name}", TEXT.encode())
    for _ in range(2):
        assert remote.fetch(f"memory://bucket/{name}").read_text(encoding="utf-8") == TEXT


@pytest.mark.parametrize("content", ["", "[]", "5", '{"": 5}', "{"])
def test_a_damaged_record_of_what_was_copied_means_that_it_is_copied_again(
    storage: MemoryFileSystem, content: str
) -> None:
    storage.pipe("/bucket/a.txt", TEXT.encode())
    remote.fetch("memory://bucket/a.txt")
    record = remote.cache_folder("memory://bucket/a.txt") / "files.json"
    assert record.is_file()
    record.write_text(content, encoding="utf-8")
    assert remote.fetch("memory://bucket/a.txt").read_text(encoding="utf-8") == TEXT
    assert len(storage.read) == 2


def test_a_folder_and_a_glob_have_the_documents_of_local_ones(storage: MemoryFileSystem, tmp_path: Path) -> None:
    names = ["a.txt", "b/c.txt", "b/d.md", "b-e.txt", "z.jsonl", ".hidden", "b/.f/g.txt"]
    for name in names:
        content = '{"text": "a row"}\n' if name.endswith("jsonl") else f"{name}\n"
        storage.pipe(f"/bucket/texts/{name}", content.encode())
        write(tmp_path / "texts" / name, content)
    storage.pipe("/bucket/texts-of-another/x.txt", b"another")
    for pattern in ("", "/", "/*.txt", "/**/*.txt", "/b/*"):
        expected = read_source(f"{tmp_path}/texts{pattern}")
        assert read_source(f"memory://bucket/texts{pattern}") == expected
    storage.rm_file("/bucket/texts/a.txt")
    assert "a.txt\n" not in read_source("memory://bucket/texts")
    assert len(storage.read) == len(set(storage.read)) + 8  # each URL has its own copies


def test_a_prepared_folder_is_used_and_verified(storage: MemoryFileSystem, tmp_path: Path) -> None:
    data = prepare_into_folder(data_settings(write(tmp_path / "text.txt", TEXT), "bpe:300"), tmp_path / "tokens").result
    for path in data.folder.iterdir():
        storage.pipe(f"/bucket/tokens/{path.name}", path.read_bytes())
    opened = prepare_dataset(data_settings("memory://bucket/tokens", "auto")).result
    assert decode_splits(opened) == decode_splits(data)
    run = octavo.train(
        "memory://bucket/tokens", n_layer=1, n_head=1, n_embd=8, block_size=8, max_steps=1, out=tmp_path / "run"
    )
    assert run.settings.source == "memory://bucket/tokens"
    assert octavo.evaluate(run).loss > 0
    assert len(storage.read) == len(list(data.folder.iterdir()))
    content = storage.cat_file("/bucket/tokens/val-00000.npy")
    storage.pipe("/bucket/tokens/val-00000.npy", content[:-2] + b"\0\0")
    assert "changed since it was prepared" in error_of(lambda: open_dataset("memory://bucket/tokens")).message


@pytest.mark.parametrize("url", ["memory://bucket/none.txt", "memory://bucket/none/*.txt", "memory://bucket"])
def test_a_url_without_a_file_is_rejected(storage: MemoryFileSystem, url: str) -> None:
    assert f"there is nothing at {url}" in error_of(lambda: read_source(url)).message


def test_a_name_that_leads_out_of_the_folder_is_rejected(storage: MemoryFileSystem) -> None:
    for name in ("../evil.txt", "a/../../evil.txt", "c:evil.txt", "a\\evil.txt"):
        assert "not a valid file name" in error_of(lambda name=name: remote._check_name(name, "memory://b")).message


def test_tokens_are_not_written_to_a_url(storage: MemoryFileSystem, tmp_path: Path) -> None:
    text = write(tmp_path / "text.txt", TEXT)
    assert "is a URL" in error_of(lambda: octavo.prepare(text, "memory://bucket/tokens")).message


def test_an_interrupted_copy_continues(storage: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(5):
        storage.pipe(f"/bucket/texts/{i}.txt", f"{i}\n".encode())
    download, failing = Storage.download, [True]

    def fail_once(self: Storage, name: str, path: Path) -> None:
        if name == "3.txt" and failing.pop():
            raise MachineError("the network is down", "try again")
        download(self, name, path)

    monkeypatch.setattr(Storage, "download", fail_once)
    assert "down" in error_of(lambda: read_source("memory://bucket/texts")).message
    failing.append(False)
    assert len(read_source("memory://bucket/texts")) == 5
    assert sorted(storage.read) == sorted({*storage.read})


def test_a_download_reports_bytes(storage: MemoryFileSystem) -> None:
    storage.pipe_file("/bucket/text.txt", b"the cat sat on the mat.\n" * 1000)
    events: list[PreparationProgress] = []
    with listen(events.append):
        remote.fetch("memory://bucket/text.txt")
    assert (events[-1].stage, events[-1].unit) == ("downloading text.txt", "bytes")
    assert events[-1].done == events[-1].total == 24_000
