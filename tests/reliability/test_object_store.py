"""A mirror in an object store: moto's server speaks S3, s3fs is the client, and faults are put between them."""

import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import octavo
from octavo import mirror, runs
from octavo.errors import MachineError
from octavo.remote import Storage
from octavo.runs import Run
from reliability.forked import Forks
from reliability.torture import SETTINGS, TEXT, VARIANTS, Outcome, Report
from run_folders import SETTINGS as SMALL
from run_folders import save

pytestmark = [
    pytest.mark.torture,
    pytest.mark.filterwarnings("ignore"),  # of moto, flask and botocore; and notices of damaged checkpoints
]
URL = "s3://bucket/runs/mine"
KILLS = 40


class Faults:
    """A WSGI application in front of moto's: all writes fail from number `at` on."""

    def __init__(self, application: Any) -> None:
        self.application, self.at, self.writes, self.seconds = application, -1, 0, 0.0

    def __call__(self, environment: dict[str, Any], start_response: Any) -> Any:
        if environment["REQUEST_METHOD"] in ("PUT", "DELETE", "POST"):
            time.sleep(self.seconds)  # a slow network
            self.writes += 1
            if 0 <= self.at < self.writes:  # all from here on, since s3fs retries
                start_response("500 Internal Server Error", [("Content-Type", "text/plain")])
                return [b"broken"]
        return self.application(environment, start_response)


@pytest.fixture(scope="module")
def server() -> Iterator[Faults]:
    """An S3 server with an empty bucket. The environment names it."""
    import s3fs
    from moto.moto_server import threaded_moto_server

    dispatchers: list[Faults] = []
    create = threaded_moto_server.DomainDispatcherApplication

    def create_with_faults(*arguments: Any, **options: Any) -> Faults:
        dispatchers.append(Faults(create(*arguments, **options)))
        return dispatchers[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threaded_moto_server, "DomainDispatcherApplication", create_with_faults)
        server = threaded_moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        variables = {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
            "no_proxy": "*",
        }
        for name, value in variables.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem().mkdir("bucket")
        yield dispatchers[0]
        server.stop()


def test_the_last_complete_checkpoint_loads_when_the_network_fails_at_any_write(
    server: Faults, tmp_path: Path, report: Report
) -> None:
    run, storage, count = Run.create(SMALL, "corpus", out=tmp_path / "run"), Storage(URL), 0
    for step, best in ((10, True), (20, False), (30, False), (40, True)):
        run.log("metrics", {"step": step, "loss": 1.0})
        save(run, step, best)
        at, is_complete = 0, False
        while not is_complete:
            server.at, server.writes = at, 0
            try:
                mirror.push(run.folder, storage)
                is_complete = True
            except MachineError:
                count += 1
            server.at = -1
            if step > 10:
                last = octavo.load(storage.url).info["step"]
                assert last in (10, 20, 30, 40)
                shutil.rmtree(tmp_path / "fetched", ignore_errors=True)
                mirror.fetch_run(storage.url, tmp_path / "fetched")
                assert runs.step_of(Run(tmp_path / "fetched").resumable[0]) >= step - 10
            at += 1
        assert octavo.load(storage.url).info["step"] == (40 if step == 40 else 10)
    report("writes to an object store that fail", count, loads=count)


def test_a_run_whose_machine_is_lost_continues_from_the_object_store(
    server: Faults, forks: Forks, tmp_path: Path, report: Report
) -> None:
    """Training is killed and its folder is lost, again and again. The result has the bits of an undisturbed run."""
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    words: list[object] = ["train", "text.txt", *SETTINGS, *VARIANTS["adamw-fp32"], "--out"]
    start = time.monotonic()
    undisturbed = forks.run([*words, "undisturbed"], tmp_path)
    seconds = time.monotonic() - start
    assert undisturbed.code == 0, undisturbed
    expected = Outcome.of(tmp_path / "undisturbed")
    environment = {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "no_"))}
    generator, kills, number = random.Random("object store"), 0, 0
    server.seconds = 0.005
    while kills < KILLS:
        number += 1
        url, folder, step = f"s3://bucket/run-{number}", tmp_path / f"run-{number}", 0
        while True:
            has_copy = Storage(url).exists("settings.toml")
            new = ["train", "--resume", url, "--out", folder] if has_copy else [*words, folder]
            process = forks.start([*new, "--mirror", url], tmp_path, **environment)
            deadline = time.monotonic() + generator.uniform(0, 2 * seconds)
            while time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.005)
            process.kill()
            result = process.wait()
            assert "Traceback" not in result.err, result
            if result.code == 0:
                break
            assert result.code == -9, result
            kills += 1
            shutil.rmtree(folder, ignore_errors=True)  # the machine is lost
            if Storage(url).exists("last"):
                shutil.rmtree(tmp_path / "fetched", ignore_errors=True)
                mirror.fetch_run(url, tmp_path / "fetched")
                fetched = runs.step_of(Run(tmp_path / "fetched").resumable[0])
                assert fetched >= step
                step = fetched
        outcome = Outcome.of(folder)
        assert outcome.weights == expected.weights
        assert outcome.metrics == expected.metrics
        assert octavo.load(url).info["step"] == octavo.load(tmp_path / "undisturbed").info["step"]
    report("machines lost while a run was copied to an object store", kills, same_bits=number)
