"""The processes that train one model together, and their collectives: all-reduce, all-gather, broadcast, barrier.

A launcher starts the processes and gives each its rank: `octavo train --processes N`, or torchrun, which a cluster's
scheduler runs on each machine. `join` connects them. One process alone is `ALONE`, which imports nothing and exchanges
nothing. This is the only module that imports `torch.distributed`, besides the launcher, `octavo.launch`, and FSDP2 in
`octavo.training.sharding`.

Values go through the store as JSON, never as pickled objects: any process on the network could send a pickle.
"""

import contextlib
import datetime
import json
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from octavo.errors import MachineError, OctavoError, first_line

STORE = "OCTAVO_STORE"  # set by `octavo.launch`: the file in which the processes of one machine find each other
_ANSWER_SECONDS = 3.0  # how long a process may take to show that it is alive
_ERROR = "error"  # the key of the error that a process has announced


class LostProcessError(MachineError):
    """A process of the group has died, hangs, or can't be reached. `octavo.launch` starts all of them again."""

    exit_code = 4


class World:
    """The processes that train together, as one of them sees them."""

    rank, size, local_rank = 0, 1, 0  # `local_rank` is the rank among the processes on the same machine

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes, samples and prints."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """This process's part of `count` rows. Raises `OctavoError` if they can't be divided evenly."""
        check_divisible(count, self.size)
        part = count // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, in one all-reduce. All have the same dtype."""

    def all_gather(self, part: Tensor, count: int, group: Any = None) -> Tensor:
        """The whole tensor of `count` rows. `part` has this process's rows: `rows_of_rank(count, rank, size)`.

        `group`: gather only among these processes, one of the groups of a `mesh`.
        """
        return part

    def any(self, flag: bool) -> bool:
        """Whether the flag is true in any process."""
        return flag

    def broadcast_object(self, value: Any) -> Any:
        """The value that the first process has. It must be JSON-serializable."""
        return value

    def all_gather_object(self, value: Any) -> list[Any]:
        """The value of each process, in the order of their ranks. It must be JSON-serializable."""
        return [value]

    def barrier(self) -> None:
        """Wait until every process has called this."""
        self.any(False)

    def wait_for_first(self) -> None:
        """Wait until the first process has called this, however long that takes."""

    def announce(self, error: OctavoError) -> bool:
        """Make all processes end with this error, unless another was announced before: the first one is the cause.

        Returns whether this process is the one on its machine that shows the error.
        """
        return True

    @contextlib.contextmanager
    def local_rank_zero_first(self) -> Iterator[None]:
        """On each machine, local rank 0 runs the block before all others, which then find its files."""
        yield

    def mesh(self, device_type: str, parts: int) -> Any:
        """The processes as a `DeviceMesh` (replicate, shard) with `parts` columns. Each row shards one model."""
        raise OctavoError("one process can't shard a model", "--processes 2")

    @contextlib.contextmanager
    def translate_errors(self, only_collectives: bool = True) -> Iterator[None]:
        """If a collective fails, raise the error that a process has announced before it ended.

        Without one, raise `LostProcessError`, which names the processes that do not answer. `only_collectives`: the
        block runs nothing else. Otherwise, errors that are not of a collective are raised unchanged.
        """
        yield

    def leave(self) -> None:
        """Wait until every process has called this, then end the connections."""


ALONE = World()


def check_divisible(batch_size: int, processes: int) -> None:
    """Raise `OctavoError` if the sequences of a batch can't be divided evenly among processes."""
    if batch_size % processes:
        raise OctavoError(
            f"{batch_size} sequences can't be divided evenly among {processes} processes",
            f"--batch-size {max(1, batch_size // processes) * processes}",
        )


def check_shard(shard: int, processes: int) -> None:
    """Raise `OctavoError` unless the processes can form groups of `shard` processes. 0: the model is not sharded."""
    if shard < 0:
        raise OctavoError(f"--shard {shard} is not a number of processes", "--shard 2")
    if shard and processes == 1:
        raise OctavoError(f"--shard {shard} divides the model among processes, and there is one", "--processes 2")
    if shard and processes % shard:
        divisors = [number for number in range(1, processes + 1) if processes % number == 0]
        nearest = min(divisors, key=lambda number: (abs(number - shard), -number))
        raise OctavoError(
            f"{processes} processes can't form groups of {shard} that each divide the model", f"--shard {nearest}"
        )


def check_timeout(seconds: float) -> None:
    """Raise `OctavoError` unless the time after which a silent process counts as lost is positive and at most 1e9 s."""
    if not 0 < seconds <= 1e9:
        raise OctavoError(f"--timeout {seconds:g} is not a number of seconds between 0 and 1e9", "--timeout 600")


