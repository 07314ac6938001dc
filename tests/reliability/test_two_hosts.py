"""torchrun on two hosts: a process or a whole machine may die, and the run ends with the bits of an undisturbed one.

The hosts are network namespaces, which need root: `make torture` fails without it. See bench/hosts.py.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import hosts
import octavo
from hosts import Host
from reliability.torture import SETTINGS, TEXT, VARIANTS, Outcome, Report, leftovers

pytestmark = pytest.mark.torture  # minutes of two hosts, which need root
# The run must not end before the host that was started last has joined it.
WORDS = ["train", "text.txt", *SETTINGS, *VARIANTS["muon-bf16"], "--max-steps=3000", "--micro-batch=2"]
VARIABLE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"


class Cluster:
    """Two hosts, each of which runs torchrun with one process."""

    def __init__(self, folder: Path, members: list[Host]) -> None:
        self.folder, self.hosts = folder, members
        self.agents: list[subprocess.Popen[str]] = []

    def start(self, number: int, **variables: str) -> subprocess.Popen[str]:
        host, first = self.hosts[number], self.hosts[0]
        torchrun = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--max-restarts=5"]
        torchrun += ["--rdzv-backend=c10d", "--rdzv-id=run", f"--rdzv-endpoint={first.address}:29400"]
        torchrun += [f"--rdzv-conf=is_host={int(host is first)}", f"--local-addr={host.address}"]
        environment = {
            "GLOO_SOCKET_IFNAME": hosts.INTERFACE,
            "OMP_NUM_THREADS": "1",
            "OCTAVO_CACHE": str(self.folder / "cache"),
            VARIABLE: "1",
        }
        with open(self.folder / f"host-{number}.log", "a", encoding="utf-8") as log:
            return subprocess.Popen(
                host.command([sys.executable, *torchrun, "-m", "octavo", *WORDS, "--out=run", "--continue"]),
                cwd=self.folder,
                env=os.environ | environment | variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def worker(self, number: int) -> psutil.Process:
        """The process that trains on a host."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for pid in self.hosts[number].processes():
                with contextlib.suppress(psutil.Error):
                    process = psutil.Process(pid)
                    if "RANK" in process.environ():
                        return process
            time.sleep(0.05)
        raise AssertionError(self.logs())

    def steps(self) -> list[int]:
        """The steps in the metrics of the run."""
        if not (self.folder / "run" / "settings.toml").exists():
            return []
        return [line["step"] for line in octavo.Run(self.folder / "run").lines("metrics")]

    def seconds_until(self, step: int) -> float:
        """The seconds until the run has made a step."""
        start = time.monotonic()
        while max(self.steps(), default=0) < step:
            assert time.monotonic() < start + 120, self.logs()
            time.sleep(0.02)
        return time.monotonic() - start

    def logs(self) -> str:
        return "\n".join(path.read_text(encoding="utf-8") for path in sorted(self.folder.glob("host-*.log")))


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    missing = hosts.missing_requirement()
    if missing is not None:
        pytest.fail(f"two hosts can't be made: {missing}")
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    with hosts.network(2) as members:
        yield Cluster(tmp_path, members)


def test_a_process_and_a_machine_may_die(cluster: Cluster, report: Report) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OCTAVO_CACHE": str(cluster.folder / "cache")}
    alone = [sys.executable, "-m", "octavo", *WORDS, "--out=alone"]
    subprocess.run(alone, cwd=cluster.folder, env=environment, check=True, capture_output=True)
    agents = [cluster.start(0), cluster.start(1)]
    cluster.seconds_until(15)
    seconds = []
    for number in (1, 0):
        cluster.worker(number).kill()
        seconds.append(cluster.seconds_until(max(cluster.steps()) + 20))
    cluster.hosts[1].end_processes()  # the machine
    agents[1].wait()
    agents[1] = cluster.start(1)  # by its supervisor
    seconds.append(cluster.seconds_until(max(cluster.steps()) + 20))
    agents[1].send_signal(signal.SIGKILL)  # torchrun alone; the process that trains is left
    agents[1].wait()
    agents[1] = cluster.start(1)
    seconds.append(cluster.seconds_until(max(cluster.steps()) + 20))
    for agent in agents:
        assert agent.wait(timeout=300) == 0, cluster.logs()
    run, undisturbed = Outcome.of(cluster.folder / "run"), Outcome.of(cluster.folder / "alone")
    assert (run.weights, run.metrics, run.samples) == (undisturbed.weights, undisturbed.metrics, undisturbed.samples)
    assert leftovers(cluster.folder / "run") == []
    print("seconds until training continued:", [round(each, 1) for each in seconds])
    report("two hosts: a process, a machine, torchrun killed", len(seconds), runs_with_other_bits=0)


def test_without_the_variable_restarts_are_rejected_at_once(cluster: Cluster) -> None:
    start = time.monotonic()
    agents = [cluster.start(number, **{VARIABLE: "0"}) for number in (0, 1)]
    while VARIABLE not in cluster.logs():
        assert time.monotonic() < start + 60, cluster.logs()
        time.sleep(0.05)
    print(f"rejected after {time.monotonic() - start:.1f} s")
    for agent in agents:
        assert agent.wait(timeout=120) != 0
    assert f"try: {VARIABLE}=1" in cluster.logs()
    assert not (cluster.folder / "run").exists()
