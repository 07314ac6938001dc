"""Start several training processes on this machine, and start them again if one dies, with TorchElastic.

Each attempt is one round of TorchElastic. The rendezvous and the store are files, so the only open ports are those
through which the processes connect to each other; on Linux they are on the loopback interface. TorchElastic's own
restarts are not used: after one, the processes of PyTorch 2.13 read the addresses of those that have died.
"""

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from octavo.distributed import STORE, LostProcessError
from octavo.errors import MachineError, OctavoError
from octavo.units import format_count

_RUN = "OCTAVO_LAUNCHED_RUN"  # an environment variable: the file in which process 0 writes the folder of its run


def record_run(folder: Path) -> None:
    """Let the process that has launched this one know which run to resume after a restart."""
    if path := os.environ.get(_RUN):
        Path(path).write_text(os.path.abspath(folder), encoding="utf-8")


def launch(arguments: Sequence[str], after_restart: Sequence[str], processes: int, restarts: int) -> int:
    """Run `octavo` with these arguments in several processes, and return the exit code.

    If a process is killed, crashes or can't be reached, all are started again, at most `restarts` times: with
    `after_restart` if training has started, otherwise with the same arguments. If `after_restart` ends with
    `--resume`, the run folder is appended. Raises `MachineError` if a process has died too often.
    """
    run = None
    for attempt in range(restarts + 1):
        with tempfile.TemporaryDirectory(prefix="octavo-launch-") as folder:
            try:
                return _run_once(arguments, processes, Path(folder))
            except _KilledError as error:
                killed = error.message
            recorded = Path(folder, "run")
            run = recorded.read_text(encoding="utf-8") if recorded.exists() else run
        if attempt < restarts:
            print(f"{killed}; restart {attempt + 1} of {restarts}", file=sys.stderr, flush=True)
        if run:
            arguments = [*after_restart, run] if after_restart[-1] == "--resume" else after_restart
    hint = f"--resume {run}" if run else "the same command again"
    raise MachineError(f"{killed}, after {format_count(restarts, 'restart')}" if restarts else killed, hint)


class _KilledError(MachineError):
    """A process was killed, crashed, or could not be reached."""


def _run_once(arguments: Sequence[str], processes: int, folder: Path) -> int:
    """Run the processes until all have ended or one has failed, and return the exit code. Raises `_KilledError`."""
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # the errors below report the same
    environment = {
        STORE: str(folder / "store"),
        _RUN: str(folder / "run"),
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # or TorchElastic starts a server on all interfaces
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // processes)),
    }
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id="octavo",
        rdzv_backend="c10d",
        rdzv_endpoint=str(folder / "rendezvous"),
        # Practically no heartbeats: there is no other machine to send them to, and if a signal ends the launcher during
        # a heartbeat, its thread prints a traceback.
        rdzv_configs={"store_type": "file", "keep_alive_interval": 10**8},
        local_addr="127.0.0.1",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder / "logs")),
    )
    before = dict(os.environ)
    os.environ.update(environment)  # the processes inherit it
    try:
        elastic_launch(config, sys.executable)("-m", "octavo", *arguments)
    except SignalException as error:
        return 128 + error.sigval
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        if OctavoError.exit_code in codes:  # the user's mistake: a restart would meet it again
            return OctavoError.exit_code
        for rank, failure in error.failures.items():
            # TorchElastic sends SIGTERM to the others when one has failed.
            if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:
                name = signal.Signals(-failure.exitcode).name
                raise _KilledError(f"process {rank} of {processes} (pid {failure.pid}) was ended by {name}") from None
        if LostProcessError.exit_code in codes and MachineError.exit_code not in codes:
            raise _KilledError("the processes could not reach each other") from None
        # An error that a process has reported, or 128 + N if a signal stopped them.
        return min((code for code in codes if code > 0), default=128 + signal.SIGTERM)
    finally:
        os.environ.clear()
        os.environ.update(before)
    return 0
