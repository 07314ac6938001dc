"""Time the start of the command line, and the imports. Medians, in seconds.

    python bench/startup.py [--rounds 9] [--json]

Each command runs in its own process. The script fails if `octavo --help` takes longer than its limit.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

import machine

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import octavo": ["-c", "import octavo"],
    "octavo --help": ["-m", "octavo", "--help"],
    "octavo train --help": ["-m", "octavo", "train", "--help"],
    "import torch": ["-c", "import torch"],
}
LIMITS = {"octavo --help": 0.3}  # seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(options.rounds):
        for name, arguments in COMMANDS.items():  # in turn, so that a slow moment affects all of them
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    if options.json:
        print(json.dumps({"machine": machine.describe(), "seconds": medians}))
    else:
        print(machine.summary())
        for name, value in medians.items():
            limit = f"  (limit {LIMITS[name]})" if name in LIMITS else ""
            print(f"{name:22} {value:6.3f} s{limit}")
    return int(any(medians[name] > limit for name, limit in LIMITS.items()))


if __name__ == "__main__":
    sys.exit(main())