def rows_of_rank(count: int, rank: int, size: int) -> slice:
    """The rows of a tensor that one of `size` processes has. If they can't be divided evenly, the last have fewer.

    FSDP2 and `torch.chunk` divide the same way.
    """
    rows = -(-count // size)
    return slice(min(rank * rows, count), min((rank + 1) * rows, count))


class Group(World):
    """Several processes, connected by `torch.distributed`."""

    def __init__(self, rank: int, size: int, local_rank: int, store: Any, timeout: float) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self._store, self._timeout, self._collectives = store, timeout, 0
        self.host = socket.gethostname()
        self.names = self.all_gather_object(f"process {rank} of {size} (pid {os.getpid()} on {self.host})")

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        import torch.distributed as dist

        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with self.translate_errors():
            dist.all_reduce(flat)
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        torch._foreach_copy_(list(tensors), [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)])

    def all_gather(self, part: Tensor, count: int, group: Any = None) -> Tensor:
        import torch.distributed as dist

        size = self.size if group is None else group.size()
        rows = -(-count // size)
        whole = part.new_empty(size * rows, *part.shape[1:])
        if len(part) < rows:  # gloo exchanges parts of equal size only
            part = torch.cat([part, part.new_zeros(rows - len(part), *part.shape[1:])])
        with self.translate_errors():
            dist.all_gather(list(torch.split(whole, rows)), part.contiguous(), group)
        return whole[:count]

    def any(self, flag: bool) -> bool:
        import torch.distributed as dist

        value = torch.tensor([int(flag)])
        with self.translate_errors():
            dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value)

    def broadcast_object(self, value: Any) -> Any:
        key = self._next_key()
        with self.translate_errors():
            if self.is_first:
                self._store.set(key, json.dumps(value))
            return json.loads(self._wait_for(key, self._timeout))

    def all_gather_object(self, value: Any) -> list[Any]:
        key = self._next_key()
        with self.translate_errors():
            self._store.set(f"{key}/{self.rank}", json.dumps(value))
            self.any(False)  # fails at once if a process has died, which the store does not notice
            return [json.loads(self._wait_for(f"{key}/{rank}", self._timeout)) for rank in range(self.size)]

    def wait_for_first(self) -> None:
        key = self._next_key()
        with self.translate_errors():
            if self.is_first:
                self._store.set(key, "")
            else:
                self._wait_for(key, math.inf)

    def announce(self, error: OctavoError) -> bool:
        with contextlib.suppress(RuntimeError):
            if self._store.add("errors", 1) == 1:
                values = {"process": self.names[self.rank], "message": error.message, "hint": error.hint}
                self._store.set(_ERROR, json.dumps(values | {"exit_code": error.exit_code}))
            return bool(self._store.add(f"errors on {self.host}", 1) == 1)
        return True  # the store is gone with the process that had it

    @contextlib.contextmanager
    def local_rank_zero_first(self) -> Iterator[None]:
        key = f"{self._next_key()}/{self.host}"
        if self.local_rank:
            with self.translate_errors():
                self._wait_for(key, math.inf)  # a text may take hours to prepare
        yield
        if not self.local_rank:
            self._store.set(key, "")

    def mesh(self, device_type: str, parts: int) -> Any:
        import torch.distributed as dist
        from torch.distributed.device_mesh import DeviceMesh

        ranks = torch.arange(self.size).view(-1, parts)
        limit = datetime.timedelta(seconds=self._timeout)  # a group has PyTorch's timeout of 30 minutes otherwise
        shard, replicate = (
            dist.new_subgroups_by_enumeration(each.tolist(), limit)[0]  # type: ignore[no-untyped-call]
            for each in (ranks, ranks.T)
        )
        return DeviceMesh.from_group([replicate, shard], device_type, ranks, mesh_dim_names=("replicate", "shard"))

    def leave(self) -> None:
        import torch.distributed as dist

        self.barrier()
        key = self._next_key()
        if not self.is_first:
            self._store.set(f"{key}/{self.rank}", "")
        else:  # the store may be in this process, and the others still read from it
            with contextlib.suppress(TimeoutError):
                for rank in range(1, self.size):
                    self._wait_for(f"{key}/{rank}", _ANSWER_SECONDS)
        dist.destroy_process_group()

    def _find_silent(self) -> list[int]:
        """The ranks of the processes that do not answer. All that are alive call this when a collective has failed."""
        key, deadline = "alive", time.monotonic() + _ANSWER_SECONDS
        silent = [rank for rank in range(self.size) if rank != self.rank]
        self._store.set(f"{key}/{self.rank}", "")
        while silent and time.monotonic() < deadline:
            silent = [rank for rank in silent if not self._store.check([f"{key}/{rank}"])]
            time.sleep(0.05)
        return silent

    def _wait_for(self, key: str, seconds: float) -> bytes:
        """The value of a key, once a process has set it. Raises `TimeoutError` after `seconds`.

        Raises the error that a process has announced, since that process sets no more keys.

        The store's own `get` waits in C++, where a process does not notice the signal with which a launcher ends it.
        """
        deadline = time.monotonic() + seconds
        while not self._store.check([key]):
            if time.monotonic() > deadline:
                raise TimeoutError(f"timed out after {seconds:g} s")
            self._raise_announced()
            time.sleep(0.01)
        value: bytes = self._store.get(key)
        return value

    def _raise_announced(self) -> None:
        if self._store.check([_ERROR]):
            values = json.loads(self._store.get(_ERROR))
            kinds = {kind.exit_code: kind for kind in (OctavoError, MachineError, LostProcessError)}
            kind = kinds.get(values["exit_code"], OctavoError)
            raise kind(f"{values['process']}: {values['message']}", values["hint"])

    def _next_key(self) -> str:
        """The key of a collective in the store. All processes call the same collectives in the same order."""
        self._collectives += 1
        return f"collective/{self._collectives}"

    @contextlib.contextmanager
    def translate_errors(self, only_collectives: bool = True) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, TimeoutError) as error:  # torch.distributed's errors are RuntimeErrors
            if not only_collectives and not _is_collective_error(error):
                raise
            names = []
            with contextlib.suppress(RuntimeError):
                self._raise_announced()
                names = [self.names[rank] for rank in self._find_silent()]
            reason = first_line(error)
            waited = f" for {self._timeout:g} s" if "timed out" in reason.lower() else ""
            message = f"no answer from {', '.join(names)}{waited}" if names else f"a collective has failed: {reason}"
            # `octavo.launch` starts the processes again.
            hint = None if STORE in os.environ else "--resume RUN, which continues from the last checkpoint"
            raise LostProcessError(message, hint) from error


