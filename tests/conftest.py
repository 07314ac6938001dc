"""Fixtures that several test files share. Files outside of the repository are reached only through `shared`."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import filelock
import pytest

import commands
import mutation
import octavo
from commands import AssertRejected, Result, RunCommand
from lenses import RANDOM_CASES, Case, random_case, random_checkpoint, train_on
from lenses import tiny_run as train_tiny_run
from octavo import kernels, native_library
from octavo.checkpoint import Checkpoint
from octavo.kernels.sampling import load_sampling_kernels
from octavo.native_build import NATIVE
from octavo.runs import Run
from octavo.training import run_estimate

if TYPE_CHECKING:  # not every test needs a browser
    from playwright.sync_api import Browser

    from browser import Visit
    from serving import RunningServer
    from sites import Runs


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with tiny Shakespeare and GPT-2's BPE files: `OCTAVO_SHARED`/data. Skips the test if it is missing."""
    root = Path(os.environ.get("OCTAVO_SHARED", Path(__file__).parents[2] / "shared")) / "data"
    if not root.is_dir():
        message = f"no test material at {root} (set OCTAVO_SHARED)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return root


# The files whose slowest test takes longest come first, so that no process ends alone with one of them.
FIRST = ("test_docs.py", "test_page_everywhere.py", "test_estimate.py", "test_shards.py", "test_serve_attack.py")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get("OCTAVO_TORTURE") != "1":
        torture = [item for item in items if item.get_closest_marker("torture")]
        config.hook.pytest_deselected(items=torture)
        items[:] = [item for item in items if item not in torture]
    order = {name: index for index, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path.name, len(FIRST)))


def pytest_configure() -> None:
    if mutation.IS_MUTATION_TEST:
        mutation.load_profile()


def build_once(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], object]) -> Path:
    """Let the first of pytest's worker processes build a folder, and return it. Tests must not change it."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with filelock.FileLock(folder.with_suffix(".lock")):
        done = folder.with_suffix(".done")
        if not done.exists():
            build(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session", autouse=True)
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the compiled C code. It is compiled once for all tests, outside of their caches.

    It is empty if the package under test has prebuilt libraries. `make mutants` forks a process per mutant:
    OCTAVO_TEST_CACHE is the folder of one build for all of them.
    """

    def build(folder: Path) -> None:
        patch.setenv("OCTAVO_CACHE", str(folder))
        native_library.load_library()

    with pytest.MonkeyPatch.context() as patch:
        shared_cache = os.environ.get("OCTAVO_TEST_CACHE")
        cache = Path(shared_cache) if shared_cache else build_once(tmp_path_factory, "built", build)
        patch.setenv("OCTAVO_CACHE", str(cache))
        native_library.load_library()
    (cache / "native").mkdir(parents=True, exist_ok=True)
    return cache / "native"


_RUNNABLE = [each.name for each in (*native_library.runnable_variants(), NATIVE)]


@pytest.fixture(scope="module", params=_RUNNABLE if os.environ.get("OCTAVO_TORTURE") == "1" else _RUNNABLE[-2:])
def instruction_set(request: pytest.FixtureRequest, built: Path) -> Iterator[None]:
    """Run the test with the C library of each instruction set that this processor has.

    Without OCTAVO_TORTURE, only with the smallest one and with all of this processor's instructions.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OCTAVO_CACHE", str(built.parent))
        native_library.load_library.cache_clear()
        load_sampling_kernels.cache_clear()
        with pytest.MonkeyPatch.context() as choice:
            choice.setenv("OCTAVO_NATIVE", request.param)
            native_library.load_library()
        yield
        native_library.load_library.cache_clear()
        load_sampling_kernels.cache_clear()
        native_library.load_library()  # as it was


@pytest.fixture(autouse=True)
def threads_for_small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the decoder in C run in all threads also where one is faster."""
    monkeypatch.setattr("octavo.generation.native.MIN_WORK_OF_THREADS", 0)


