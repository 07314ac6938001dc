"""`octavo estimate`: parameters, FLOPs, memory, time and price of a training run, before it starts."""

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from octavo.cli.parser import (
    SOURCE_HELP,
    add_preset,
    add_settings,
    add_sources,
    add_verb,
    explicit_settings,
    finish_verb,
    integer,
    number,
    print_report,
)
from octavo.settings import NANOGPT_NAMES, SECTIONS, DataSettings, Settings

if TYPE_CHECKING:
    from octavo.scaling import Processes
    from octavo.training.run_estimate import RunEstimate


def add_parser(verbs: Any, defaults: Settings) -> None:
    verb = add_verb(
        verbs,
        "estimate",
        "[SOURCE...]",
        run,
        help="estimate parameters, FLOPs, memory, time and price of a training run",
        example="octavo estimate my.txt --n-layer 6 --price 2.50",
        nanogpt_names=NANOGPT_NAMES,
    )
    add_sources(
        verb,
        "*",
        f"{SOURCE_HELP}; default: the source in --config; without one, no text is read unless the vocabulary size "
        "depends on it (pydocs)",
    )
    add_preset(verb)
    verb.add_argument("--price", type=number, metavar="PER_HOUR", help="price of one machine per hour")
    group = verb.add_argument_group("several processes")
    group.add_argument("--processes", type=integer, default=1, metavar="N", help="processes that train together (1)")
    group.add_argument(
        "--shard",
        type=integer,
        default=0,
        metavar="K",
        help="shard the model among groups of K processes (FSDP); 0: each has all of it (0)",
    )
    group.add_argument("--nodes", type=integer, default=1, metavar="M", help="machines like this one (1)")
    group.add_argument(
        "--link", type=number, metavar="GBIT", help="rate of the network between the machines, in Gbit/s (10)"
    )
    group.add_argument(
        "--latency", type=number, metavar="SECONDS", help="time that a message takes from one machine to another (5e-5)"
    )
    for title, section in SECTIONS.items():
        add_settings(verb.add_argument_group(f"{title} settings"), section, defaults)
    finish_verb(verb)


def run(arguments: argparse.Namespace) -> int:
    from octavo import scaling, training
    from octavo.terminal.progress import Progress
    from octavo.training.run_estimate import estimate_run

    plan = training.plan(
        arguments.source or None, preset=arguments.preset, config=arguments.config, **explicit_settings(arguments)
    )
    network = scaling.network(arguments.link, arguments.latency)
    processes = scaling.Processes(arguments.processes, arguments.nodes, network, shard=arguments.shard)
    # Without a SOURCE the estimate is of a model and this machine: the default text is prepared only if the vocabulary
    # size depends on it.
    names_a_source = bool(arguments.source) or plan.settings.source != DataSettings().source
    with Progress(sys.stderr):
        result = estimate_run(plan, arguments.price, processes=processes, prepare_text=names_a_source).result
    return print_report(arguments, result, _format_report(result, plan.settings, processes, arguments.price))


def _format_report(e: "RunEstimate", settings: Settings, processes: "Processes", price_per_hour: float | None) -> str:
    from octavo.estimate import FLOPS_FORMULA
    from octavo.units import format_bytes, format_count, format_duration

    count, parts, flops = e.parameters, e.parameters_by_part, e.flops_by_part
    epochs = "" if e.epochs is None else f", {e.epochs:,.1f} epochs over {e.train_tokens:,} tokens of text"
    lines = [
        f"parameters  {count:,}: {_format_parts(parts, '{:,}'.format)}",
        f"            wte is tied to lm_head and counted once; {count - parts['wpe']:,} without wpe, as nanoGPT "
        f"counts; {count - parts['wpe'] - parts['wte']:,} without wpe and wte",
        f"FLOPs       {e.flops_per_token:,} per token: forward {flops['forward']:,}, backward "
        f"{flops['backward']:,}; attention is {flops['attention']:,} of these",
        f"            {FLOPS_FORMULA}",
        f"memory      {format_bytes(e.memory_bytes)} at the peak, on {e.device} in {e.precision}, with "
        f"micro-batch {e.micro_batch}{', in each process' if processes.count > 1 else ''}",
        f"            {_format_parts(e.memory_by_part, format_bytes)}",
        f"disk        up to {format_bytes(e.disk_bytes)} for checkpoints, {settings.keep_checkpoints} log-spaced ones "
        "among them",
        f"run         {format_count(e.steps, 'step')} of "
        f"{format_count(settings.batch_size * settings.block_size, 'token')}{epochs}",
    ]
    if e.step_cost is not None:
        cost, machines = e.step_cost, format_count(processes.machines, "machine")
        lines.append(
            f"processes   {processes.count} on {machines}: a step takes {cost.step_seconds:.3g} s, of which "
            f"{cost.communication_seconds:.3g} s are communication ({format_bytes(cost.bytes_sent)} sent); utilization "
            f"{cost.utilization:.0%}"
        )
    if e.seconds is not None:
        lines.append(f"time        {format_duration(e.seconds)}: {_format_parts(e.seconds_by_part, format_duration)}")
        lines.append(f"            at {e.tokens_per_second or 0:,.0f} tokens/s, measured for two seconds")
    if e.price is not None:
        lines.append(f"price       {e.price:,.2f}, at {price_per_hour:,.2f} per hour and machine")
    return "\n".join([*lines, *(f"warning: {warning}" for warning in e.warnings)])


def _format_parts(parts: dict[str, Any], format: Callable[[Any], str]) -> str:
    return ", ".join(f"{name} {format(value)}" for name, value in parts.items() if value)
