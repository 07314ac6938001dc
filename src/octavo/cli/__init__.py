"""The command line: one module per verb, each with the verb's flags and its handler.

    parser.py   the parser, flags that several verbs share, and printing a report
    VERB.py     add_parser(verbs, defaults) adds the verb and its flags; run(arguments) calls the package and prints

A handler calls one function of the package and prints the result. Torch and numpy are imported by the handlers, never
by these modules, so `octavo --help` takes 0.07 s.

argparse is used rather than a library that derives a command line from a dataclass, for three reasons: a flag that is
not given must not override a preset; `--bias=False` and `--n_layer=6` must work as users of nanoGPT type them; and
every mistake must be reported as an `OctavoError`, with the nearest name.
"""

import argparse
import difflib
import io
import os
import sys
from collections.abc import Sequence

import octavo
from octavo.cli import bench, estimate, eval, inspect, prepare, sample, serve, stats, train
from octavo.cli.parser import Parser
from octavo.errors import OctavoError
from octavo.settings import PRESETS, Settings, resolve, unknown_name_error

VERBS = {
    "train": train,
    "sample": sample,
    "eval": eval,
    "inspect": inspect,
    "serve": serve,
    "prepare": prepare,
    "stats": stats,
    "estimate": estimate,
    "bench": bench,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit code: 0, 2 for an error that the user can fix, 130 for Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a pipe on Windows or the C locale may not encode every character
            stream.reconfigure(errors="replace")
    try:
        try:
            arguments = parse(list(sys.argv[1:] if argv is None else argv))
            return int(arguments.handler(arguments) or 0)
        finally:
            sys.stdout.flush()  # so that a closed pipe is noticed here, not at exit
    except OctavoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader closed the pipe, as in `octavo sample ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse a command. `--n_layer=6` means `--n-layer=6`; the error for an unknown flag names the nearest one."""
    argv = [_hyphenate(word) for word in argv] or ["--help"]
    parser = _build_parser(_defaults_for_help(argv))
    if argv[0] not in VERBS and not argv[0].startswith("-"):
        raise unknown_name_error("verb", argv[0], VERBS)
    arguments, rest = parser.parse_known_args(argv)
    if "words" in arguments and not any(word.startswith("-") for word in rest):
        # `inspect RUN VIEW`: for nargs="+", argparse takes only the words before the first option.
        arguments.words, rest = [*arguments.words, *rest], []
    if rest:
        raise _unknown_word_error(rest[0], arguments)
    return arguments


def _unknown_word_error(word: str, arguments: argparse.Namespace) -> OctavoError:
    name = word.partition("=")[0]
    replacement = arguments.nanogpt_names.get(name.removeprefix("--").replace("-", "_"))
    if replacement is not None:
        return OctavoError(f"{name} is an option of nanoGPT, not of Octavo", replacement)
    flags = [flag for flag in arguments.flags if flag.startswith("--")]
    nearest = difflib.get_close_matches(name, flags, n=1, cutoff=0.6)
    message = f"there is no option {name}" if name.startswith("-") else f"unexpected argument {name!r}"
    return OctavoError(message, nearest[0] if nearest else f"{arguments.prog} --help")


def _hyphenate(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def _defaults_for_help(argv: list[str]) -> Settings:
    """The settings that `--help` shows as defaults: those of the preset on the command line."""
    if not {"-h", "--help"} & set(argv):
        return Settings()  # the help is not shown
    preset_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    preset_parser.add_argument("--preset")
    preset_parser.add_argument("--init")
    try:
        arguments = preset_parser.parse_known_args(argv)[0]
    except argparse.ArgumentError:  # the real parser reports it
        return resolve()
    preset = arguments.preset or ("finetune" if arguments.init else None)
    return resolve(preset if preset in PRESETS else None)


def _build_parser(defaults: Settings) -> Parser:
    parser = Parser(prog="octavo", description=(octavo.__doc__ or "").partition("\n")[0])
    parser.add_argument("--version", action="version", version=f"octavo {octavo.__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in VERBS.values():
        verb.add_parser(verbs, defaults)
    return parser
