"""Compare Octavo's generation with nanoGPT, transformers, CTranslate2 and llama.cpp: the same weights, in one session.

    python bench/against_peers.py --nanogpt PATH [--peers-python PATH] [--figures whole fp32 int8 char streams]
                                  [--rounds 5] [--nanogpt-rounds 1] [--threads N] [--shape-override L H C] [--json]

--nanogpt is a checkout; --peers-python a Python that has torch, safetensors, transformers, ctranslate2, xllamacpp
(llama.cpp's server as a library) and gguf. Each program has its own process (`peers.py`), loads the model once and
sleeps while another is timed; all use --threads threads. Each round has a new prompt of random tokens, the same for
every program. Figures are medians over the rounds. A ratio above 1 means that Octavo is faster.

- `whole`: 124M, float32, a prompt of 512 tokens and 256 new ones: seconds for all of it. nanoGPT with the temperature
  and top-k of its sample.py, Octavo with the same. nanoGPT is slow, so it runs only in the first --nanogpt-rounds.
- `fp32`: 124M, greedy. Prefill: seconds from a prompt of 512 tokens to the first new one. Decode: tokens per second
  after it, from the time for 256 tokens minus that for 1.
- `int8`: the same with int8 weights (llama.cpp: Q8_0).
- `char`: the same for nanoGPT's character-level model (10M), float32, a prompt of 96 and 150 new tokens, with nanoGPT.
- `streams`: Octavo alone, 8 requests with different lengths and sampling parameters: the throughput of one after the
  other, and of all at once (continuous batching).

The weights are random. Those of the blocks are five times as large as GPT-2's initialization, because a model with the
latter repeats one token. "same" counts the first tokens, of 32, that equal Octavo's. They can differ earlier after a
near tie, or because of llama.cpp's f16 cache or its GELU, which for `char` is not nanoGPT's.

Memory bandwidth is measured in every round: all threads sum 1 GiB of float32. A decoded token reads all weights except
wpe, and the KV cache (float32 or int8) of the prompt and half of the new tokens. A small model may exceed the
bandwidth, because the processor's caches hold part of it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

import machine
from octavo import checkpoint, tokenizers
from octavo.model import GPT
from octavo.settings import Settings

SHAPES: dict[str, dict[str, Any]] = {
    "124M": dict(n_layer=12, n_head=12, n_embd=768, block_size=1024, vocab_size=50257),
    "10M": dict(n_layer=6, n_head=6, n_embd=384, block_size=256, vocab_size=65, activation="gelu"),
}
LENGTHS = {"124M": (512, 256), "10M": (96, 150)}  # tokens of the prompt, new tokens
STREAMS = (("124M", "fp32"), ("124M", "int8"), ("10M", "fp32"))
SAMPLINGS = ({"temperature": 0}, {}, {"top_p": 0.95}, {"repetition_penalty": 1.1})
PACKAGES = ("torch", "safetensors", "transformers", "ctranslate2", "xllamacpp", "gguf")
INT8, FP32 = ("ctranslate2", "llama.cpp"), ("transformers", "ctranslate2", "llama.cpp")
COMPARED_TOKENS = 32
PAUSE = 0.3  # seconds before a measurement, since worker threads of some OpenMP libraries spin after their work


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT, for whole and char")
    parser.add_argument("--peers-python", default=sys.executable, help="a Python that has the peers installed")
    parser.add_argument("--figures", nargs="+", choices=FIGURES, default=list(FIGURES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--nanogpt-rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--shape-override", type=int, nargs=3, default=(), metavar=("L", "H", "C"), help="a smaller model, as a trial"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    versions = installed_versions(options.peers_python) if set(options.figures) != {"streams"} else {}
    missing = " ".join(name for name, version in versions.items() if version is None)
    if missing:
        hint = f"{options.peers_python} -m pip install {missing}"
        print(f"error: {options.peers_python} has no {missing}\n  try: {hint}", file=sys.stderr)
        return 2
    if {"whole", "char"} & {*options.figures} and not (options.nanogpt and (options.nanogpt / "model.py").is_file()):
        print("error: whole and char need nanoGPT\n  try: --nanogpt PATH, a checkout of it", file=sys.stderr)
        return 2
    report: dict[str, Any] = {"machine": machine.describe(), "threads": options.threads, "peers": versions}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        bench.print(machine.summary())
        bench.print(", ".join(f"{name} {version}" for name, version in versions.items()))
        bench.print(f"{options.threads} threads, medians of {options.rounds} rounds")
        for name in options.figures:
            report[name] = FIGURES[name](bench)
    if options.json:
        print(json.dumps(report))
    return 0


class Bench:
    """The models, random prompts for them, and a stream for the tables."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.stream = sys.stderr if options.json else sys.stdout
        self.generator = np.random.default_rng(0)
        self.models: dict[str, GPT] = {}

    def print(self, line: str) -> None:
        print(line, file=self.stream, flush=True)

    def total_time(self) -> dict[str, Any]:
        """Seconds until all tokens are generated, nanoGPT against Octavo."""
        self.print(f"\n{title('124M', 'fp32')}, sampled: seconds in total")
        seconds: dict[str, list[float]] = {"nanogpt": [], "octavo": []}
        with ExitStack() as stack:
            programs = self.start(stack, seconds, "124M", "fp32")
            for number in range(self.options.rounds):
                prompt = self.prompt("124M")
                for name in seconds if number < self.options.nanogpt_rounds else ["octavo"]:
                    seconds[name].append(programs[name].generate(prompt, LENGTHS["124M"][1], sampled=True)[1])
        theirs, ours = (statistics.median(each) for each in seconds.values())
        self.print(f"nanogpt {theirs:.1f}, octavo {ours:.2f}, ratio {theirs / ours:.1f}")
        return {"seconds": seconds, "ratio": theirs / ours}

    def tokens(self, shape: str, precision: str, peers: tuple[str, ...]) -> dict[str, Any]:
        """Prefill and decode of one sequence."""
        self.print(f"\n{title(shape, precision)}, greedy\n{'':12}  prefill, s   ratio   tokens/s   ratio   same of 32")
        new, names, bandwidths = LENGTHS[shape][1], (*peers, "octavo"), []
        prefill, decode, same = ({name: [] for name in names} for _ in range(3))
        with ExitStack() as stack:
            programs = self.start(stack, names, shape, precision)
            for _ in range(self.options.rounds):
                size, seconds = programs["octavo"].ask("read_memory")
                bandwidths.append(size / seconds / 1e9)
                prefill_prompt, decode_prompt, generated = self.prompt(shape), self.prompt(shape), {}
                for name, program in programs.items():
                    first = program.generate(prefill_prompt, 1)[1]
                    generated[name], total = program.generate(decode_prompt, new)
                    prefill[name].append(first)
                    decode[name].append((new - 1) / (total - first))
                for name in names:
                    differ = np.not_equal(generated[name], generated["octavo"])[:COMPARED_TOKENS]
                    same[name].append(int(differ.argmax()) if differ.any() else COMPARED_TOKENS)
        seconds, rate, agreeing = ({n: statistics.median(x[n]) for n in names} for x in (prefill, decode, same))
        prefill_ratios = {name: seconds[name] / seconds["octavo"] for name in peers}
        decode_ratios = {name: rate["octavo"] / rate[name] for name in peers}
        for name in peers:
            prefill_columns = f"{seconds[name]:11.4f} {prefill_ratios[name]:7.2f}"
            decode_columns = f"{rate[name]:10.1f} {decode_ratios[name]:7.2f}"
            same_column = f"{agreeing[name]:7.0f}" if precision == "fp32" else "      -"
            self.print(f"{name:12} {prefill_columns} {decode_columns} {same_column}")
        bandwidth, needed = statistics.median(bandwidths), self.bytes_per_token(shape, precision) / 1e9
        share, best = rate["octavo"] * needed / bandwidth, min(decode_ratios, key=decode_ratios.__getitem__)
        self.print(f"{'octavo':12} {seconds['octavo']:11.4f} {rate['octavo']:18.1f}")
        self.print(
            f"decode is {decode_ratios[best]:.2f} times as fast as the best peer, {best}, and uses {share:.0%} of the "
            f"memory bandwidth: {bandwidth:.1f} GB/s, {1000 * needed:.0f} MB per token"
        )
        return {
            "prefill_seconds": prefill,
            "tokens_per_second": decode,
            "same": same,
            "prefill_ratios": prefill_ratios,
            "decode_ratios": decode_ratios,
            "best_peer": best,
            "memory_bandwidth_gb_per_second": bandwidths,
            "bandwidth_share": share,
        }

    def streams(self) -> dict[str, Any]:
        """Throughput of 8 mixed requests, one after the other and all at once."""
        out = {}
        self.print("\noctavo, 8 mixed requests: tokens/s")
        for shape, precision in STREAMS:
            longest, new = LENGTHS[shape]
            rates: dict[bool, list[float]] = {False: [], True: []}
            with ExitStack() as stack:
                program = self.start(stack, ["octavo"], shape, precision)["octavo"]
                for _ in range(self.options.rounds):
                    for at_once, rate in rates.items():
                        requests = [
                            {
                                "prompt": self.prompt(shape, longest * n // 8),
                                "new": new,
                                "sampling": SAMPLINGS[n % len(SAMPLINGS)],
                            }
                            for n in range(1, 9)
                        ]
                        texts, seconds = program.ask("streams", requests=requests, at_once=at_once)
                        assert {len(text) for text in texts} == {new}
                        rate.append(8 * new / seconds)
            alone, together = (statistics.median(rate) for rate in rates.values())
            name = f"{shape} {precision}"
            self.print(f"{name:10} in turn {alone:8.1f}, at once {together:8.1f}, ratio {together / alone:.2f}")
            out[name] = {"in_turn": rates[False], "at_once": rates[True], "ratio": together / alone}
        return out

    def start(self, stack: ExitStack, names: Any, shape: str, precision: str) -> dict[str, "Program"]:
        """Start programs, load the model into each, and warm up. They exit when the stack is closed."""
        if shape not in self.models:
            override = dict(zip(("n_layer", "n_head", "n_embd"), self.options.shape_override, strict=False))
            self.models[shape] = write_checkpoint(self.folder / shape, **SHAPES[shape] | override)
        programs = {}
        for name in names:
            python = sys.executable if name == "octavo" else self.options.peers_python
            arguments = [python, name, self.folder / shape, precision, self.options.threads]
            arguments += [self.options.nanogpt.resolve()] if name == "nanogpt" else []
            programs[name] = stack.enter_context(Program(*map(str, arguments)))
            for notice in programs[name].greeting["notices"]:
                self.print(f"{name}: {notice}")
            programs[name].generate(self.prompt(shape), 2)
        return programs

    def prompt(self, shape: str, length: int = 0) -> list[int]:
        vocab_size = self.models[shape].settings.vocab_size
        return self.generator.integers(0, vocab_size, length or LENGTHS[shape][0]).tolist()

    def bytes_per_token(self, shape: str, precision: str) -> float:
        """Bytes that decoding a token has to read, on average."""
        model, (prompt, new) = self.models[shape], LENGTHS[shape]
        weights = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2 and "wpe" not in name)
        cache = 2 * model.settings.n_layer * model.settings.n_embd * (prompt + new / 2)
        scale = 4 / model.settings.head_size  # bytes for each number: the numbers of a head share a float32 scale
        return weights * {"fp32": 4, "int8": 1}[precision] + cache * {"fp32": 4, "int8": 1 + scale}[precision]


