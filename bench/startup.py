"""How long the command line takes to answer, and what importing costs. Medians, in seconds.

python bench/startup.py [--runs 9] [--json]
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import octavo": ["-c", "import octavo"],
    "octavo --help": ["-m", "octavo", "--help"],
    "octavo train --help": ["-m", "octavo", "train", "--help"],
    "import torch": ["-c", "import torch"],
}
CEILING = {"octavo --help": 0.3}  # seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(options.runs):
        for name, words in COMMANDS.items():  # in turn, so that a slow moment is everybody's
            begin = time.perf_counter()
            subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    if options.json:
        print(json.dumps(medians))
    else:
        for name, value in medians.items():
            ceiling = f"  (ceiling {CEILING[name]})" if name in CEILING else ""
            print(f"{name:22} {value:6.3f}{ceiling}")
    return int(any(medians[name] > ceiling for name, ceiling in CEILING.items()))


if __name__ == "__main__":
    sys.exit(main())
