"""Network namespaces as hosts on one network: each has its own interface, with a rate. Needs root.

    with hosts.network(2, bits_per_second=1e9) as (one, other):
        subprocess.Popen(one.command(["octavo", ...]))

The namespaces share everything else: processes, files, memory. They are removed at the end, with the processes in them.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

INTERFACE = "eth0"


@dataclass(frozen=True)
class Host:
    """A namespace, and the address of its interface."""

    name: str
    address: str

    def command(self, arguments: Sequence[object]) -> list[str]:
        """The command that runs another command on this host, under the host's own name."""
        script = f'hostname {self.name}; exec "$@"'
        return ["ip", "netns", "exec", self.name, "unshare", "--uts", "sh", "-c", script, "sh", *map(str, arguments)]

    def processes(self) -> list[int]:
        """The ids of the processes on this host."""
        listed = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True)
        return [int(pid) for pid in listed.stdout.split()]

    def end_processes(self) -> None:
        """Kill all processes on this host, as if the machine had failed, and wait until they have ended."""
        while pids := self.processes():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)


def missing_requirement() -> str | None:
    """Why this machine can't have such hosts, or None if it can."""
    if sys.platform != "linux":
        return "network namespaces need Linux"
    if not shutil.which("ip") or not shutil.which("tc"):
        return "the commands ip and tc are missing: install iproute2"
    probe = f"octavo-{secrets.token_hex(4)}"
    result = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if result.returncode:
        return f"network namespaces need root: {result.stderr.strip()}"
    _run("ip", "netns", "delete", probe)
    return None


@contextlib.contextmanager
def network(count: int, bits_per_second: float | None = None) -> Iterator[list[Host]]:
    """Yield `count` hosts. Each sends at most `bits_per_second`, or without a limit."""
    prefix = f"octavo-{secrets.token_hex(4)}"
    switch = f"{prefix}-switch"
    hosts = [Host(f"{prefix}-{number}", f"10.77.0.{number}") for number in range(1, count + 1)]
    names = [switch, *(host.name for host in hosts)]
    try:
        for name in names:
            _run("ip", "netns", "add", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        _run("ip", "-n", switch, "link", "add", "bridge0", "type", "bridge")
        _run("ip", "-n", switch, "link", "set", "bridge0", "up")
        for number, host in enumerate(hosts):
            port = ["port" + str(number), "netns", switch]
            _run("ip", "link", "add", INTERFACE, "netns", host.name, "type", "veth", "peer", "name", *port)
            _run("ip", "-n", switch, "link", "set", port[0], "master", "bridge0", "up")
            _run("ip", "-n", host.name, "address", "add", f"{host.address}/24", "dev", INTERFACE)
            _run("ip", "-n", host.name, "link", "set", INTERFACE, "up")
            if bits_per_second:
                # The burst must hold a packet before it is segmented (64 KB), or nothing that is larger is ever sent.
                limit = ["rate", f"{bits_per_second:.0f}bit", "burst", "96kb", "limit", "8mb"]
                _run("tc", "-n", host.name, "qdisc", "add", "dev", INTERFACE, "root", "tbf", *limit)
        yield hosts
    finally:
        for host in hosts:
            host.end_processes()
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def _run(*words: str) -> None:
    result = subprocess.run(words, capture_output=True, text=True)
    if result.returncode:
        raise OSError(f"{' '.join(words)}: {result.stderr.strip()}")
