"""Preparing a large text: beside nanoGPT's way, learning a vocabulary, and how much memory it takes.

    python bench/preparation.py --nanogpt PATH [--texts FILE ...] [--figures speed vocabulary memory]
                                [--gigabytes 1] [--memory-gigabytes 2] [--rounds 3] [--json]

The text is made of what is at hand, pydocs and --texts, in documents of about 4 KB: lines drawn at random, a letter in
every 300 changed at random, so that about every fiftieth word is one that was never seen, as in real text.

speed      `octavo prepare` with GPT-2's tokens, from JSON lines to shards, against nanoGPT's script for
           openwebtext on the same file: as it lies in the checkout, but for where its dataset comes from, its number of
           processes (here: the cores), where it writes, and that 2,000 documents validate (it wants 1,024 and more).
           Whole processes, in turn, the median. It reads JSON lines through `datasets`, which converts them first:
           told apart, for its own dataset comes converted.
vocabulary seconds to learn `bpe:32768` from 100 MB.
memory     `octavo prepare` of --memory-gigabytes: the most that it and its processes held together, every 50 ms.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from octavo import tokenizers
from octavo.data import pydocs

MUST: dict[str, Callable[[dict[str, Any]], bool]] = {
    "speed": lambda found: found["ratio_without_converting"] >= 1.5,
    "vocabulary": lambda found: found["seconds"] < 120,
    "memory": lambda found: found["peak_bytes"] < 1e9,
}
NANOGPT = """
import os, sys, time
import datasets
script, rows, folder, cores = sys.argv[1:]
source = open(script, encoding="utf-8").read()
assert "num_proc = 8" in source and 'load_dataset("openwebtext", num_proc=num_proc_load_dataset)' in source
assert "test_size=0.0005" in source
source = source.replace("num_proc = 8", f"num_proc = {cores}").replace("test_size=0.0005", "test_size=2000")
def load(*_, **__):
    start = time.perf_counter()
    found = datasets.DatasetDict(train=datasets.load_dataset("json", data_files=rows, split="train", cache_dir=folder))
    print("converted", time.perf_counter() - start, flush=True)
    return found
