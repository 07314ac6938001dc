"""`octavo eval`: the exact loss of a model on a text."""

import argparse
from typing import TYPE_CHECKING, Any

from octavo.cli.parser import (
    RUN_HELP,
    add_device,
    add_special_tokens,
    add_unknown,
    add_verb,
    finish_verb,
    integer,
    print_report,
)
from octavo.settings import Settings, expand_home

if TYPE_CHECKING:
    from octavo.evaluation import Evaluation


def add_parser(verbs: Any, defaults: Settings) -> None:
    verb = add_verb(
        verbs,
        "eval",
        "RUN [SOURCE]",
        run,
        help="compute the exact loss of a model on a text",
        example="octavo eval runs/pydocs-1 my.txt",
    )
    verb.add_argument("run", type=expand_home, metavar="RUN", help=RUN_HELP)
    verb.add_argument(
        "source", type=expand_home, nargs="?", metavar="SOURCE", help="a text; default: the validation split of the run"
    )
    verb.add_argument("--block-size", type=integer, metavar="N", help="context length; default: the model's")
    verb.add_argument("--encoding", default="utf-8", metavar="NAME", help="character encoding of the text (utf-8)")
    verb.add_argument(
        "--errors",
        choices=("strict", "replace", "ignore"),
        default="strict",
        help="how to handle undecodable bytes (strict)",
    )
    verb.add_argument(
        "--text-field",
        default="text",
        metavar="NAME",
        help="field with the text in JSON lines, Parquet files and Hugging Face datasets (text)",
    )
    add_unknown(verb)
    add_special_tokens(verb, "text")
    add_device(verb)
    finish_verb(verb)


def run(arguments: argparse.Namespace) -> int:
    from octavo import evaluation
    from octavo.device import find_device

    result = evaluation.evaluate(
        arguments.run,
        arguments.source,
        block_size=arguments.block_size,
        unknown=arguments.unknown,
        encoding=arguments.encoding,
        errors=arguments.errors,
        text_field=arguments.text_field,
        special_tokens=arguments.special_tokens,
        device=find_device(arguments.device),
    )
    return print_report(arguments, result, _format_report(result, arguments.unknown))


def _format_report(result: "Evaluation", unknown: str) -> str:
    report = (
        f"loss           {result.loss:.4f} nats per token\n"
        f"perplexity     {result.perplexity:.3f}\n"
        f"bits per byte  {result.bits_per_byte:.4f}\n"
        f"over {result.tokens:,} tokens, {result.bytes:,} bytes, with a context of {result.block_size}"
    )
    if result.unknown is not None:
        report += f"\n{'skipped' if unknown == 'skip' else 'replaced'} {result.unknown}"
    return report
