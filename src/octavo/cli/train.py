"""`octavo train`: train a GPT on a text."""

import argparse
import dataclasses
import json
import sys
from typing import Any

from octavo.cli.parser import RUN_HELP, add_preset, add_settings, add_verb, explicit_settings, finish_verb
from octavo.settings import NANOGPT_NAMES, SECTIONS, Settings, expand_home


def add_parser(verbs: Any, defaults: Settings) -> None:
    verb = add_verb(
        verbs,
        "train",
        "[SOURCE]",
        run,
        help="train a GPT on a text",
        example="octavo train my.txt --n-layer 6",
        nanogpt_names=NANOGPT_NAMES,
    )
    verb.add_argument(
        "source",
        type=expand_home,
        nargs="?",
        metavar="SOURCE",
        help="pydocs, shakespeare, a file, folder, glob, hf:NAME, prepared folder or - (pydocs)",
    )
    add_preset(verb)
    verb.add_argument("--out", type=expand_home, metavar="DIR", help="the run folder; default: runs/NAME")
    verb.add_argument("--name", help="the name of the run; default: the name of the corpus and the next free number")
    verb.add_argument("--resume", type=expand_home, metavar="RUN", help="resume a run")
    verb.add_argument(
        "--init",
        type=expand_home,
        metavar="RUN",
        help=f"initialize the weights from {RUN_HELP}; selects the preset finetune",
    )
    for title, section in SECTIONS.items():
        add_settings(verb.add_argument_group(f"{title} settings"), section, defaults)
    finish_verb(verb)


def run(arguments: argparse.Namespace) -> int:
    from octavo import training
    from octavo.terminal import Progress

    plan = training.plan(
        arguments.source,
        preset=arguments.preset,
        config=arguments.config,
        resume=arguments.resume,
        init=arguments.init,
        out=arguments.out,
        name=arguments.name,
        **explicit_settings(arguments),
    )
    progress = Progress(sys.stderr if arguments.json else sys.stdout)
    with training.interruptible() as should_stop, progress:
        for event in training.events(plan, should_stop=should_stop):
            progress.show(event)
    finished = progress.finished
    assert finished is not None
    if arguments.json:
        values = dataclasses.asdict(finished) | {"run": str(finished.run), "checkpoint": str(finished.checkpoint)}
        del values["reason"]  # the exit code says whether the run was stopped
        print(json.dumps(values))
    return 128 + should_stop.signal if finished.reason == "stopped" and should_stop.signal else 0
