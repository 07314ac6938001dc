"""Time how fast training starts on a prepared dataset, a large one beside a small one. Medians, in seconds.

    python bench/opening.py [--large 2000000000] [--small 2000000] [--rounds 5] [--first]

The script generates two texts, prepares them with the tokenizer `byte`, and then starts training on each in turn, in a
new process, until its `Started` event. The large one needs about three times its size on the disk of the temporary
folder. `--first` also prints the first start, which may have to verify the shards.
"""

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine

START = """
import sys
from octavo import training
plan = training.plan(sys.argv[1], preset="tiny", max_steps=10, max_epochs=0, out=sys.argv[2])
for event in training.events(plan):
    if isinstance(event, training.Started):
        break
"""
WORDS = ["the", "king", "queen", "and", "said", "not", "my", "with", "for", "that", "his", "her"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", type=int, default=2_000_000_000, help="bytes of the large text")
    parser.add_argument("--small", type=int, default=2_000_000, help="bytes of the small text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--first", action="store_true", help="print the first start too")
    options = parser.parse_args()
    print(machine.summary())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        datasets = {size: prepare(folder, size) for size in (options.large, options.small)}
        first = {size: time_start(folder, dataset, 0) for size, dataset in datasets.items()}
        seconds: dict[int, list[float]] = {size: [] for size in datasets}
        for number in range(1, options.rounds + 1):
            for size, dataset in datasets.items():
                seconds[size].append(time_start(folder, dataset, number))
    for size, times in seconds.items():
        extra = f", the first start {first[size]:.2f}" if options.first else ""
        print(f"{size:>14,} bytes: {statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f}){extra}")


def prepare(folder: Path, size: int) -> Path:
    """Generate a text of `size` bytes and prepare it. Returns the prepared folder."""
    text, out = folder / f"{size}.txt", folder / f"tokens-{size}"
    rng = random.Random(size)
    block = "\n".join(" ".join(rng.choices(WORDS, k=9)) for _ in range(20_000)).encode()
    with open(text, "wb") as file:
        for offset in range(0, size, len(block)):
            file.write(block[: size - offset])
    command = [sys.executable, "-m", "octavo", "prepare", str(text), "--tokenizer", "byte", "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    text.unlink()
    return out


def time_start(folder: Path, dataset: Path, number: int) -> float:
    """Seconds from the start of a process until training on the dataset has started."""
    run = folder / f"run-{dataset.name}-{number}"
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", START, str(dataset), str(run)], check=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
