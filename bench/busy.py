"""Time a training step on a quiet machine and beside busy processes.

    python bench/busy.py [--preset tiny] [--seconds 12] [--rounds 3] [--json]

Each variant runs in a separate process beside 0, 1 and 2 processes that compute all the time; variants alternate. The
figures are milliseconds per step: the median of the second half of a round's steps, then the median over the rounds.
`fixed threads` switches off `octavo.training.threads`; the variants after it change how OpenMP's threads wait.
Two ratios follow. Close other programs: they count as busy processes.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator

import machine

VARIANTS: dict[str, dict[str, str]] = {
    "octavo train": {},
    "fixed threads": {"FIXED": "1"},
    "fixed threads, GOMP_SPINCOUNT=20000": {"FIXED": "1", "GOMP_SPINCOUNT": "20000"},
    "fixed threads, GOMP_SPINCOUNT=3000": {"FIXED": "1", "GOMP_SPINCOUNT": "3000"},
    "fixed threads, OMP_WAIT_POLICY=PASSIVE": {"FIXED": "1", "OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
BUSY = (0, 1, 2)
_VARIABLES = ("FIXED", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
_CHILD = """
import os, statistics, sys, time
import numpy as np, torch
from octavo.device import resolve_runtime
from octavo.model import GPT
from octavo.settings import resolve
from octavo.training.step import Trainer

settings = resolve(sys.argv[1], vocab_size=65, device="cpu")
trainer = Trainer(GPT(settings, torch.Generator().manual_seed(0)), settings, resolve_runtime(settings))
if os.environ.get("FIXED"):
    trainer.threads = None
batch = np.random.default_rng(0).integers(0, 65, (settings.batch_size, settings.block_size + 1))
times, end = [], time.perf_counter() + float(sys.argv[2])
while time.perf_counter() < end or len(times) < 10:
    start = time.perf_counter()
    trainer.update(batch)
    times.append(time.perf_counter() - start)
print(1000 * statistics.median(times[len(times) // 2 :]))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--seconds", type=float, default=12.0, help="for each variant")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    times: dict[str, dict[int, list[float]]] = {name: {busy: [] for busy in BUSY} for name in VARIANTS}
    for _ in range(options.rounds):
        for name in VARIANTS:
            for busy in BUSY:
                with busy_processes(busy):
                    times[name][busy].append(step_milliseconds(options.preset, options.seconds, VARIANTS[name]))
    medians = {name: {busy: statistics.median(each) for busy, each in row.items()} for name, row in times.items()}
    octavo, fixed, single = (medians[name] for name in ("octavo train", "fixed threads", "one thread"))
    ratios = {
        "octavo train beside two processes, relative to one thread beside one": octavo[2] / single[1],
        "octavo train on a quiet machine, relative to fixed threads": octavo[0] / fixed[0],
    }
    if options.json:
        print(json.dumps({"machine": machine.describe(), "milliseconds": medians, "ratios": ratios}))
        return 0
    print(machine.summary())
    print(f"{'ms per step of ' + options.preset:40}" + "".join(f"{f'beside {busy}':>12}" for busy in BUSY))
    for name, row in medians.items():
        print(f"{name:40}" + "".join(f"{row[busy]:12.1f}" for busy in BUSY))
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}")
    return 0


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Run the block beside processes that compute all the time."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def step_milliseconds(preset: str, seconds: float, variables: dict[str, str]) -> float:
    environment = {name: value for name, value in os.environ.items() if name not in _VARIABLES} | variables
    command = [sys.executable, "-c", _CHILD, preset, str(seconds)]
    process = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(process.stdout)


if __name__ == "__main__":
    sys.exit(main())
