"""What several tests share. `shared` is the one way to the files that may not be in the repository."""

import os
from pathlib import Path

import pytest

from octavo.generation import native


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `data/` of test material: tiny Shakespeare, the GPT-2 BPE files, the notes."""
    root = Path(os.environ.get("OCTAVO_SHARED", Path(__file__).parents[2] / "shared")) / "data"
    if not root.is_dir():
        message = f"no test material at {root} (set OCTAVO_SHARED)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return root


@pytest.fixture(scope="session", autouse=True)
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where forward.c is built, once for all tests, outside of their caches."""
    cache = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OCTAVO_CACHE", str(cache))
        native.library()
    return cache / "native"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has a cache folder of its own, and no network is reached by accident."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("OCTAVO_CACHE", str(cache))
    return cache
