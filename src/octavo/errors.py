"""The exception for everything that the user can fix, and its subclasses.

An `OctavoError` says what was given, what was expected and what to try. The command line prints it in a line or two
and exits with its `exit_code`; in Python it is an ordinary exception. A state that only a bug can cause is an `assert`.
A failure of the machine (full disk, out of memory) becomes a `MachineError` at the place that knows what the user can
do.

Code that reacts to an error catches a subclass; nothing depends on the text of a message.
"""

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path


class OctavoError(Exception):
    """A mistake or a limit that the user can do something about.

    `message` says what was given and what was expected, `hint` what to try.
    """

    exit_code = 2

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  try: {self.hint}"


class MachineError(OctavoError):
    """The machine failed: a full or broken disk, or too little memory. The same command may work later or elsewhere."""

    exit_code = 3


class SettingError(OctavoError):
    """A setting that does not exist, or whose value is not allowed. `names` are the settings involved."""

    def __init__(self, names: tuple[str, ...], message: str, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.names = names


class DivergenceError(OctavoError):
    """Training diverged: a loss, gradient or weight is NaN or infinite. `step` is the update that shows it."""

    def __init__(self, step: int, reason: str, hint: str | None = None) -> None:
        super().__init__(f"training diverged at step {step}: {reason}", hint)
        self.step, self.reason = step, reason


class UnknownCharactersError(OctavoError):
    """The text has characters that are not in the tokenizer's vocabulary."""


class NoTokenLeftError(OctavoError):
    """The sampling settings exclude every token that could come next."""


class SourceNotFoundError(OctavoError):
    """There is no such file or folder."""


class SourceChangedError(OctavoError):
    """The source changed while it was being read."""


class OctavoWarning(UserWarning):
    """Something that the user may not expect, such as the use of an older checkpoint because the newest is damaged.

    The command line prints it as a note.
    """


def first_line(error: Exception) -> str:
    """The first line of an error's message, or the name of its class if it has no message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def install_command(extra: str) -> str:
    """The command that installs an extra: from the checkout that this package is in, or from an index."""
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file():
        return f"pip install -e {shlex.quote(f'{checkout}[{extra}]')}"
    return f"pip install 'octavo[{extra}]'"


@contextlib.contextmanager
def translate_parser_errors(message: str, hint: str | None = None) -> Iterator[None]:
    """Turn any error that a library raises while it parses a user's file into an `OctavoError` with this message.

    A panic in a Rust library reaches Python as a PanicException, which does not derive from `Exception`.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if isinstance(error, OctavoError) and error.hint is not None:
            hint = error.hint
        raise OctavoError(f"{message}: {getattr(error, 'message', error)}", hint) from None


@contextlib.contextmanager
def translate_setting_errors(file: object) -> Iterator[None]:
    """Turn a `SettingError` into an `OctavoError` that names the file. Its hint is no flag: a flag can't correct it."""
    try:
        yield
    except SettingError as error:
        raise OctavoError(f"{file}: {error.message}", "another copy of the file, or its original contents") from None
