"""Compare the time of gradient exchanges with the formulas of `octavo.scaling`, and print the table of docs/scale.md.

    python bench/scale.py                      # nine exchanges between hosts; needs root on Linux; 3 minutes
    python bench/scale.py --threads [SOURCE]   # two processes with a thread each, and one process with two; 5 minutes
    python bench/scale.py --table              # the table: nothing is measured

The hosts are network namespaces on this machine (bench/hosts.py); tc's tbf limits what each sends. An exchange is what
`octavo train` does after each step: `World.sum` of the gradients, then `World.any` of the stop flag. Median of the
rounds. The script fails if a prediction differs from the measurement by more than the limit.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import hosts
import machine
import octavo
from octavo import estimate, scaling
from octavo.scaling import Network, Processes
from octavo.settings import resolve

LIMIT = 0.15  # relative
LATENCY = 30e-6  # seconds between two namespaces
# Processes, Mbit/s, and the width of a model with 4 layers: 4, 8 and 16 MB of gradients. Faster links are idle while
# two cores compute for all the processes.
POINTS = [(count, rate, width) for count in (2, 3, 4) for rate, width in ((100, 144), (200, 200), (400, 288))]
SHAPE = dict(n_layer=4, n_head=4, block_size=64, vocab_size=256)
ROUNDS = 5

# The table: GPT-2's sizes and one of 10 billion parameters, on machines with eight GPUs.
MODELS = {
    "124M": dict(n_layer=12, n_head=12, n_embd=768, micro_batch=32),
    "1.5B": dict(n_layer=48, n_head=25, n_embd=1600, micro_batch=8),
    "10B": dict(n_layer=48, n_head=32, n_embd=4096, micro_batch=2),
}
SEQUENCES = 512  # of a batch, or 8 for each GPU if these are more
COUNTS = (2, 16, 64, 1000)
GBITS = (1, 10, 100, 400)
GPU_FLOPS = 4e14  # per second: about 40% of the bf16 peak of an H100 or H200
GPU_BYTES = 80e9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", nargs="?", const="pydocs", metavar="SOURCE")
    parser.add_argument("--steps", type=int, default=40, help="steps of each run, for --threads")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, for --threads")
    parser.add_argument("--preset", default="baby", help="preset, for --threads")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--worker", metavar="SETTINGS", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.worker:
        return exchange_gradients(json.loads(options.worker))
    if options.table:
        print(table())
        return 0
    if not options.json:
        print(machine.summary())
    if options.threads:
        return compare_threads(options)
    return compare_exchanges(options.json)


def compare_exchanges(as_json: bool) -> int:
    """Measure and predict every point. Returns 1 if a prediction is too far off."""
    missing = hosts.missing_requirement()
    if missing is not None:
        print(f"error: {missing}", file=sys.stderr)
        return 2
    rows = []
    for count, mbit, width in POINTS:
        settings = resolve(**SHAPE, n_embd=width, batch_size=count, optimizer="adamw")
        network = Network(mbit * 1e6, LATENCY)
        cost = scaling.step_cost(settings, 0.0, "cpu", "fp32", 1, Processes(count, count, network))
        seconds = measure_exchange(count, mbit * 1e6, width)
        rows.append(
            {
                "processes": count,
                "mbit_per_second": mbit,
                "bytes": 4 * estimate.parameters(settings),
                "measured_seconds": seconds,
                "predicted_seconds": cost.communication_seconds,
                "error": cost.communication_seconds / seconds - 1,
            }
        )
        if not as_json:
            print(
                f"{count} processes, {mbit:5} Mbit/s, {rows[-1]['bytes'] / 1e6:5.1f} MB: measured {seconds:6.3f} s, "
                f"predicted {cost.communication_seconds:6.3f} s, {rows[-1]['error']:+.1%}",
                flush=True,
            )
    met = max(abs(row["error"]) for row in rows) < LIMIT
    if as_json:
        print(json.dumps({"machine": machine.describe(), "points": rows, "met": met}))
    else:
        print(f"all within {LIMIT:.0%}: {'yes' if met else 'no'}")
    return 0 if met else 1


def measure_exchange(count: int, bits_per_second: float, width: int) -> float:
    """The seconds of an exchange between as many hosts."""
    with hosts.network(count, bits_per_second) as members, tempfile.TemporaryDirectory() as folder:
        workers = []
        for rank, host in enumerate(members):
            variables = {
                "RANK": str(rank),
                "WORLD_SIZE": str(count),
                "LOCAL_RANK": "0",
                "OCTAVO_STORE": f"{folder}/store",
                "GLOO_SOCKET_IFNAME": hosts.INTERFACE,
                "OMP_NUM_THREADS": "1",
            }
            words = [sys.executable, __file__, "--worker", json.dumps({"n_embd": width})]
            workers.append(
                subprocess.Popen(
                    host.command(words), env=os.environ | variables, stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
                )
            )
        outputs = [worker.communicate()[0] for worker in workers]
        assert all(worker.returncode == 0 for worker in workers)
    return statistics.median(json.loads(outputs[0]))


def exchange_gradients(shape: dict[str, Any]) -> int:
    """One of the processes: exchange the gradients of a model, and print the seconds of each round."""
    import torch

    from octavo import distributed
    from octavo.model import GPT

    world = distributed.join(120)
    model = GPT(resolve(**SHAPE, **shape), torch.Generator())
    tensors = [torch.zeros(1), *(torch.randn_like(parameter) for parameter in model.parameters())]
    seconds = []
    for number in range(ROUNDS + 1):
        world.any(False)  # all start together
        start = time.perf_counter()
        world.sum(tensors)
        world.any(False)
        if number:  # the first warms up
            seconds.append(time.perf_counter() - start)
    if world.is_first:
        print(json.dumps(seconds), flush=True)
    world.leave()
    return 0


def compare_threads(options: argparse.Namespace) -> int:
    """Tokens per second of two processes with a thread each, and of one process with two threads or one, in turn."""
    sides = {"2 processes x 1 thread": (2, 1), "1 process x 2 threads": (1, 2), "1 process x 1 thread": (1, 1)}
    rates: dict[str, list[float]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            for side, (processes, threads) in sides.items():
                run = Path(folder, f"run-{number}-{processes}-{threads}")
                words = [
                    options.threads,
                    f"--preset={options.preset}",
                    f"--max-steps={options.steps}",
                    "--max-epochs=0",
                ]
                words += [f"--eval-every={10**9}", "--sample-every=0", "--keep-checkpoints=0", "--log-every=1"]
                words += ["--curriculum-splits=1", f"--processes={processes}", f"--out={run}"]
                environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OCTAVO_CACHE": f"{folder}/cache"}
                command = [sys.executable, "-m", "octavo", "train", *words]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
                lines = octavo.Run(run).lines("metrics")
                rates[side].append(statistics.median(line["tokens_per_second"] for line in lines[len(lines) // 3 :]))
                if not options.json:
                    print(f"{side:24} {rates[side][-1]:10,.0f} tokens/s", flush=True)
    medians = {side: statistics.median(each) for side, each in rates.items()}
    if options.json:
        print(json.dumps({"machine": machine.describe(), "rates": rates, "tokens_per_second": medians}))
    else:
        first, second, _ = medians.values()
        print(f"two processes have {first / second:.2f} times the throughput of two threads")
    return 0


def table() -> str:
    """The table of docs/scale.md in Markdown: arithmetic, from the formulas and `GPU_FLOPS`."""
    head = [f"{count:,} GPUs" for count in COUNTS]
    lines = [f"| model, mode | memory | Gbit/s | {' | '.join(head)} |", "|---|---|---|" + "---|" * len(COUNTS)]
    for name, shape in MODELS.items():
        for mode in ("replicated", "sharded"):
            for gbit in GBITS:
                rows = [table_row(shape, mode, count, gbit) for count in COUNTS]
                memory = rows[1][1]
                fits = f"{memory / 1e9:,.0f} GB" + (" (too much)" if memory > GPU_BYTES else "")
                cells = " | ".join(f"{utilization:.0%}" for utilization, _ in rows)
                lines.append(f"| {name}, {mode} | {fits} | {gbit} | {cells} |")
    return "\n".join(lines)


def table_row(shape: dict[str, int], mode: str, count: int, gbit: float) -> tuple[float, int]:
    """Utilization and bytes of memory. Each machine has eight GPUs and all shards; two GPUs are on two machines."""
    batch_size = max(SEQUENCES, 8 * count)
    settings = resolve(
        **shape, block_size=1024, vocab_size=50257, batch_size=batch_size, optimizer="adamw", dropout=0.0
    )
    shard = 0 if mode == "replicated" else min(8, count)
    processes = Processes(count, count // 8 or count, scaling.network(gbit, 20e-6), scaling.NVLINK, shard)
    micro_batch = min(settings.micro_batch, batch_size // count)
    flops = settings.batch_size * settings.block_size * estimate.flops_per_token(settings)
    cost = scaling.step_cost(settings, flops / GPU_FLOPS / count, "cuda", "bf16", micro_batch, processes)
    return cost.utilization, scaling.memory(settings, "cuda", "bf16", micro_batch, processes).peak


if __name__ == "__main__":
    sys.exit(main())