def _is_collective_error(error: Exception) -> bool:
    """Whether `torch.distributed` has raised an error. gloo's are plain RuntimeErrors, which name its source files."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError | TimeoutError) or "/gloo/" in str(error)


_joined: list[World] = []


def is_launched() -> bool:
    """Whether a launcher has started this process, with or without others."""
    return "WORLD_SIZE" in os.environ


def join(timeout: float = 600.0) -> World:
    """Connect to the other processes that a launcher has started. `ALONE` if it has started no others.

    `timeout`: the seconds after which a process that does not answer counts as lost. Raises `OctavoError` for a timeout
    or an environment variable of the launcher that is not valid, and `LostProcessError` if the others can't be reached.
    """
    if _joined:
        return _joined[0]
    check_timeout(timeout)
    size = _read_variable("WORLD_SIZE", 1)
    if size == 1:
        return ALONE
    import torch.distributed as dist

    rank, local_rank = _read_variable("RANK"), _read_variable("LOCAL_RANK")
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")
    if restarts != "0" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # PyTorch 2.13: after a restart the processes would read the addresses of those that have died.
        raise OctavoError(
            f"torchrun can't restart a process that dies (--max-restarts={restarts})",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in torchrun's environment",
        )
    limit = datetime.timedelta(seconds=timeout)
    path = os.environ.get(STORE)
    try:
        # Without a file, the processes find each other by the address in MASTER_ADDR and MASTER_PORT.
        file_store = dist.FileStore(path, size) if path else None  # type: ignore[attr-defined]
        with _default_signals():
            dist.init_process_group(backend, store=file_store, rank=rank, world_size=size, timeout=limit)
        store = dist.distributed_c10d._get_default_store()  # prefixes its keys, so they can't collide with others
    except (RuntimeError, ValueError) as error:
        raise LostProcessError(
            f"process {rank} of {size} can't reach the others: {first_line(error)}",
            "check that all processes run and that the network lets them connect",
        ) from error
    store.set_timeout(limit)
    _joined.append(Group(rank, size, local_rank, store, timeout))
    return _joined[0]


@contextlib.contextmanager
def _default_signals() -> Iterator[None]:
    """Let SIGINT and SIGTERM end the process at once while the block waits in C++, where Python handles no signal.

    If SIGTERM does not end a process, torchrun waits for 30 s before it kills the process and starts new ones.
    """
    if threading.current_thread() is not threading.main_thread():  # other threads can't change handlers
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    python_handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in python_handlers:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in python_handlers.items():
            signal.signal(number, handler)


def _read_variable(name: str, default: int | None = None) -> int:
    """An environment variable that is an integer. Raises `OctavoError` if it is missing or not an integer."""
    value = os.environ.get(name, default)
    try:
        return int(str(value))
    except ValueError:
        problem = f"is {value!r}" if value is not None else "is not set"
        raise OctavoError(
            f"the environment variable {name} {problem}, and WORLD_SIZE is {os.environ.get('WORLD_SIZE')}",
            "octavo train --processes N, or torchrun, which set it",
        ) from None
