"""Newer checkpoints of a run are served while requests are answered; what can't be served changes nothing."""

import dataclasses
import errno
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

import octavo
from octavo import tokenizers
from octavo.checkpoint import TrainerState
from octavo.errors import MachineError
from octavo.model import GPT
from octavo.runs import Run
from octavo.server import follow, name_models
from octavo.server.follow import ModelUpdater, load_model
from octavo.server.served_model import ServedModel
from octavo.settings import Settings
from octavo.tokenizers import Tokenizer
from serving import SETTINGS, run_server, wait_until
from small_models import spread_model, without_end_of_text

TOKENIZER = without_end_of_text(tokenizers.build("char", "abcdefg \n"))
ANOTHER_ALPHABET = without_end_of_text(tokenizers.build("char", "ABCDEFG \n"))
SHAPE = dict(n_layer=1, n_head=2, n_embd=16, block_size=64, vocab_size=TOKENIZER.vocab_size)
PROMPT = "abc gfe dcb " * 3  # longer than the shortest prefix that is cached


def save(run: Run, step: int, best: bool = True, tokenizer: Tokenizer = TOKENIZER, **changes: int) -> Path:
    """Save the checkpoint of a step; every step has other weights."""
    settings = Settings(**SHAPE | {"vocab_size": tokenizer.vocab_size} | changes)
    model = GPT(settings, torch.Generator().manual_seed(step)).eval()
    model.load_state_dict(spread_model(step, **{name: getattr(settings, name) for name in SHAPE}).state_dict())
    return run.save(step, model, tokenizer, settings, {"step": step}, TrainerState({"x": torch.zeros(1)}, {}), best)


def greedy_text(folder: Path, prompt: str = PROMPT) -> str:
    """What the checkpoint continues a prompt with."""
    return octavo.generate(folder, prompt, max_new_tokens=12, temperature=0, overflow="stop")[0].text


def hold(model: ServedModel) -> threading.Event:
    """Let the model's engine stop after its next step, until the event is set."""
    released, step = threading.Event(), model.worker.engine.step

    def step_and_wait() -> bool:
        worked = step()
        return worked and released.wait(60)

    model.worker.engine.step = step_and_wait  # type: ignore[method-assign]
    return released


@dataclass
class Followed:
    """A run in training, the served models, and what the updater has reported."""

    run: Run
    models: dict[str, ServedModel]
    pending: dict[str, Run] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.updater = ModelUpdater(self.models, self.pending, SETTINGS, on_change=self.lines.append)

    @property
    def model(self) -> ServedModel:
        return self.models["live"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run.create(Settings(**SHAPE), "live", out=tmp_path / "live")
    save(run, 10)
    return run


@pytest.fixture
def followed(run: Run, native_cache: None) -> Iterator[Followed]:
    """The run is served from its checkpoint of step 10."""
    followed = Followed(run, {"live": load_model("live", run, SETTINGS)})
    yield followed
    followed.updater.close()
    followed.model.worker.close()


def test_requests_after_a_switch_use_the_new_weights_and_the_ones_before_keep_theirs(followed: Followed) -> None:
    """Also a stream that is half done. Each response names its checkpoint, and no cached prefix is carried over."""
    earlier = followed.model
    texts = {10: greedy_text(earlier.checkpoint.folder)}
    released = hold(earlier)
    with run_server(followed.models, runs={"live": followed.run}) as server, ThreadPoolExecutor(1) as pool:
        options = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0}
        under_way = pool.submit(server.complete, stream=True, **options)
        wait_until(lambda: earlier.worker.engine.running == 1)
        texts[20] = greedy_text(save(followed.run, 20))
        followed.updater.poll()
        assert not under_way.done()
        [after] = [server.complete(**options).json]
        assert (after["system_fingerprint"], after["choices"][0]["text"]) == ("step-000020", texts[20])
        assert after["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        assert server.complete(**options).json["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
        released.set()
        *chunks, done = under_way.result().events
        assert done == "[DONE]"
        assert {chunk["system_fingerprint"] for chunk in chunks} == {"step-000010"}
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == texts[10] != texts[20]
        [listed] = server.request("GET", "/lens").json["models"]
        assert (listed["step"], listed["steps"]) == (20, [10, 20])
        assert b'octavo_checkpoint_step{model="live"} 20.0' in server.request("GET", "/metrics").body
    wait_until(lambda: earlier.worker.has_ended)
    assert followed.lines == ["live: step 20 is served, in place of step 10"]


def test_a_request_that_found_the_earlier_model_is_completed_by_it(followed: Followed) -> None:
    """Its texts may reach the worker after that has retired and its thread has ended."""
    earlier = followed.model
    save(followed.run, 20)
    followed.updater.poll()
    wait_until(lambda: earlier.worker.has_ended)
    for _ in range(2):
        with run_server({"live": earlier}) as server:
            response = server.complete(PROMPT, max_tokens=12, temperature=0)
            assert response.json["choices"][0]["text"] == greedy_text(earlier.checkpoint.folder)
        earlier.worker._closing = False
        wait_until(lambda: earlier.worker.has_ended)


def test_no_request_fails_while_checkpoints_are_switched_under_load(followed: Followed) -> None:
    steps, done = range(20, 70, 10), threading.Event()
    texts = {f"step-{10:06d}": greedy_text(followed.model.checkpoint.folder)}

    def send_requests() -> list[tuple[str, str]]:
        answers = []
        while not done.is_set():
            response = server.complete(PROMPT, max_tokens=12, temperature=0)
            assert response.status == 200, response.body
            answers.append((response.json["system_fingerprint"], response.json["choices"][0]["text"]))
        return answers

    with run_server(followed.models) as server, ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(send_requests) for _ in range(4)]
        try:
            for step in steps:
                texts[f"step-{step:06d}"] = greedy_text(save(followed.run, step))
                wait_until(lambda step=step: followed.updater.poll() or followed.model.step == step)
        finally:
            done.set()
        answers = [answer for client in clients for answer in client.result()]
    assert all(texts[checkpoint] == text for checkpoint, text in answers)
    assert len({checkpoint for checkpoint, _ in answers}) > 1


