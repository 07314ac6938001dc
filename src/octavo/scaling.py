"""What training in several processes costs, by formula: bytes on the network, seconds of a step, memory of a process.

Settings and a measured time in, numbers out: nothing here measures, connects or builds a model. `bench/scale.py`
compares the formulas with measurements, and prints the table of docs/scale.md.

`N` processes train; with `--shard K`, groups of `K` divide the model among them. `P` is the number of parameters.
Collectives use the ring algorithm, as in gloo and NCCL: each process sends to the next one, and the last process of a
machine sends to the first of the next machine.
"""

import dataclasses
import math
from dataclasses import dataclass

from octavo import estimate
from octavo.distributed import check_shard
from octavo.errors import OctavoError
from octavo.estimate import Memory
from octavo.settings import Settings

# TCP carries 1,448 bytes in a frame that takes 1,538 on the wire.
_TCP_SHARE = 1448 / 1538
_SEGMENT_BYTES = 1 << 20  # gloo sends a process's part of a tensor in segments of this size
# A CPU copies the tensors into one buffer, adds what it receives, and copies the sums back. Measured: bench/scale.py.
_CPU_SECONDS_PER_BYTE = 1.5e-9


@dataclass(frozen=True)
class Network:
    """Links between processes: `rate` in bits per second and direction, `latency` in seconds one way."""

    rate: float
    latency: float

    def __post_init__(self) -> None:
        if not 0 < self.rate < math.inf:
            raise OctavoError(f"a link of {self.rate / 1e9:g} Gbit/s is impossible", "--link 10")
        if not 0 <= self.latency < math.inf:
            raise OctavoError(f"a latency of {self.latency:g} s is impossible", "--latency 50e-6")


ETHERNET = Network(10e9, 50e-6)  # between machines, unless the user says otherwise
LOOPBACK = Network(16e9, 20e-6)  # gloo between two processes on one CPU
PCIE = Network(200e9, 10e-6)  # between two GPUs in one machine
NVLINK = Network(3600e9, 10e-6)  # of an H100 or H200


def network(gbit_per_second: float | None, latency: float | None) -> Network | None:
    """The network that a user describes; None if the user gives neither rate nor latency."""
    if gbit_per_second is None and latency is None:
        return None
    rate = ETHERNET.rate if gbit_per_second is None else gbit_per_second * 1e9
    return Network(rate, ETHERNET.latency if latency is None else latency)


@dataclass(frozen=True)
class Processes:
    """How many processes train, on how many machines, and what connects them. `link` has defaults for the networks."""

    count: int = 1
    machines: int = 1
    network: Network | None = None  # between machines, or inside the only one
    local: Network | None = None  # inside each of several machines
    shard: int = 0  # the processes that divide one model among them; 0: each has all of it

    def __post_init__(self) -> None:
        if self.count < 1 or self.machines < 1 or self.count % self.machines:
            raise OctavoError(
                f"{self.count} processes can't be divided evenly among {self.machines} machines",
                f"--processes {max(1, self.count // max(1, self.machines)) * max(1, self.machines)}",
            )
        check_shard(self.shard, self.count)

    @property
    def per_machine(self) -> int:
        return self.count // self.machines

    def link(self, device: str, crosses_machines: bool) -> Network:
        """The network between two of the processes."""
        if crosses_machines:
            return self.network or ETHERNET
        given = self.network if self.machines == 1 else self.local
        return given or (LOOPBACK if device == "cpu" else PCIE)


@dataclass(frozen=True)
class StepCost:
    """What a step costs each process."""

    compute_seconds: float
    communication_seconds: float
    step_seconds: float
    utilization: float  # the share of the step in which the process computes
    bytes_sent: int  # by each process, to other processes


def divide_seconds(seconds: float, device: str, processes: Processes) -> float:
    """The seconds that work takes if `processes` divide it, without communication. One process takes `seconds`.

    On CPUs, one process uses all cores of its machine, so more processes there are not faster. On GPUs, each process
    has a GPU.
    """
    return seconds / (processes.machines if device == "cpu" else processes.count)


def step_cost(
    settings: Settings, compute_seconds: float, device: str, precision: str, micro_batch: int, processes: Processes
) -> StepCost:
    """The cost of a step that takes `compute_seconds` in each process without communication.

    First the processes compute, then they communicate. Only GPUs that shard the model do both at once.
    """
    sent, seconds = 0.0, 0.0
    for collective in _collectives(settings, device, precision, micro_batch, processes):
        sent += collective.bytes_sent
        seconds += collective.seconds
    overlaps = device == "cuda" and processes.shard > 0  # FSDP2 gathers the next block meanwhile
    total = max(compute_seconds, seconds) if overlaps else compute_seconds + seconds
    return StepCost(compute_seconds, seconds, total, compute_seconds / total if total else 1.0, round(sent))