class Program:
    """A process of `peers.py`. Its stderr goes to a file, whose end is shown if the process fails."""

    def __init__(self, python: str, name: str, folder: str, precision: str, threads: str, *more: str) -> None:
        self.name, self.log = name, Path(f"{folder}.{name}.log")
        pinned = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
        # -P: scripts beside peers.py must not shadow packages of the same name.
        command = [python, "-P", str(Path(__file__).with_name("peers.py")), name, folder, precision, threads, *more]
        with open(self.log, "w") as log:
            environment = {**machine.environment_of_peers(), **pinned, "HF_HUB_OFFLINE": "1"}
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )

    def __enter__(self) -> Self:
        self.greeting = self._read_answer()
        return self

    def __exit__(self, *error: object) -> None:
        self.process.communicate()  # it exits at the end of its stdin

    def ask(self, do: str, **arguments: Any) -> tuple[Any, float]:
        """Run an action. Returns its result, and the seconds that it took."""
        time.sleep(PAUSE)
        self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self.process.stdin.flush()
        answer = self._read_answer()
        return answer["value"], answer["seconds"]

    def generate(self, prompt: list[int], new: int, **arguments: Any) -> tuple[list[int], float]:
        ids, seconds = self.ask("generate", prompt=prompt, new=new, **arguments)
        assert len(ids) == new, f"{self.name} generated {len(ids)} tokens, not {new}"
        return ids, seconds

    def _read_answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"error: {self.name} failed:\n{self.log.read_text()[-2000:]}")
        return json.loads(line)