@pytest.fixture(autouse=True)
def fused_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let steps run in C on every processor, also where autograd is faster."""
    monkeypatch.setattr("octavo.fused_step.is_faster", lambda: True)


@pytest.fixture
def short_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `octavo estimate` measure this machine for an instant instead of two seconds."""
    estimate_run = functools.partial(run_estimate.estimate_run, probe_seconds=0.02)
    monkeypatch.setattr(run_estimate, "estimate_run", estimate_run)
    monkeypatch.setattr(octavo.training, "estimate_run", estimate_run)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every test an empty cache folder, and disable network access of the libraries that would use it."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("OCTAVO_CACHE", str(cache))
    for tool in ("TRACKIO_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(tool, str(cache / "loggers"))
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_ERROR_REPORTING", "false"), ("HF_HUB_OFFLINE", "1")):
        monkeypatch.setenv(name, value)
    return cache


@pytest.fixture
def built_cache(own_cache: Path, built: Path) -> Path:
    """The cache of the test, with the compiled C code, which other processes would compile for seconds."""
    shutil.copytree(built, own_cache / "native")
    return own_cache


# Fixtures of the command line's tests, see `commands`


@pytest.fixture
def empty_workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built_cache: Path) -> Path:
    """The working directory: a folder with a small text, `text.txt`. Help is printed without line breaks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    (tmp_path / "text.txt").write_text(commands.TEXT, encoding="utf-8")
    return tmp_path


@pytest.fixture
def run_command(workdir: Path, capsys: pytest.CaptureFixture[str]) -> RunCommand:
    """A function that runs a command in this process, in `workdir`."""

    def run(*arguments: object) -> Result:
        return commands.run_command(capsys, *arguments)

    return run


@pytest.fixture
def assert_rejected(workdir: Path, run_command: RunCommand) -> AssertRejected:
    """A function that asserts that a command prints an error of two lines and changes nothing in `workdir`."""

    def check(arguments: list[object], *names: object) -> str:
        return commands.assert_rejected(run_command, workdir, arguments, *names)

    return check


@pytest.fixture(scope="session")
def trained_folder(tmp_path_factory: pytest.TempPathFactory, built: Path) -> Path:
    """A folder with a run of four steps in `run` and its `report.json`; tests must not change it."""

    def train(folder: Path) -> None:
        folder.mkdir()
        commands.train_small_run(folder)

    return build_once(tmp_path_factory, "trained", train)


@pytest.fixture
def run_folder(trained_folder: Path, workdir: Path) -> Path:
    """A copy of the run in `trained_folder`: runs/mine in the working directory."""
    return Path(shutil.copytree(trained_folder / "run", workdir / "runs" / "mine")).relative_to(workdir)


# Fixtures of the page's tests, see `sites` and `browser`


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, built: Path) -> Runs:
    """Two small runs."""
    import sites

    return sites.Runs.in_folder(build_once(tmp_path_factory, "runs", sites.train_runs))


@pytest.fixture(scope="module")
def site(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with both runs, a slow model, `slow`, and `long`: a context of 512 tokens and a chat template."""
    import sites

    long = sites.write_long_model(tmp_path_factory.mktemp("long") / "long")
    both = {"letters": runs.letters, "bytes": runs.bytes}
    with sites.serve_runs(both, {"long": long}, slow_run=runs.bytes, templates={"long": sites.CHAT_TEMPLATE}) as site:
        yield site


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """The browser. Not for the session: while it runs, no other asyncio loop can run in this thread."""
    import browser

    with browser.launch_browser() as chromium:
        yield chromium


@pytest.fixture
def visit(chromium: Browser, site: RunningServer) -> Iterator[Visit]:
    """The page in a new browser context. The test fails at any error, warning or request to another host."""
    import browser

    with browser.open_page(chromium, site.url) as visit:
        yield visit
        visit.assert_no_faults()


# Fixtures of the server's tests, see `serving`


@pytest.fixture(scope="module")
def native_cache(built: Path) -> Iterator[None]:
    """Let engines of module fixtures use the C library that `built` compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OCTAVO_CACHE", str(built.parent))
        yield


@pytest.fixture(scope="module")
def char_model(tmp_path_factory: pytest.TempPathFactory, native_cache: None) -> Path:
    """A folder, `small`, with the checkpoint of a character model."""
    from serving import write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("models") / "small", "char", end_of_text=False)


@pytest.fixture(scope="session")
def bpe_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of 20 steps with four checkpoints."""
    text = "the cat sat on the mat, and the rat sat on the hat. <b>كتاب</b> 🦉!\n" * 20
    settings = dict(
        tokenizer="bpe:300",
        n_layer=3,
        n_embd=48,
        n_head=3,
        block_size=32,
        batch_size=8,
        max_steps=20,
        warmup_steps=4,
        eval_every=10,
        log_every=1,
        keep_checkpoints=4,
    )
    return Run(build_once(tmp_path_factory, "bpe", lambda folder: train_on(text, folder, **settings)) / "run")


@pytest.fixture(scope="session")
def byte_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoint of a byte model that belongs to no run."""
    return random_checkpoint(tmp_path_factory.mktemp("alone") / "alone", "byte", block_size=64).folder


# Fixtures of the lens's tests, see `lenses`


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Run PyTorch on one thread, which is faster for small models."""
    with kernels.one_thread():
        yield


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, built: Path) -> Run:
    """A run of twenty steps of the preset `tiny`."""
    return Run(build_once(tmp_path_factory, "tiny", train_tiny_run) / "run")


@pytest.fixture(scope="module", params=["trained", *RANDOM_CASES])
def case(request: pytest.FixtureRequest, tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A trained model, and random ones: every tokenizer, with and without biases, small and large weights."""
    if request.param == "trained":
        return Case(octavo.load(tiny_run))
    return random_case(tmp_path_factory.mktemp("case") / "model", request.param)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A model with random weights: three layers of width 48, a block of 16, a BPE tokenizer."""
    return random_checkpoint(tmp_path_factory.mktemp("small") / "model")
