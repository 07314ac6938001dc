"""`octavo bench`: measure training, generation and serving on this machine."""

import argparse
import sys
from typing import Any

from octavo.cli.parser import (
    add_preset,
    add_quantize,
    add_settings,
    add_verb,
    explicit_settings,
    finish_verb,
    integer,
    print_report,
)
from octavo.errors import OctavoError
from octavo.settings import ModelSettings, Settings, TrainingSettings, expand_home, resolve
from octavo.units import format_count


def add_parser(verbs: Any, defaults: Settings) -> None:
    verb = add_verb(
        verbs,
        "bench",
        "train|generate|serve [RUN]",
        run,
        help="measure training, generation and serving on this machine",
        example="octavo bench generate runs/pydocs-1 --quantize int8",
    )
    verb.add_argument("what", choices=("train", "generate", "serve"), help="what to measure")
    verb.add_argument(
        "run",
        type=expand_home,
        nargs="?",
        metavar="RUN",
        help="the model for generate and serve; default: an untrained model with the settings below",
    )
    add_quantize(verb)
    add_preset(verb, config=False)
    verb.add_argument("--rounds", type=integer, default=10, metavar="N", help="steps or texts to measure (10)")
    for title, section in {"model": ModelSettings, "training": TrainingSettings}.items():
        add_settings(verb.add_argument_group(f"{title} settings"), section, defaults)
    finish_verb(verb)


def run(arguments: argparse.Namespace) -> int:
    settings = resolve(arguments.preset, **explicit_settings(arguments))
    match arguments.what:
        case "train":
            return _bench_train(arguments, settings)
        case "generate":
            return _bench_generate(arguments, settings)
        case _:
            return _bench_serve(arguments, settings)


def _bench_train(arguments: argparse.Namespace, settings: Settings) -> int:
    from octavo.benchmark import training

    if arguments.run:
        raise OctavoError("bench train measures a preset, not a run", "octavo bench train --preset tiny")
    result = training.benchmark_training(settings, arguments.rounds, _print_progress)
    report = (
        f"step            {1000 * result.step_seconds:,.1f} ms, median of {arguments.rounds}\n"
        f"throughput      {result.tokens_per_second:,.0f} tokens/s\n"
        f"model           {result.flops_per_second / 1e9:,.0f} GFLOP/s\n"
        f"matmuls alone   {1000 * result.matmul_seconds:,.1f} ms, {result.matmul_flops_per_second / 1e9:,.0f} GFLOP/s\n"
        f"matmul share    {result.matmul_share:.0%} of the step\n"
        f"{training.FORMULA}"
    )
    return print_report(arguments, result, report)


def _bench_generate(arguments: argparse.Namespace, settings: Settings) -> int:
    from octavo import runs
    from octavo.benchmark import generation
    from octavo.device import find_device

    device = find_device(settings.device)
    model = runs.load(arguments.run, device).model if arguments.run else generation.untrained_model(settings, device)
    result = generation.benchmark_generation(model, arguments.quantize, arguments.rounds, _print_progress)
    report = (
        f"first token       {1000 * result.prefill_seconds:,.1f} ms, after a prompt of "
        f"{format_count(result.prompt_tokens, 'token')}\n"
        f"1 stream          {result.tokens_per_second:,.1f} tokens/s\n"
        f"{result.streams} streams         {result.streams_tokens_per_second:,.1f} tokens/s, prefill included\n"
        f"reads             {result.bytes_per_token / 1e6:,.1f} MB per token: weights and KV cache\n"
        f"memory bandwidth  {result.memory_bandwidth / 1e9:,.1f} GB/s, of which one stream uses "
        f"{result.bandwidth_share:.0%}"
    )
    return print_report(arguments, result, report)


def _bench_serve(arguments: argparse.Namespace, settings: Settings) -> int:
    from octavo.benchmark import serving

    result = serving.benchmark_serving(arguments.run, settings, arguments.quantize, arguments.rounds, _print_progress)
    rejected = ", ".join(f"{request} {1000 * seconds:.1f}" for request, seconds in result.rejected_seconds.items())
    overload = ", ".join(f"{count} with status {status}" for status, count in sorted(result.overload.items()))
    report = (
        f"ready after          {result.ready_seconds:.2f} s\n"
        f"{serving.CLIENTS} streams            first token after {1000 * result.first_token_seconds:.1f} ms, "
        f"{result.tokens_per_second:,.0f} tokens/s in all\n"
        f"inter-token latency  median {1000 * result.inter_token_seconds:.2f} ms, 95th percentile "
        f"{1000 * result.inter_token_p95_seconds:.2f} ({result.inter_token_ratio:.2f} times the median)\n"
        f"rejection time, ms   {rejected}\n"
        f"short request        95th percentile {1000 * result.short_p95_seconds:.1f} ms; with {serving.SLOW_CLIENTS} "
        f"clients that send a byte at a time {1000 * result.short_p95_trickling_seconds:.1f} ms\n"
        f"overload             ten times as many requests as the slots and the queue can hold; responses: {overload}\n"
        f"graceful shutdown    {result.drain_seconds:.2f} s after SIGTERM, with running streams completed"
    )
    return print_report(arguments, result, report)


def _print_progress(line: str) -> None:
    print(line, file=sys.stderr)
