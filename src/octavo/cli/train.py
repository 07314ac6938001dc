"""`octavo train`: train a GPT on a text."""

import argparse
import contextlib
import dataclasses
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from octavo.cli.parser import (
    RUN_HELP,
    SOURCE_HELP,
    add_preset,
    add_settings,
    add_sources,
    add_verb,
    explicit_settings,
    finish_verb,
    integer,
    is_first_on_machine,
    number,
    without_garbage_collection,
)
from octavo.errors import OctavoError
from octavo.settings import NANOGPT_NAMES, SECTIONS, Settings, expand_home

if TYPE_CHECKING:
    from octavo.distributed import World
    from octavo.training import Finished, Plan


def add_parser(verbs: Any, defaults: Settings) -> None:
    verb = add_verb(
        verbs,
        "train",
        "[SOURCE...]",
        run,
        help="train a GPT on a text",
        example="octavo train my.txt --n-layer 6",
        nanogpt_names=NANOGPT_NAMES,
    )
    add_sources(verb, "*", f"{SOURCE_HELP}; or a prepared folder (pydocs)")
    add_preset(verb)
    verb.add_argument("--out", type=expand_home, metavar="DIR", help="the run folder; default: runs/NAME")
    verb.add_argument("--name", help="the name of the run; default: the name of the corpus and the next free number")
    verb.add_argument("--resume", type=expand_home, metavar="RUN", help="resume a run, or the copy of one at a URL")
    verb.add_argument(
        "--continue", dest="continue_run", action="store_true", help="resume the run of --name or --out if it exists"
    )
    verb.add_argument(
        "--init",
        type=expand_home,
        metavar="RUN",
        help=f"initialize the weights from {RUN_HELP}; selects the preset finetune",
    )
    verb.add_argument("--mirror", metavar="URL", help="copy the run to s3://, gs://, ... after each checkpoint")
    verb.add_argument(
        "--serve",
        action="store_true",
        help="serve the run while it trains, in another process: a page with its curves, and an API",
    )
    verb.add_argument("--port", type=integer, default=8000, metavar="P", help="port of --serve (8000)")
    group = verb.add_argument_group("several processes")
    group.add_argument(
        "--processes", type=integer, default=1, metavar="N", help="train in N processes on this machine (1)"
    )
    group.add_argument(
        "--shard",
        type=integer,
        default=0,
        metavar="K",
        help="shard the model among groups of K processes (FSDP); 0: each has all of it (0)",
    )
    group.add_argument(
        "--restarts", type=integer, default=3, metavar="N", help="start again at most N times if a process dies (3)"
    )
    group.add_argument(
        "--timeout",
        type=number,
        default=600.0,
        metavar="SECONDS",
        help="time after which a process that does not answer counts as lost (600)",
    )
    for title, section in SECTIONS.items():
        add_settings(verb.add_argument_group(f"{title} settings"), section, defaults)
    finish_verb(verb)


def run(arguments: argparse.Namespace) -> int:
    with without_garbage_collection():
        from octavo import distributed, training  # noqa: F401  (all that training imports)

    if arguments.processes != 1 and not distributed.is_launched():
        return _launch(arguments, _plan(arguments))
    try:
        world = distributed.join(arguments.timeout)
    except OctavoError as error:
        if is_first_on_machine():  # all on this machine meet the same error
            raise
        return error.exit_code
    try:
        stream = sys.stderr if arguments.json else sys.stdout
        port = arguments.port if arguments.serve else None
        finished, stop_signal = _train(_plan(arguments), world, arguments.shard, stream, port)
        world.leave()
    except OctavoError as error:
        if world.announce(error):
            raise
        return error.exit_code
    if arguments.json and world.is_first:
        values = dataclasses.asdict(finished) | {"run": str(finished.run), "checkpoint": str(finished.checkpoint)}
        del values["reason"]  # the exit code says whether the run was stopped
        print(json.dumps(values, ensure_ascii=False))
    return 128 + stop_signal if finished.reason == "stopped" and stop_signal else 0


