"""What several tests share. `shared` is the one way to the files that may not be in the repository."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import octavo
from lenses import RANDOM_CASES, Case, random_case, random_checkpoint
from lenses import tiny_run as train_tiny_run
from octavo import kernels
from octavo.checkpoint import Checkpoint
from octavo.generation import native
from octavo.runs import Run

if TYPE_CHECKING:  # not every test needs a browser
    from playwright.sync_api import Browser

    from browser import Visit
    from serving import Running
    from sites import Runs


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
        native.load_library()
    return cache / "native"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has a cache folder of its own, and no network is reached by accident."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("OCTAVO_CACHE", str(cache))
    for tool in ("TRACKIO_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(tool, str(cache / "loggers"))
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_ERROR_REPORTING", "false"), ("HF_HUB_OFFLINE", "1")):
        monkeypatch.setenv(name, value)
    return cache


# Of the page's tests, see `sites` and `browser`


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, built: Path) -> Runs:
    """Two small runs."""
    import sites

    return sites.train_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def site(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """They are served, and beside them a model that takes 512 tokens and one that writes slowly."""
    import sites

    long = sites.write_long_model(tmp_path_factory.mktemp("long") / "long")
    both = {"letters": runs.letters, "bytes": runs.bytes}
    with sites.serve_runs(both, {"long": long}, slow_run=runs.bytes) as it:
        yield it


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """The browser. Not for the session: while it runs, asyncio has no room for another loop."""
    import browser

    with browser.launch_browser() as it:
        yield it


@pytest.fixture
def visit(chromium: Browser, site: Running) -> Iterator[Visit]:
    """A page in a context of its own, that has done nothing wrong by the end of the test."""
    import browser

    with browser.open_page(chromium, site.url) as it:
        yield it
        it.assert_no_faults()


# Fixtures of the lens's tests, see `lenses`


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Run PyTorch on one thread, which is faster for small models."""
    with kernels.one_thread():
        yield


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, built: Path) -> Run:
    """A run of twenty steps of the preset `tiny`."""
    return train_tiny_run(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module", params=["trained", *RANDOM_CASES])
def case(request: pytest.FixtureRequest, tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A trained model; and random ones with all tokenizers, with and without biases, with small and large weights."""
    if request.param == "trained":
        return Case(octavo.load(tiny_run))
    return random_case(tmp_path_factory.mktemp("case") / "model", request.param)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A random model: three layers of width 48, a block of 16, a BPE tokenizer."""
    return random_checkpoint(tmp_path_factory.mktemp("small") / "model")
