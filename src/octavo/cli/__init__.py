"""The command line: one module per verb, each with the verb's flags and its handler.

    parser.py   the parser, flags that several verbs share, and printing a report
    suggestions.py, nanogpt.py    what to suggest for a mistake, and for an option of nanoGPT
    VERB.py     add_parser(verbs, defaults) adds the verb and its flags; run(arguments) calls the package and prints

A handler calls the package and prints the result. Torch and numpy are imported by the handlers, never by these modules,
so `octavo --help` takes 0.07 s.

argparse is used rather than a library that derives a command line from a dataclass, for three reasons: a flag that is
not given must not override a preset; `--bias=False` and `--n_layer=6` must work as users of nanoGPT type them; and
every mistake must be reported as an `OctavoError`, with the nearest name.
"""

import argparse
import contextlib
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import NoReturn

import octavo
from octavo.cli import bench, convert, estimate, eval, info, inspect, list_runs, prepare, sample, serve, stats, train
from octavo.cli.nanogpt import reject_options
from octavo.cli.parser import Parser, is_first_on_machine, print_notice
from octavo.cli.suggestions import name_the_run, unknown_verb_error, unknown_word_error
from octavo.errors import MachineError, OctavoError, OctavoWarning
from octavo.settings import PRESETS, Settings, expand_home, resolve

VERBS = {
    "train": train,
    "sample": sample,
    "eval": eval,
    "inspect": inspect,
    "list": list_runs,
    "info": info,
    "serve": serve,
    "prepare": prepare,
    "convert": convert,
    "stats": stats,
    "estimate": estimate,
    "bench": bench,
}


_RESEND_SECONDS = 0.01  # until a signal whose exception was ignored is sent again


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0 success, 1 a failing check of `octavo inspect RUN verify`, 2 a mistake that the user can fix, 3 a failure of the
    machine (disk, memory), 4 a process that has lost the others, 128 + N for signal N.
    """
    _prepare_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with _terminable(), _resend_ignored_signals(), warnings.catch_warnings():
            warnings.simplefilter("always", OctavoWarning)
            warnings.showwarning = lambda message, *details: print_notice(str(message))
            try:
                try:
                    arguments = parse(words)
                except OctavoError as error:
                    if is_first_on_machine() or words[:1] != ["train"]:
                        raise
                    return error.exit_code
                arguments.argv = words
                return int(arguments.handler(arguments) or 0)
            finally:
                sys.stdout.flush()  # so that a closed pipe is noticed here, not at exit
    except OctavoError as error:
        error.hint = error.hint and name_the_run(error.hint, words)
        return _fail(str(error), error.exit_code)
    except _Terminated:
        return _fail("terminated", 128 + signal.SIGTERM, prefix="")
    except KeyboardInterrupt:
        return _fail("\nstopped", 128 + signal.SIGINT, prefix="")
    except BrokenPipeError:  # the reader closed the pipe, as in `octavo sample ... | head`
        _discard_output()
        return 0
    except MemoryError:
        return _fail("out of memory\n  try: a smaller model, batch or text", MachineError.exit_code)
    except OSError as error:
        # An error that has no better message elsewhere: stdout goes to a full disk, or a file of the cache or of a run
        # cannot be read any more.
        place = f"{error.filename}: " if error.filename is not None else ""
        _discard_output()
        return _fail(f"{place}{error.strerror or error}\n  try: check the disk and its permissions", 3)


def run_and_exit() -> NoReturn:
    """Run the command of this process. A signal that arrives while Python shuts down changes nothing any more."""
    exit_code = main()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(exit_code)


class _Terminated(KeyboardInterrupt):
    """SIGTERM. Like Ctrl-C it unwinds the stack, so that temporary files are removed."""


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Raise `_Terminated` on SIGTERM. `octavo train` and `octavo serve` install other handlers."""
    is_default = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if not is_default or threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: object) -> None:
        raise _Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def _resend_ignored_signals() -> Iterator[None]:
    """Send a signal again if its exception was ignored.

    Python ignores exceptions while it frees an object: in `__del__`, and in a generator that is not at its end.
    """
    ignore = sys.unraisablehook

    def resend(unraisable: "sys.UnraisableHookArgs") -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            ignore(unraisable)
            return
        number = signal.SIGTERM if issubclass(unraisable.exc_type, _Terminated) else signal.SIGINT
        # A thread sends it a little later. If this function did, its exception would be ignored again.
        resending = threading.Timer(_RESEND_SECONDS, os.kill, (os.getpid(), number))
        resending.daemon = True
        resending.start()

    sys.unraisablehook = resend
    try:
        yield
    finally:
        sys.unraisablehook = ignore


def _prepare_streams() -> None:
    """Make stdout and stderr usable, whatever the caller did to them."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # closed (`>&-`): a file that is opened later must not take its place
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            if stream.isatty():
                stream.reconfigure(errors="backslashreplace")  # a terminal may not know every character
            else:  # a file or a pipe; on Windows its default encoding is cp1252, which lacks most characters
                stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def _fail(message: str, exit_code: int, prefix: str = "error: ") -> int:
    with contextlib.suppress(OSError):
        print(f"{prefix}{message}", file=sys.stderr, flush=True)
    return exit_code


def _discard_output() -> None:
    """Send what stdout still has in its buffer to nowhere. Python would try to write it again at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse a command. `--n_layer=6` means `--n-layer=6`; the error for an unknown flag names the nearest one."""
    argv = argv or ["--help"]
    parser = _build_parser(_defaults_for_help(argv))
    argv = _hyphenate_flags(argv, parser)
    if argv[0] not in VERBS and not argv[0].startswith("-"):
        raise unknown_verb_error(argv, list(VERBS))
    if argv[0] in VERBS:
        defaults = parser.verbs[argv[0]]
        reject_options(argv, defaults.get_default("nanogpt_names"), defaults.get_default("flags"))
    arguments, rest = parser.parse_known_args(argv)
    if "list_argument" in arguments and not any(word.startswith("-") and word != "-" for word in rest):
        # `inspect RUN --layer 1 VIEW`: argparse leaves words after an option in `rest`.
        words = getattr(arguments, arguments.list_argument)
        setattr(arguments, arguments.list_argument, [*words, *map(expand_home, rest)])
        rest = []
    if rest:
        raise unknown_word_error(rest[0], arguments, argv)
    return arguments


def _hyphenate_flags(argv: list[str], parser: Parser) -> list[str]:
    """`--n_layer=6` becomes `--n-layer=6`. Only the names of flags change, never a value that looks similar."""
    verb = parser.verbs.get(argv[0])
    flags = {flag for action in verb._actions for flag in action.option_strings} if verb else set()
    end = argv.index("--") if "--" in argv else len(argv)

    def hyphenate(word: str) -> str:
        name, equals, value = word.partition("=")
        hyphenated = name.replace("_", "-")
        return hyphenated + equals + value if hyphenated in flags else word

    return [*map(hyphenate, argv[:end]), *argv[end:]]


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
        return Settings()
    preset = arguments.preset or ("finetune" if arguments.init else None)
    return resolve(preset if preset in PRESETS else None)


def _build_parser(defaults: Settings) -> Parser:
    parser = Parser(prog="octavo", description=(octavo.__doc__ or "").partition("\n")[0])
    parser.add_argument("--version", action="version", version=f"octavo {octavo.__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in VERBS.values():
        verb.add_parser(verbs, defaults)
    parser.verbs = verbs.choices
    return parser