def _plan(arguments: argparse.Namespace) -> "Plan":
    from octavo import training

    return training.plan(
        arguments.source or None,
        preset=arguments.preset,
        config=arguments.config,
        resume=arguments.resume,
        init=arguments.init,
        out=arguments.out,
        name=arguments.name,
        continue_run=arguments.continue_run,
        mirror=arguments.mirror,
        **explicit_settings(arguments),
    )


def _train(plan: "Plan", world: "World", shard: int, stream: TextIO, port: int | None) -> "tuple[Finished, int | None]":
    """Train and show the progress. Returns the `Finished` event, and the signal that stopped the run if there was one.

    The first process serves the run at `port`, unless it is None.
    """
    from octavo import training
    from octavo.terminal.training import TrainingProgress

    progress = TrainingProgress(stream)
    # Only the first process says that training stops, and only on SIGINT: a launcher sends SIGTERM to the others when
    # one has died.
    announced = None if world.size == 1 else [signal.SIGINT] if world.is_first else []
    with (
        contextlib.ExitStack() as servers,
        training.interruptible(announced) as should_stop,
        progress if world.is_first else contextlib.nullcontext(),
    ):
        for event in training.events(plan, should_stop=should_stop, world=world, shard=shard):
            match event:
                case training.Started() if world.is_first and world.size > 1:
                    from octavo import launch

                    launch.record_run(event.run)
                case training.Finished():
                    finished = event
            if world.is_first:
                progress.show(event)
            if isinstance(event, training.Started) and world.is_first and port is not None:
                servers.enter_context(_serving(event.run, port))
                progress.show(training.Notice(f"http://127.0.0.1:{port}/ shows the run in a few seconds"))
    signals = [number for number in world.all_gather_object(should_stop.signal) if number is not None]
    return finished, signals[0] if signals else None


# The system closes the pipe of its stdin when the training ends, even by `kill -9`.
_SERVER = """
import os, signal, threading
from octavo import cli

def end_with_training():
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=end_with_training, daemon=True).start()
cli.run_and_exit()
"""


@contextlib.contextmanager
def _serving(run: Path, port: int) -> Iterator[None]:
    """Serve a run in another process, which prints only what is wrong.

    A thread of this process would take time from the training: it would share Python's interpreter lock.
    """
    words = [sys.executable, "-c", _SERVER, "serve", str(run), "--port", str(port), "--log-level", "warning"]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stdin is not None
    try:
        yield
    finally:
        process.terminate()
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)  # requests in progress are finished
        process.kill()
        process.wait()


def _launch(arguments: argparse.Namespace, plan: "Plan") -> int:
    """Start the processes that train."""
    from octavo import distributed, launch

    if arguments.processes < 1:
        raise OctavoError(f"--processes {arguments.processes} is not a number of processes", "--processes 2")
    if arguments.restarts < 0:
        raise OctavoError(f"--restarts {arguments.restarts} is not a number of restarts", "--restarts 0")
    distributed.check_timeout(arguments.timeout)
    if sys.platform == "win32":
        raise OctavoError("several processes can't train together on Windows", "leave out --processes")
    distributed.check_divisible(plan.settings.batch_size, arguments.processes)
    distributed.check_shard(arguments.shard, arguments.processes)
    after_restart = arguments.argv
    if not plan.resume:
        flags = ["--timeout", str(arguments.timeout), "--shard", str(arguments.shard), *["--json"] * arguments.json]
        flags += ["--mirror", plan.mirror] if plan.mirror else []
        flags += ["--serve", "--port", str(arguments.port)] if arguments.serve else []
        after_restart = ["train", *flags, "--resume"]
    return launch.launch(arguments.argv, after_restart, arguments.processes, arguments.restarts)