source = source.replace('load_dataset("openwebtext", num_proc=num_proc_load_dataset)', "load()")
exec(compile(source, script, "exec"), {"__name__": "__main__", "__file__": os.path.join(folder, "x"), "load": load})
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT, for speed")
    parser.add_argument("--texts", type=Path, nargs="*", default=[], help="text files to make more text of")
    parser.add_argument("--figures", nargs="+", choices=("speed", "vocabulary", "memory"),
                        default=["speed", "vocabulary", "memory"])  # fmt: skip
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--memory-gigabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if "speed" in options.figures and not (options.nanogpt and (options.nanogpt / "data/openwebtext").is_dir()):
        print("error: speed needs nanoGPT\n  try: --nanogpt PATH, a checkout of it", file=sys.stderr)
        return 2
    lines = np.array([line for text in (pydocs.text(), *(p.read_text(encoding="utf-8") for p in options.texts))
                      for line in text.splitlines() if line.isascii() and len(line) > 20], dtype=object)  # fmt: skip
    out: dict[str, Any] = {"cores": len(os.sched_getaffinity(0))}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if "speed" in options.figures:
            out["speed"] = speed(made(place / "speed.jsonl", lines, options.gigabytes), options.nanogpt, options.rounds)
            (place / "speed.jsonl").unlink()
        if "vocabulary" in options.figures:
            out["vocabulary"] = vocabulary(lines)
        if "memory" in options.figures:
            out["memory"] = memory(made(place / "memory.jsonl", lines, options.memory_gigabytes))
    print(json.dumps(out) if options.json else drawn(out))
    missed = [name for name, met in MUST.items() if name in out and not met(out[name])]
    print("met" if not missed else f"MISSED: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


def document(lines: Sequence[str], rng: np.random.Generator) -> str:
    """About 4 KB."""
    text = "\n".join(lines[i] for i in rng.integers(0, len(lines), 80)).encode()
    letters = np.frombuffer(text, np.uint8).copy()
    places = rng.integers(0, len(letters), len(letters) // 300)
    places = places[(letters[places] >= 97) & (letters[places] <= 122)]
    letters[places] = rng.integers(97, 123, len(places))
    return letters.tobytes().decode()


def made(path: Path, lines: Sequence[str], gigabytes: float) -> Path:
    """So much text, as JSON lines; each gigabyte after the first is the first once more."""
    print(f"making {gigabytes:g} GB of text", file=sys.stderr)
    rng, size = np.random.default_rng(0), 0
    with open(path, "w", encoding="utf-8") as file:
        while size < min(gigabytes, 1) * 1e9:
            size += file.write(json.dumps({"text": document(lines, rng)}) + "\n")
    with open(path, "rb") as first, open(path, "ab") as file:
        for _ in range(round(gigabytes) - 1):
            first.seek(0)
            for _ in range(-(-size // (1 << 24))):
                file.write(first.read(min(1 << 24, size - first.tell())))
    return path


def whole(command: list[str]) -> tuple[float, int, str]:
    """Seconds of a process from its start to its end, the most bytes that it and its children held, what it printed."""
    start, most = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors,
                                                                  text=True) as process:  # fmt: skip
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            held = 0
            for each in [watched, *children(watched)]:
                try:
                    held += each.memory_info().rss
                except psutil.Error:
                    continue
            most = max(most, held)
            time.sleep(0.05)
        seconds = time.perf_counter() - start
        assert process.stdout is not None
        said = process.stdout.read()
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"{command[0]} ended with {process.returncode}: {errors.read()[-2000:]}")
    return seconds, most, said


def children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def prepared(rows: Path, out: Path) -> tuple[float, int, dict[str, Any]]:
    octavo = str(Path(sys.executable).with_name("octavo"))
    seconds, most, said = whole([octavo, "prepare", str(rows), "--out", str(out), "--tokenizer", "gpt2",
                                 "--val-fraction", "0.0005", "--json"])  # fmt: skip
    return seconds, most, json.loads(said)


def speed(rows: Path, nanogpt: Path, rounds: int) -> dict[str, Any]:
    ours, theirs, converting, tokens = [], [], [], {}
    cores = str(len(os.sched_getaffinity(0)))
    for number in range(rounds):
        with tempfile.TemporaryDirectory(dir=rows.parent) as folder:
            seconds, _, info = prepared(rows, Path(folder) / "out")
            ours.append(seconds)
            tokens["octavo"] = sum(info["tokens"].values())
        with tempfile.TemporaryDirectory(dir=rows.parent) as folder:
            script = str(nanogpt / "data/openwebtext/prepare.py")
            seconds, _, said = whole([sys.executable, "-c", NANOGPT, script, str(rows), folder, cores])
            theirs.append(seconds)
            converting.append(next(float(line.split()[1]) for line in said.splitlines() if line.startswith("conv")))
            tokens["nanogpt"] = sum((Path(folder) / f"{split}.bin").stat().st_size // 2 for split in ("train", "val"))
        print(f"round {number + 1}: octavo {ours[-1]:.1f} s, nanoGPT {theirs[-1]:.1f} s, of it {converting[-1]:.1f} "
              "converting", file=sys.stderr)  # fmt: skip
    pairs = [(o, t, c) for o, t, c in zip(ours, theirs, converting, strict=True)]
    return {
        "bytes": rows.stat().st_size, "octavo_seconds": statistics.median(ours),
        "nanogpt_seconds": statistics.median(theirs), "converting_seconds": statistics.median(converting),
        "ratio": statistics.median(t / o for o, t, _ in pairs),
        "ratio_without_converting": statistics.median((t - c) / o for o, t, c in pairs), "tokens": tokens,
    }  # fmt: skip


def vocabulary(lines: Sequence[str]) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    pieces, size = [], 0
    while size < 100_000_000:
        pieces.append("\n".join(document(lines, rng) for _ in range(250)))
        size += len(pieces[-1])
    start = time.perf_counter()
    learnt = tokenizers.build("bpe:32768", pieces)
    return {"bytes": size, "seconds": time.perf_counter() - start, "vocab_size": learnt.vocab_size}


def memory(rows: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=rows.parent) as folder:
        seconds, most, info = prepared(rows, Path(folder) / "out")
    return {"bytes": info["text"]["bytes"], "peak_bytes": most, "seconds": seconds, "shards": len(info["files"]) - 2}


def drawn(out: dict[str, Any]) -> str:
    said = [f"{out['cores']} cores"]
    if found := out.get("speed"):
        said.append(
            f"speed       {found['bytes'] / 1e9:.2f} GB: octavo {found['octavo_seconds']:.1f} s "
            f"({found['bytes'] / 1e6 / found['octavo_seconds']:.0f} MB/s), nanoGPT {found['nanogpt_seconds']:.1f} s; "
            f"ratio {found['ratio']:.2f}, without its conversion of {found['converting_seconds']:.1f} s "
            f"{found['ratio_without_converting']:.2f}; tokens {found['tokens']}"
        )
    if found := out.get("vocabulary"):
        said.append(f"vocabulary  {found['vocab_size']:,} tokens from {found['bytes'] / 1e6:.0f} MB: "
                    f"{found['seconds']:.1f} s")  # fmt: skip
    if found := out.get("memory"):
        said.append(f"memory      {found['bytes'] / 1e9:.2f} GB in {found['seconds']:.0f} s and {found['shards']} "
                    f"shards: at most {found['peak_bytes'] / 1e6:.0f} MB held")  # fmt: skip
    return "\n".join(said)


if __name__ == "__main__":
    sys.exit(main())
