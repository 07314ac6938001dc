"""What the verbs share: the parser, flags for settings, types of values, and printing a report."""

import argparse
import contextlib
import dataclasses
import gc
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from octavo import byte_order_mark
from octavo.cli.nanogpt import SAMPLE_NAMES
from octavo.cli.suggestions import missing_argument_hint
from octavo.data import formats
from octavo.errors import OctavoError
from octavo.settings import PRESETS, Settings, expand_home

RUN_HELP = (
    "a run, one of its checkpoints, a Hugging Face GPT-2 folder, the URL of one of these (s3://...), hf:NAME for a "
    "model of the Hugging Face hub, or a ckpt.pt of nanoGPT"
)
SOURCE_HELP = (
    f"a named corpus (pydocs, shakespeare), a file, folder or glob (text, {formats.list_suffixes()}; "
    f"{', '.join(formats.COMPRESSED)}), the URL of one (s3://...), hf:NAME, or - for standard input; or several"
)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises `OctavoError` and accepts no abbreviations."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self.verbs: Mapping[str, Parser] = {}

    def error(self, message: str) -> NoReturn:
        raise OctavoError(message[0].lower() + message[1:], missing_argument_hint(message, self.prog))

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if action.option_strings and action.nargs is None and arg_strings == ["--"]:
            value = self._get_value(action, "--")  # `--prompt=--`: Python 3.11's argparse would remove the value
            self._check_value(action, value)
            return value
        return super()._get_values(action, arg_strings)


def add_verb(
    verbs: Any,
    name: str,
    positionals: str,
    handler: Callable[[argparse.Namespace], int],
    *,
    help: str,
    example: str,
    nanogpt_names: Mapping[str, str] = SAMPLE_NAMES,
) -> Parser:
    """Add a verb. `positionals` are its positional arguments, as the usage line shows them."""
    verb: Parser = verbs.add_parser(
        name, help=help, description=f"{help}\n\n    {example}", usage=f"octavo {name} {positionals} [options]"
    )
    verb.set_defaults(handler=handler, nanogpt_names=nanogpt_names)
    return verb


def finish_verb(verb: Parser) -> None:
    """Add --json, and record the verb's flags for errors about an unknown one."""
    verb.add_argument("--json", action="store_true", help="print one JSON object to stdout")
    flags = [flag for action in verb._actions for flag in action.option_strings]
    verb.set_defaults(flags=flags, prog=verb.prog)


def add_sources(verb: Parser, count: str, help: str = SOURCE_HELP) -> None:
    """Add the positional argument SOURCE. `count` is argparse's: `*` or `+`."""
    verb.add_argument("source", type=expand_home, nargs=count, metavar="SOURCE", help=help)
    verb.set_defaults(list_argument="source")


def add_preset(verb: Parser, config: bool = True) -> None:
    verb.add_argument("--preset", metavar="P", help=f"base settings: {', '.join(PRESETS)}")
    if config:
        verb.add_argument(
            "--config", type=expand_home, metavar="F.toml", help="settings from a TOML file; they override the preset"
        )


def add_device(verb: Parser) -> None:
    verb.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:N or mps (auto)")


def add_unknown(verb: Parser) -> None:
    verb.add_argument(
        "--unknown",
        choices=("error", "skip", "replace"),
        default="error",
        help="how to handle characters that are not in the tokenizer's vocabulary (error)",
    )


def add_special_tokens(verb: Parser, text: str) -> None:
    """Add --special-tokens; `text` names what is encoded."""
    help = f"encode a special token such as <|endoftext|> in the {text} as that token, not as ordinary text"
    verb.add_argument("--special-tokens", action="store_true", help=help)


def add_quantize(verb: Parser) -> None:
    verb.add_argument(
        "--quantize",
        choices=("none", "int8"),
        default="none",
        help="int8: quantize the weights, nearly twice as fast on a CPU (none)",
    )


def add_overflow(verb: Parser, default: str) -> None:
    verb.add_argument(
        "--overflow",
        choices=("stop", "slide", "rechunk"),
        default=default,
        help="when the context is full: stop, slide (drop the oldest token: exact, slow), or rechunk (drop the older "
        f"half: fast) ({default})",
    )


def add_settings(group: Any, section: type, defaults: Settings) -> None:
    """Add a flag for every setting of a section except `source`.

    The namespace has no attribute for a flag that is not on the command line, so its default overrides no preset.
    """
    for field in dataclasses.fields(section):
        if field.name == "source":  # a positional argument of every verb that has it
            continue
        flag, choices = "--" + field.name.replace("_", "-"), field.metadata["choices"]
        default = getattr(defaults, field.name)
        shown = str(default).lower() if isinstance(default, bool) else default
        help = f"{field.metadata['help']} ({shown})".replace("%", "%%")
        if choices:
            help = f"{'|'.join(choices)}: {help}"
        options: dict[str, Any] = {"dest": f"setting_{field.name}", "default": argparse.SUPPRESS}
        if field.type is bool:
            group.add_argument(flag, type=boolean, nargs="?", const=True, metavar="BOOL", help=help, **options)
            group.add_argument(f"--no-{flag[2:]}", action="store_const", const=False, help=argparse.SUPPRESS, **options)
        else:
            kind = {int: integer, float: number, str: str}[field.type]  # type: ignore[index]
            metavar = {int: "N", float: "X", str: "NAME"}[field.type]  # type: ignore[index]
            group.add_argument(flag, type=kind, metavar=metavar, help=help, **options)


def explicit_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given on the command line, by name."""
    prefix = "setting_"
    settings = {key.removeprefix(prefix): value for key, value in vars(arguments).items() if key.startswith(prefix)}
    if isinstance(settings.get("compile"), str):  # nanoGPT's --compile=False
        settings["compile"] = {"true": "on", "false": "off"}.get(settings["compile"].lower(), settings["compile"])
    return settings


def integer(text: str) -> int:
    """An argument that is an integer."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer") from None


def number(text: str) -> float:
    """An argument that is a number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def boolean(text: str) -> bool:
    """An argument that is true or false."""
    try:
        return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false") from None


def read_text_file(path: str, flag: str) -> str:
    """The text of a file, or of stdin for `-`. `flag` is the one that takes text instead of a file."""
    try:
        return byte_order_mark.decode(sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes())
    except OSError as error:
        raise OctavoError(f"{path} can't be read: {error.strerror}", f"another path, or {flag} TEXT") from None
    except UnicodeDecodeError as error:
        raise OctavoError(f"{path} is not UTF-8 at byte {error.start}", "save it as UTF-8") from None


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Import PyTorch in the block faster: without garbage collection, which later leaves out what the block created.

    Modules stay until the process ends, but each full collection visits their hundreds of thousands of objects. The
    three that the imports of `octavo train` started took 0.2 s.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def is_first_on_machine() -> bool:
    """Whether this is local rank 0. A launcher starts the same command several times; one process reports a mistake."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def print_notice(text: str) -> None:
    """Print a notice to stderr."""
    print(f"note: {text}", file=sys.stderr)


def print_report(arguments: argparse.Namespace, result: Any, text: str) -> int:
    """Print a dataclass as JSON if `--json` was given, else `text`. Returns exit code 0."""
    print(json.dumps(dataclasses.asdict(result), default=os.fspath, ensure_ascii=False) if arguments.json else text)
    return 0
