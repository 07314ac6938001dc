"""Check and measure everything that needs a GPU, in one command of less than 9 minutes.

    python bench/gpu.py --nanogpt PATH [--text SOURCE] [--minutes 8.5] [--out gpu.json]

In this order; a stage that does not fit into the time that is left is skipped, and the report names it:

    checks        the fast path against plain float32; attention with a mask against the CPU; a run and its resumption
    throughput    GPT-2 124M, block_size 1024, bf16, compiled: tokens/s and MFU beside nanoGPT (gpu_throughput.py)
    exchanges     the overhead of one all-reduce of the gradients, and of FSDP2, with one process, over a plain step
    muon          `orthogonalize` for all matrices of an optimizer step of Muon, eager and compiled
    evaluation    the time and the loss of an evaluation, with TF32 matmuls (as during training) and without
    convergence   tokens for the same loss as nanoGPT, with the same model (gpu_convergence.py); needs --text

`--out` is written after each stage. A trial without a GPU: --n-layer 1 --n-head 1 --n-embd 32 --block-size 32
--batch-size 4 --micro 2 --steps 6.
"""

import argparse
import contextlib
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gpu_throughput
import machine
import octavo
from nanogpt import NanoGPT
from octavo import distributed, estimate, kernels
from octavo.data.prepare import prepare
from octavo.device import Runtime, resolve_runtime, tf32_matmuls
from octavo.loss import split_loss
from octavo.model import GPT, KVCache
from octavo.settings import Settings, resolve
from octavo.training.optimizers import muon
from octavo.training.step import Trainer