def write_checkpoint(folder: Path, **shape: Any) -> GPT:
    """Write a checkpoint of random weights and return its model. The tokens are arbitrary: only ids are compared."""
    tokenizer = tokenizers.build("char", "".join(map(chr, range(0x10000, 0x10000 + shape["vocab_size"] - 1))))
    settings = Settings(**shape, tokenizer="char")
    model = GPT(settings, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".h." in name and parameter.dim() == 2:
                parameter.mul_(5)
    checkpoint.save(folder, model, tokenizer, settings, {})
    return model


def installed_versions(python: str) -> dict[str, str | None]:
    """The version of each of `PACKAGES` in this Python; None for a missing one."""
    code = """import json, sys
from importlib.metadata import distributions
print(json.dumps({name: next((d.version for d in distributions(name=name)), None) for name in sys.argv[1:]}))"""
    return json.loads(subprocess.run([python, "-c", code, *PACKAGES], check=True, capture_output=True).stdout)


def title(shape: str, precision: str) -> str:
    prompt, new = LENGTHS[shape]
    return f"{shape}, {precision}, {prompt} prompt tokens, {new} new"


FIGURES = {
    "whole": Bench.total_time,
    "fp32": lambda bench: bench.tokens("124M", "fp32", FP32),
    "int8": lambda bench: bench.tokens("124M", "int8", INT8),
    "char": lambda bench: bench.tokens("10M", "fp32", ("nanogpt", *FP32)),
    "streams": Bench.streams,
}

if __name__ == "__main__":
    sys.exit(main())
