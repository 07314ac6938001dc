"""`octavo inspect`: views of a model and a text, as tables, JSON, plots or a page."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from octavo import views
from octavo.cli.parser import (
    RUN_HELP,
    Parser,
    add_verb,
    finish_verb,
    integer,
    print_notice,
    read_text_file,
    without_garbage_collection,
)
from octavo.cli.suggestions import view_error
from octavo.errors import OctavoError
from octavo.settings import Settings, expand_home, resolve, unknown_name_error
from octavo.units import format_count

_HTML_OPTIONS = ("text", "layer", "head", "unknown")


def add_parser(verbs: Any, defaults: Settings) -> None:
    verb = add_verb(
        verbs,
        "inspect",
        "RUN|--preset P VIEW",
        run,
        help="show what a model computes for a text",
        example='octavo inspect runs/pydocs-1 attention --text "The import statement" --layer 1',
    )
    verb.epilog = "views:\n" + "\n".join(f"  {name:<14} {spec.summary}" for name, spec in views.VIEWS.items())
    verb.add_argument(
        "run_and_view",
        type=expand_home,
        nargs="+",
        metavar="RUN VIEW",
        help=f"{RUN_HELP}; and a view from the list below",
    )
    verb.set_defaults(list_argument="run_and_view")
    verb.add_argument("--preset", metavar="P", help="a preset instead of a RUN; only the view shapes takes it")
    for flag, options in views.command_line_flags().items():
        _add_view_option(verb, flag, options)
    verb.add_argument(
        "--html",
        type=expand_home,
        metavar="F",
        help="write a standalone page for this text: one file that needs no server",
    )
    verb.add_argument(
        "--learning",
        type=expand_home,
        metavar="F.svg",
        help="write an animation of how the run learned: samples, a map of the embeddings, a head's attention on the "
        "text, and the similarity of --word and --against",
    )
    verb.add_argument(
        "--plot",
        type=expand_home,
        metavar="F.png|svg",
        help="write a plot of the view to a file (needs the extra plot)",
    )
    finish_verb(verb)


def _add_view_option(verb: Parser, flag: str, options: list[tuple[views.Option, list[str]]]) -> None:
    """The flag of a view option. Its help names the views that take it. A token can be given by its id instead."""
    # Two options share a flag if a view takes one value and another takes a list, as `position` and `positions`. Both
    # take the same values.
    option, _ = options[0]
    is_common = option.name in ("text", "unknown")
    help = ". ".join(f"{', '.join(view_names)}: {each.help}" for each, view_names in options)
    group = verb.add_mutually_exclusive_group()
    metavar: Any = None if option.choices else option.metavar
    group.add_argument(
        f"--{flag}",
        type=integer if option.kind is int else str,
        nargs=option.count if option.count > 1 else None,
        metavar=metavar,
        choices=option.choices,
        help=option.help if is_common else help,
    )
    if option.takes_ids:
        group.add_argument(f"--{flag}-id", dest=flag, type=integer, metavar="ID", help="the same, by its token id")
    if flag == "text":
        group.add_argument("--text-file", type=expand_home, metavar="F", help="a file with the text; -: stdin")


def run(arguments: argparse.Namespace) -> int:
    with without_garbage_collection():
        from octavo import lens, runs
        from octavo.terminal.progress import Progress

    values = {flag: getattr(arguments, flag) for flag in views.command_line_flags()}
    flag_values = {flag: value for flag, value in values.items() if value is not None}
    if arguments.text_file is not None:
        flag_values["text"] = read_text_file(arguments.text_file, "--text")
    with Progress(sys.stderr):
        if arguments.html is not None:
            _write_page(arguments, flag_values)
        if arguments.learning is not None:
            _write_learning(arguments, flag_values)
    if (arguments.html or arguments.learning) and len(arguments.run_and_view) == 1:
        return 0
    *run_paths, name = arguments.run_and_view
    if len(run_paths) + bool(arguments.preset) != 1:
        raise view_error(arguments.run_and_view, arguments.preset)
    name = name.replace("-", "_")
    if name not in views.VIEWS and any(path.replace("-", "_") in views.VIEWS for path in run_paths):
        raise view_error(arguments.run_and_view, arguments.preset)
    if name not in views.VIEWS:
        raise unknown_name_error("view", name, views.VIEWS)
    with Progress(sys.stderr):
        model_or_settings = runs.load(run_paths[0]) if run_paths else _resolve_vocab_size(resolve(arguments.preset))
        result = lens.inspect(model_or_settings, name, **views.options_from_flags(name, flag_values))
    if left_out := getattr(result, "left_out", 0):
        print_notice(f"the text is too long for this view, which leaves out its last {format_count(left_out, 'token')}")
    if arguments.plot is not None:
        from octavo.lens import plots

        plots.save(result, arguments.plot)
        print(f"plot written to {arguments.plot}", file=sys.stderr)
    print(json.dumps(result.to_dict(), ensure_ascii=False) if arguments.json else result)
    return 0 if getattr(result, "ok", True) else 1  # only the view verify has `ok`


def _write_page(arguments: argparse.Namespace, flag_values: dict[str, Any]) -> None:
    """Write the standalone page of `octavo inspect RUN [VIEW] --html F`."""
    from octavo import runs
    from octavo.server import static_page

    if arguments.preset:
        raise OctavoError("--html needs a trained model, and a preset has only settings", "a RUN")
    options = {name: value for name, value in flag_values.items() if name in _HTML_OPTIONS}
    # If there is a VIEW, flags that the page does not take are for the view.
    if len(arguments.run_and_view) == 1 and (extra := sorted(flag_values.keys() - options.keys())):
        raise OctavoError(f"--html takes no --{extra[0]}", "--text, --layer or --head")
    content = static_page.standalone_page(runs.load(arguments.run_and_view[0]), **options)
    _write_file(Path(arguments.html), content, "page", "--html")


def _write_learning(arguments: argparse.Namespace, flag_values: dict[str, Any]) -> None:
    """Write the animation of `octavo inspect RUN --learning F.svg`."""
    from octavo.lens.learning import learning_svg

    path = Path(arguments.learning)
    if path.suffix.lower() != ".svg":
        raise OctavoError(f"{path} does not end in .svg", f"--learning {path.stem or 'learning'}.svg")
    pair = [flag_values[name] for name in ("word", "against") if name in flag_values]
    if arguments.preset or len(arguments.run_and_view) != 1:
        raise OctavoError(
            "--learning needs a RUN, and takes no view", "octavo inspect runs/my-1 --learning learning.svg"
        )
    if (extra := sorted(flag_values.keys() - {"text", "word", "against"})) or len(pair) == 1:
        given = f"no --{extra[0]}" if extra else "--word and --against together"
        raise OctavoError(f"--learning takes {given}", "--text, or --word and --against")
    content = learning_svg(arguments.run_and_view[0], flag_values.get("text"), (pair[0], pair[1]) if pair else None)
    _write_file(path, content, "animation", "--learning")


def _write_file(path: Path, content: str, kind: str, flag: str) -> None:
    from octavo import files

    with files.translate_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise OctavoError(
                f"{path} is a folder", f"{flag} {path / ('page.html' if kind == 'page' else 'learning.svg')}"
            )
    files.write_atomic(path, content)
    print(f"{kind} written to {path}, {len(content.encode()) / 1e6:.1f} MB", file=sys.stderr)


def _resolve_vocab_size(settings: Settings) -> Settings:
    """Set the vocabulary size of a tokenizer whose vocabulary does not depend on the text."""
    from octavo.tokenizers import FIXED_VOCAB_SIZES

    if not settings.vocab_size and settings.tokenizer not in FIXED_VOCAB_SIZES:
        raise OctavoError(
            f"the vocabulary size of the preset {settings.preset} depends on the text", "--preset gpt2-512, or a RUN"
        )
    return dataclasses.replace(settings, vocab_size=settings.vocab_size or FIXED_VOCAB_SIZES[settings.tokenizer])