MAX_SLOWDOWN = 0.02  # of a step, by an exchange in one process


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of nanoGPT")
    parser.add_argument("--text", help="for convergence: a file, a folder or a glob")
    parser.add_argument("--minutes", type=float, default=8.5, help="for all stages together")
    parser.add_argument("--micro", type=int, default=48, help="nanoGPT's micro-batch")
    parser.add_argument("--steps", type=int, default=12, help="steps of each side in the stage throughput")
    parser.add_argument("--out", type=Path, help="a JSON file for the report")
    for name in gpu_throughput.SHAPE:
        parser.add_argument("--" + name.replace("_", "-"), type=int)
    options = parser.parse_args()
    shape = {name: getattr(options, name) for name in gpu_throughput.SHAPE if getattr(options, name)}
    settings = resolve("gpt2", **{"vocab_size": 50257} | shape)
    runtime = resolve_runtime(settings)
    deadline = time.monotonic() + 60 * options.minutes
    report: dict[str, Any] = {"machine": machine.describe(), "device": runtime.name}
    print(machine.summary(), runtime.name, sep="\n", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stages: dict[str, tuple[float, Callable[[], dict[str, Any]]]] = {  # with the minutes that each needs
            "checks": (1.0, functools.partial(run_checks, settings, folder)),
            "throughput": (2.5, functools.partial(measure_throughput, settings, runtime, folder, options)),
            "exchanges": (1.5, functools.partial(compare_exchanges, settings, runtime)),
            "muon": (0.5, functools.partial(compare_muon, settings, runtime)),
            "evaluation": (0.3, functools.partial(compare_evaluations, settings, runtime)),
        }
        if options.text:
            stages["convergence"] = (2.0, functools.partial(compare_convergence, options, deadline))
        for stage, (minutes, function) in stages.items():
            start = time.monotonic()
            if start + 60 * minutes > deadline:
                report[stage] = "skipped: no time left"
            else:
                try:
                    report[stage] = function()
                except Exception as error:  # the other stages still have results
                    report[stage] = {"error": f"{type(error).__name__}: {error}"}
                if runtime.device.type == "cuda":
                    torch.cuda.empty_cache()
            print(f"{stage} ({time.monotonic() - start:.0f} s): {json.dumps(report[stage])}", flush=True)
            if options.out:
                options.out.write_text(json.dumps(report), encoding="utf-8")
    return 1 if any(isinstance(result, dict) and "error" in result for result in report.values()) else 0


def run_checks(settings: Settings, folder: Path) -> dict[str, Any]:
    """What the tests check on a CPU, on this device."""
    errors = gpu_throughput.fast_path_errors(settings)
    assert max(errors.values()) < 0.01, errors
    errors["attention with a mask, largest difference"] = masked_attention_error(resolve_runtime(settings).device)
    assert errors["attention with a mask, largest difference"] < 1e-3, errors
    (folder / "text.txt").write_text("the cat sat on the mat, and the rat sat on the hat.\n" * 200, encoding="utf-8")
    small = dict(n_layer=2, n_head=2, n_embd=64, block_size=64, batch_size=8, max_steps=8, eval_every=4, compile="off")
    whole = octavo.train(folder / "text.txt", out=folder / "whole", **small)
    part = octavo.train(folder / "text.txt", out=folder / "part", **small | {"max_steps": 4})
    part = octavo.train(resume=part, max_steps=8)
    losses = [run.lines("metrics")[-1]["val_loss"] for run in (whole, part)]
    return errors | {"resumed run, difference of the loss": abs(losses[0] - losses[1])}


def masked_attention_error(device: torch.device) -> float:
    """The largest difference of logits with a cache, whose attention has a mask, from those on the CPU."""
    model = GPT(resolve(n_layer=2, n_head=4, n_embd=256, block_size=256, vocab_size=100), torch.Generator())
    ids = torch.randint(0, 100, (2, 192), generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def logits(model: GPT, ids: torch.Tensor) -> torch.Tensor:
        cache = KVCache(model, 2)
        with kernels.fast_path(ids.device, with_mask=True):
            parts = [model(part, cache) for part in ids.split(64, dim=1)]
        return torch.cat(parts, dim=1).float().cpu()

    expected = logits(model.eval(), ids)
    return float((logits(model.to(device), ids.to(device)) - expected).abs().max())


def measure_throughput(
    settings: Settings, runtime: Runtime, folder: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Tokens per second and MFU of Octavo and nanoGPT."""
    data = prepare("pydocs", folder / "tokens", tokenizer="bpe:2048")
    nanogpt = NanoGPT(options.nanogpt, folder)
    nanogpt.write_tokens("bench", data.tokens["train"], data.tokens["val"])
    rates = {
        "Octavo": gpu_throughput.octavo_throughput(settings, folder / "tokens", folder / "run", options.steps),
        "nanoGPT": gpu_throughput.nanogpt_throughput(nanogpt, settings, options.micro, options.steps),
    }
    peak = runtime.peak_flops
    mfu = {side: rate * estimate.flops_per_token(settings) / peak if peak else None for side, rate in rates.items()}
    return {"tokens_per_second": rates, "mfu": mfu, "matmul": gpu_throughput.matmul_throughput(runtime)}


def compare_exchanges(settings: Settings, runtime: Runtime) -> dict[str, Any]:
    """The seconds of a step without an exchange, of one with an all-reduce, and of one with FSDP2."""
    import torch.distributed as dist

    backend = "cpu:gloo,cuda:nccl" if runtime.device.type == "cuda" else "gloo"
    with tempfile.TemporaryDirectory() as name:
        dist.init_process_group(backend, store=dist.FileStore(f"{name}/store", 1), rank=0, world_size=1)  # type: ignore[attr-defined]
        world = distributed.Group(0, 1, 0, dist.distributed_c10d._get_default_store(), 60.0)
        sides = {"plain": (distributed.ALONE, 0), "all-reduce": (world, 0), "FSDP2": (world, 1)}
        seconds: dict[str, float] = {}
        for side, (group, shard) in sides.items():
            model = GPT(settings, torch.Generator().manual_seed(0))
            trainer = Trainer(model, settings, runtime, group, shard)
            shape = settings.batch_size, settings.block_size + 1
            ids = np.random.default_rng(0).integers(0, settings.vocab_size, shape)
            seconds[side] = median_seconds(runtime, functools.partial(trainer.update, ids), 5)
            del trainer, model
        dist.destroy_process_group()
    slowdown = {side: each / seconds["plain"] - 1 for side, each in seconds.items()}
    return {"seconds": seconds, "slowdown": slowdown, "met": max(slowdown.values()) <= MAX_SLOWDOWN}


def compare_muon(settings: Settings, runtime: Runtime) -> dict[str, Any]:
    """The seconds of `orthogonalize` for all matrices of an optimizer step of Muon, eager and compiled."""
    shape = (12 * settings.n_layer, settings.n_embd, settings.n_embd)
    dtype = torch.float32 if runtime.precision == "fp32" else torch.bfloat16
    squares = torch.randn(shape, device=runtime.device, dtype=dtype)
    compiled = torch.compile(muon.orthogonalize)
    return {
        side: median_seconds(runtime, functools.partial(function, squares), 10)
        for side, function in (("eager", muon.orthogonalize), ("compiled", compiled))
    }


def compare_evaluations(settings: Settings, runtime: Runtime) -> dict[str, Any]:
    """The seconds and the loss of an evaluation of 131,072 tokens in float32, with TF32 matmuls and without."""
    model = GPT(settings, torch.Generator().manual_seed(0)).to(runtime.device)
    ids = np.random.default_rng(0).integers(0, settings.vocab_size, (1 << 17) + 1)
    evaluate = functools.partial(split_loss, model, ids, settings.block_size)
    result = {}
    for side, context in (("TF32", tf32_matmuls(runtime.device)), ("float32", contextlib.nullcontext())):
        with context:
            result[side] = {"seconds": median_seconds(runtime, evaluate, 3), "loss": evaluate()}
    return result


def compare_convergence(options: argparse.Namespace, deadline: float) -> dict[str, Any]:
    """The result of gpu_convergence.py in the time that is left: nanoGPT, and Octavo with 1/1.4 of its tokens."""
    left = (deadline - time.monotonic()) / 60
    command = [sys.executable, str(Path(__file__).with_name("gpu_convergence.py")), "--json", "--fewer", "1.4"]
    command += ["--nanogpt", str(options.nanogpt), "--text", options.text, "--minutes", f"{(left - 1.0) / 2:.2f}"]
    result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60 * left)
    values: dict[str, Any] = json.loads(result.stdout)
    return {side: values[side] for side in ("nanogpt", "octavo")}


def median_seconds(runtime: Runtime, function: Callable[[], object], rounds: int) -> float:
    """The median time of a call, after two that compile and warm up."""
    seconds = []
    for number in range(rounds + 2):
        start = time.perf_counter()
        function()
        runtime.synchronize()
        if number >= 2:
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


if __name__ == "__main__":
    sys.exit(main())
