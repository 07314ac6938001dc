"""`octavo convert`: write a trained model in another program's format."""

import argparse
import sys
from typing import Any

from octavo.cli.parser import RUN_HELP, add_verb, finish_verb, print_notice, print_report
from octavo.interop.formats import FORMATS, PRECISIONS
from octavo.settings import Settings, expand_home
from octavo.units import format_bytes


def add_parser(verbs: Any, defaults: Settings) -> None:
    verb = add_verb(
        verbs,
        "convert",
        "RUN OUT --to FORMAT",
        run,
        help="write a trained model for another program",
        example="octavo convert runs/pydocs-1 pydocs.gguf --to gguf",
    )
    verb.add_argument("run", type=expand_home, metavar="RUN", help=RUN_HELP)
    verb.add_argument("out", type=expand_home, metavar="OUT", help="the file or folder to write; it must not exist")
    formats = "; ".join(f"{name}: {format.summary}" for name, format in FORMATS.items())
    verb.add_argument("--to", required=True, choices=tuple(FORMATS), help=formats)
    verb.add_argument("--precision", choices=PRECISIONS, help="precision of the matrices (fp32)")
    verb.add_argument(
        "--accept-changes", action="store_true", help="RUN is a checkpoint in which another program saved a model"
    )
    finish_verb(verb)


def run(arguments: argparse.Namespace) -> int:
    from octavo.interop.convert import convert
    from octavo.terminal.progress import Progress

    with Progress(sys.stderr):
        result = convert(arguments.run, arguments.to, arguments.out, arguments.precision, arguments.accept_changes)
    for notice in result.notices:
        print_notice(notice)
    report = f"{result.out}: {result.format}, {result.precision}, {format_bytes(result.bytes)}"
    return print_report(arguments, result, report)
