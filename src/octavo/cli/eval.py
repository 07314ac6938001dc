"""`octavo eval`: the exact loss of a model on a text, or its scores on tasks of lm-eval."""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from octavo.cli.parser import (
    RUN_HELP,
    SOURCE_HELP,
    add_device,
    add_sources,
    add_special_tokens,
    add_unknown,
    add_verb,
    finish_verb,
    integer,
    print_report,
    without_garbage_collection,
)
from octavo.errors import OctavoError
from octavo.settings import Settings, expand_home
from octavo.units import format_count

if TYPE_CHECKING:
    from octavo.evaluation import Evaluation
    from octavo.interop.lm_eval import TaskEvaluation

_READING = ("encoding", "errors", "text_field")  # options that say how a SOURCE is read
_TOKENIZING = ("unknown", "special_tokens")  # options that say how a text becomes tokens
_TASK = ("limit", "num_fewshot")


def add_parser(verbs: Any, defaults: Settings) -> None:
    verb = add_verb(
        verbs,
        "eval",
        "RUN [SOURCE...]",
        run,
        help="compute the exact loss of a model on a text, or its scores on tasks",
        example="octavo eval runs/pydocs-1 my.txt",
    )
    verb.add_argument("run", type=expand_home, metavar="RUN", help=RUN_HELP)
    add_sources(verb, "*", f"{SOURCE_HELP}; default: the validation split of the run")
    verb.add_argument("--block-size", type=integer, metavar="N", help="context length; default: the model's")
    verb.add_argument("--encoding", default="utf-8", metavar="NAME", help="character encoding of the text (utf-8)")
    verb.add_argument(
        "--errors",
        choices=("strict", "replace", "ignore"),
        default="strict",
        help="how to handle undecodable bytes and NUL characters (strict)",
    )
    verb.add_argument(
        "--text-field",
        default="text",
        metavar="NAME",
        help="field with the text in JSON, CSV and Parquet files and Hugging Face datasets (text)",
    )
    verb.add_argument(
        "--task",
        action="append",
        default=[],
        metavar="TASK",
        help="evaluate on a task of lm-eval, such as hellaswag, or on a YAML file with one; may be repeated; needs "
        "the extra eval",
    )
    verb.add_argument("--limit", type=integer, metavar="N", help="with --task: evaluate only the first N items of each")
    verb.add_argument(
        "--num-fewshot",
        type=integer,
        metavar="N",
        help="with --task: few-shot examples for each item; default: the task's",
    )
    add_unknown(verb)
    add_special_tokens(verb, "text")
    add_device(verb)
    options = ("source", *_READING, *_TOKENIZING, *_TASK)
    verb.set_defaults(defaults={"source": []} | {name: verb.get_default(name) for name in options if name != "source"})
    finish_verb(verb)


def run(arguments: argparse.Namespace) -> int:
    with without_garbage_collection():
        from octavo import evaluation
        from octavo.device import find_device
        from octavo.terminal.progress import Progress

    _check_options(arguments)
    if arguments.task:
        from octavo.interop.lm_eval import evaluate_tasks

        scores = evaluate_tasks(
            arguments.run,
            [expand_home(task) for task in arguments.task],
            limit=arguments.limit,
            num_fewshot=arguments.num_fewshot,
            block_size=arguments.block_size,
            unknown=arguments.unknown,
            special_tokens=arguments.special_tokens,
            device=find_device(arguments.device),
        )
        return print_report(arguments, scores, _format_scores(scores))
    with Progress(sys.stderr):
        result = evaluation.evaluate(
            arguments.run,
            arguments.source or None,
            block_size=arguments.block_size,
            unknown=arguments.unknown,
            encoding=arguments.encoding,
            errors=arguments.errors,
            text_field=arguments.text_field,
            special_tokens=arguments.special_tokens,
            device=find_device(arguments.device),
        )
    return print_report(arguments, result, _format_report(result, arguments.unknown))


def _check_options(arguments: argparse.Namespace) -> None:
    """Reject an option that would have no effect. Raises `OctavoError`."""
    if arguments.task:
        unused, reason = ["source", *_READING], "tasks have their own texts"
    elif not arguments.source:
        unused, reason = [*_READING, *_TOKENIZING, *_TASK], "the validation split of the run is tokens already"
    else:
        unused, reason = list(_TASK), "it needs --task"
    for name in unused:
        if getattr(arguments, name) != arguments.defaults[name]:
            option = "SOURCE" if name == "source" else "--" + name.replace("_", "-")
            raise OctavoError(f"{option} has no effect: {reason}", f"leave out {option}")


def _format_scores(result: "TaskEvaluation") -> str:
    """A table with a line for each metric."""
    rows = [["task", "metric", "value", "stderr", "items", "few-shot"]]
    for score in result.scores:
        metric = score.metric if score.filter == "none" else f"{score.metric} ({score.filter})"
        numbers = ["" if value is None else f"{value:.4f}" for value in (score.value, score.stderr)]
        counts = ["" if value is None else f"{value:,}" for value in (score.items, score.num_fewshot)]
        rows.append([score.task, metric, *numbers, *counts])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    align = [str.ljust, str.ljust, str.rjust, str.rjust, str.rjust, str.rjust]
    lines = ["  ".join(map(lambda f, cell, width: f(cell, width), align, row, widths)).rstrip() for row in rows]
    if result.truncated:
        lines.append(
            f"{result.truncated:,} of {result.inputs:,} inputs are longer than the context of {result.block_size}: "
            "the model does not see their beginning"
        )
    return "\n".join(lines)


def _format_report(result: "Evaluation", unknown: str) -> str:
    report = (
        f"loss           {result.loss:.4f} nats per token\n"
        f"perplexity     {result.perplexity:.3f}\n"
        f"bits per byte  {result.bits_per_byte:.4f}\n"
        f"over {format_count(result.tokens, 'token')}, {format_count(result.bytes, 'byte')}, "
        f"with a context of {result.block_size}"
    )
    if result.unknown is not None:
        report += f"\n{'skipped' if unknown == 'skip' else 'replaced'} {result.unknown}"
    return report