def damage_weights(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def half_write(folder: Path) -> None:
    """As a copy from another machine that has not reached the last files."""
    (folder / "manifest.json").unlink()
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:500])


FAULTS: dict[str, Callable[[Run], object]] = {
    "damaged": lambda run: damage_weights(save(run, 20)),
    "half written": lambda run: half_write(save(run, 20)),
    "not JSON": lambda run: (save(run, 20) / "config.json").write_text("{"),
    "deleted": lambda run: shutil.rmtree(save(run, 20)),
    "empty": lambda run: (shutil.rmtree(save(run, 20)), run.checkpoint_folder(20).mkdir()),
    "a file": lambda run: (shutil.rmtree(save(run, 20)), run.checkpoint_folder(20).write_text("")),
    "another shape": lambda run: save(run, 20, n_embd=32),
    "another context": lambda run: save(run, 20, block_size=32),
    "another vocabulary": lambda run: save(run, 20, tokenizer=tokenizers.build("char", "abcdefghijkl")),
    "another alphabet": lambda run: save(run, 20, tokenizer=ANOTHER_ALPHABET),
    "no run": lambda run: shutil.rmtree(run.folder),
    "no pointer": lambda run: [(run.folder / name).write_text("../..") for name in ("best", "last")],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_checkpoint_that_cannot_be_served_changes_nothing_but_one_line(followed: Followed, fault: str) -> None:
    earlier = followed.model
    FAULTS[fault](followed.run)
    for _ in range(3):
        followed.updater.poll()
    assert followed.model is earlier
    assert len(followed.lines) == (0 if fault in ("deleted", "a file", "no run", "no pointer") else 1)
    assert all("step 10 is still served" in line for line in followed.lines)
    assert not earlier.worker.has_ended
    shutil.rmtree(followed.run.folder, ignore_errors=True)  # the run is started again
    run = Run.create(Settings(**SHAPE), "live", out=followed.run.folder)
    save(run, 5)
    followed.updater.poll()
    assert followed.model.step == 5


def test_a_checkpoint_that_is_deleted_while_it_loads_changes_nothing(
    followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training removes a checkpoint only after it has written the next: that one is then served."""
    load, folder = octavo.checkpoint.load, save(followed.run, 20)

    def load_deleted(path: Path, *arguments: object, **options: object) -> octavo.checkpoint.Checkpoint:
        shutil.rmtree(path)
        return load(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(octavo.checkpoint, "load", load_deleted)
        followed.updater.poll()
    assert followed.model.step == 10
    [line] = followed.lines
    assert str(folder) in line
    save(followed.run, 30)
    followed.updater.poll()
    assert followed.model.step == 30


def test_a_checkpoint_that_is_deleted_after_it_was_loaded_leaves_no_engine(
    followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = octavo.checkpoint.load

    def load_and_delete(path: Path, *arguments: object, **options: object) -> octavo.checkpoint.Checkpoint:
        loaded = load(path, *arguments, **options)
        shutil.rmtree(path)
        return loaded

    save(followed.run, 20)
    threads = set(threading.enumerate())
    with monkeypatch.context() as patch:
        patch.setattr(octavo.checkpoint, "load", load_and_delete)
        followed.updater.poll()
    assert followed.model.step == 10
    assert set(threading.enumerate()) <= threads


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("can't start new thread"),
        MemoryError(),
        OSError(errno.EMFILE, "Too many open files"),
        MachineError("there is not enough memory"),
    ],
    ids=str,
)
def test_a_failure_of_the_machine_delays_a_checkpoint_but_does_not_reject_it(
    run: Run, native_cache: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """It may be the last checkpoint of its run. Also the first of a run is tried again."""
    empty = Run.create(Settings(**SHAPE), "empty", out=tmp_path / "empty")
    models, pending = {"live": load_model("live", run, SETTINGS)}, {"empty": empty}
    for each in (run, empty):
        save(each, 20)

    def fail(*arguments: object, **options: object) -> None:
        raise error

    for retry_seconds, expected in ((1000, {"live": 10}), (0, {"live": 20, "empty": 20})):
        updater = ModelUpdater(models, pending, SETTINGS, retry_seconds=retry_seconds)
        with monkeypatch.context() as patch:
            patch.setattr(follow, "Worker", fail)
            updater.poll()
        updater.poll()
        assert {name: model.step for name, model in models.items()} == expected
        updater.close()
    for model in models.values():
        model.worker.close()


def test_stripping_the_trainer_state_is_not_a_newer_checkpoint(followed: Followed) -> None:
    earlier = followed.model
    octavo.checkpoint.strip_trainer(earlier.checkpoint.folder)
    followed.updater.poll()
    assert followed.model is earlier
    save(followed.run, 20, best=False)  # the best checkpoint is served, as all commands use it
    followed.updater.poll()
    assert followed.model is earlier


def test_the_last_checkpoint_is_followed_if_it_is_named(run: Run, native_cache: None) -> None:
    models = {"live": load_model("live", run.folder / "last", SETTINGS)}
    followed = Followed(run, models)
    folder = save(run, 20, best=False)
    followed.updater.poll()
    assert followed.model.checkpoint.folder == folder
    assert followed.model.step == 20
    assert list(name_models([run.folder / "last"])) == ["live"]
    for worker in (models["live"].worker, followed.model.worker):
        worker.close()
    followed.updater.close()


def test_with_no_follow_the_first_checkpoint_stays(run: Run, tmp_path: Path) -> None:
    """A run without a checkpoint is served from its first one on."""
    empty = Run.create(Settings(**SHAPE), "empty", out=tmp_path / "empty")
    models, pending = {"live": load_model("live", run, SETTINGS)}, {"empty": empty}
    updater = ModelUpdater(models, pending, dataclasses.replace(SETTINGS, follow=False))
    updater.poll()
    assert list(models) == ["live"]
    for each in (run, empty):
        save(each, 20)
    updater.poll()
    assert pending == {}
    save(empty, 30)
    updater.poll()
    assert {name: model.step for name, model in models.items()} == {"live": 10, "empty": 20}
    for model in models.values():
        model.worker.close()


def test_at_most_two_earlier_engines_are_kept(followed: Followed) -> None:
    """More would fill the memory if texts take longer than training needs from checkpoint to checkpoint."""
    held = []
    with run_server(followed.models) as server, ThreadPoolExecutor(3) as pool:
        for step in (20, 30, 40):
            engine = followed.model.worker.engine
            held.append(hold(followed.model))
            pool.submit(server.complete, PROMPT, max_tokens=3)
            wait_until(lambda engine=engine: engine.running == 1)
            save(followed.run, step)
            followed.updater.poll()
        assert followed.model.step == 30
        for released in held:
            released.set()
    wait_until(lambda: followed.updater.poll() or followed.model.step == 40)


def test_after_failures_of_engines_newer_checkpoints_are_still_served(
    followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed engine does not count among the earlier engines that are kept."""
    with run_server(followed.models) as server:
        for step in (20, 30, 40, 50):
            monkeypatch.setattr(followed.model.worker.engine, "step", lambda: 1 / 0)
            assert server.complete(PROMPT, max_tokens=3).status == 500
            save(followed.run, step)
            followed.updater.poll()
            assert followed.model.step == step
        assert server.complete(PROMPT, max_tokens=3).status == 200