@dataclass(frozen=True)
class _Collective:
    bytes_sent: float
    seconds: float


def _collectives(
    settings: Settings, device: str, precision: str, micro_batch: int, processes: Processes
) -> list[_Collective]:
    """The collectives of a step."""
    N, K, P = processes.count, processes.shard, estimate.parameters(settings)
    if N == 1:
        return []
    is_spread = processes.machines > 1

    def ring(count: int, crosses_machines: bool, rings: int = 1) -> _Ring:
        return _Ring(count, rings, device, processes.link(device, crosses_machines))

    block = 12 * settings.n_embd**2
    world = ring(N, is_spread)
    collectives = [world.all_reduce(8)]  # the stop flag
    if settings.optimizer == "muon":  # the orthogonal matrices, of which each process has computed a part
        collectives.append(world.all_gather((2 if precision == "bf16" else 4) * block * settings.n_layer))
    if not K:
        return [*collectives, world.all_reduce(4 * (P + 1))]  # float32 gradients, and the loss
    shards = ring(K, processes.per_machine < K)
    replicas = ring(N // K, is_spread, min(K, processes.per_machine))
    parts = [*[block] * settings.n_layer, P - block * settings.n_layer]
    size = 2 if device == "cuda" and precision == "bf16" else 4  # of a weight that is gathered
    gathers = [shards.all_gather(size * part) for part in parts] * 2  # for the forward, and again for the backward
    scatters = [shards.all_gather(4 * part) for part in parts]  # a reduce-scatter sends as much
    sums = [replicas.all_reduce(4 * part / K) for part in parts]
    micro_batches = math.ceil(settings.batch_size / N / micro_batch)
    return [*collectives, *(gathers + scatters + sums) * micro_batches, world.all_reduce(16)]  # 16: loss and norm


@dataclass(frozen=True)
class _Ring:
    """A ring of `count` processes; `rings` such rings share the link of a machine."""

    count: int
    rings: int
    device: str
    link: Network

    def all_reduce(self, size: float) -> _Collective:
        """Sum a tensor of `size` bytes: a reduce-scatter, then an all-gather."""
        return self._cost(2, size)

    def all_gather(self, size: float) -> _Collective:
        """Send the part of each process to all others: `size` bytes in all."""
        return self._cost(1, size)

    def _cost(self, rounds: int, size: float) -> _Collective:
        N = self.count
        if N == 1:
            return _Collective(0, 0)
        sent, steps = rounds * (N - 1) / N * size, rounds * (N - 1)
        seconds = 8 * sent * self.rings / (self.link.rate * _TCP_SHARE)
        seconds += steps * max(1, math.ceil(size / N / _SEGMENT_BYTES)) * self.link.latency
        if self.device == "cpu":
            seconds += size * _CPU_SECONDS_PER_BYTE
        return _Collective(sent, seconds)


def memory(
    settings: Settings,
    device: str,
    precision: str,
    micro_batch: int,
    processes: Processes,
    program: int = 0,
    has_fused_step: bool = True,
) -> Memory:
    """The memory of each process, as `octavo.estimate.memory` computes it for one that has the whole model.

    With `--shard`, a process holds its part of weights, gradients and optimizer state, and two whole blocks: the one
    that is computed and the one that is gathered meanwhile. The embeddings stay gathered during a step.
    """
    K = processes.shard
    is_fused = has_fused_step and not K
    whole = estimate.memory(settings, device, precision, micro_batch, program, processes.count, is_fused)
    if not K:
        return whole
    block = 12 * settings.n_embd**2
    gathered = estimate.parameters(settings) - block * settings.n_layer + 2 * block
    weights = whole.weights // K + (2 if device == "cuda" and precision == "bf16" else 4) * gathered
    gradients = whole.gradients // K + 4 * gathered
    optimizer, workspace = whole.optimizer // K, whole.optimizer_workspace // K
    kept = weights + gradients + optimizer + whole.checkpoint + program
    peak = kept + max(whole.activations + whole.logits, workspace) + whole.fragmentation
    return dataclasses.replace(
        whole, weights=weights, gradients=gradients, optimizer=optimizer, optimizer_workspace=workspace, peak=peak
    )
