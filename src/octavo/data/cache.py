"""The cache of prepared datasets: a folder for each combination of text, tokenizer and split."""

import contextlib
import hashlib
import os
import time
from collections.abc import Generator
from pathlib import Path

import filelock

from octavo import files
from octavo.data.dataset import FORMAT, Dataset, open_dataset
from octavo.data.scan import ScanSummary
from octavo.errors import OctavoError
from octavo.progress import PreparationProgress
from octavo.settings import DataSettings
from octavo.tokenizers import Tokenizer

# Increased when `tokenizers.build` builds another tokenizer from the same specification: otherwise a new run would find
# the dataset of the earlier one.
_TOKENIZERS_VERSION = 2
_WAIT_SECONDS = 0.2


def cache_key(scan: ScanSummary, settings: DataSettings, tokenizer: Tokenizer | None) -> str:
    """The name of a dataset's folder in the cache. If `tokenizer` is None, `settings.tokenizer` specifies it."""
    specification = f"{settings.tokenizer} of version {_TOKENIZERS_VERSION}"
    tokenizer_identity = specification if tokenizer is None else tokenizer.fingerprint
    identity = f"{FORMAT} {_ids_identity(scan, settings, tokenizer_identity)}"
    return hashlib.sha256(identity.encode()).hexdigest()[:24]


def dataset_fingerprint(scan: ScanSummary, settings: DataSettings, tokenizer: Tokenizer) -> str:
    """What identifies the ids of a dataset: datasets with equal fingerprints have equal ids.

    It depends on the tokenizer itself, whereas the cache key has only its specification if it was not trained yet.
    """
    identity = _ids_identity(scan, settings, tokenizer.fingerprint)
    return hashlib.sha256(identity.encode()).hexdigest()


def _ids_identity(scan: ScanSummary, settings: DataSettings, tokenizer_identity: str) -> str:
    """Everything that the ids of a dataset depend on."""
    identity = f"{scan.sha256} {tokenizer_identity} {settings.val_fraction!r} {settings.deduplicate}"
    return f"{identity} special tokens" if settings.special_tokens else identity


def open_cached(key: str) -> Dataset | None:
    """The cached dataset, or None if it does not exist or is damaged. The caller then builds it again."""
    folder = cached_folder(key)
    if (folder / "dataset.json").is_file():
        with contextlib.suppress(OctavoError):
            return open_dataset(folder)
    return None


def cached_folder(key: str) -> Path:
    return files.cache_dir() / "prepared" / key


def acquire_lock(folder: Path, wait: bool) -> Generator[PreparationProgress, None, filelock.BaseFileLock]:
    """Lock a folder before writing to it. Raises `OctavoError` if another process has locked it, unless `wait`."""
    path = files.cache_dir() / "locks" / hashlib.sha256(os.fsencode(folder)).hexdigest()[:24]
    start = time.perf_counter()
    with files.translate_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    while (lock := files.acquire_lock(path)) is None:
        if not wait:
            raise OctavoError(f"another process is preparing {folder}", "the same command again when it has finished")
        seconds = time.perf_counter() - start
        stage = "waiting for another process that is preparing this text"
        yield PreparationProgress(stage, done=0, total=None, seconds=seconds)
        time.sleep(_WAIT_SECONDS)
    files.remove_old_leftovers(files.cache_dir())
    return lock
