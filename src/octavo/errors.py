"""The errors that a user can act on.

An `OctavoError` says what was given, what was expected and what to try. The command line prints it in a line or two
and exits with 2; in Python it is an ordinary exception. Code that reacts to one kind of error catches a subclass,
never a message. A bug is an `assert`; a failure of the machine (disk full, out of memory) becomes an `OctavoError`
where somebody can do something about it.
"""


class OctavoError(Exception):
    """A mistake or a limit that the user can do something about.

    `message` says what was given and what was expected, `hint` what to try.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  try: {self.hint}"


class UnknownCharactersError(OctavoError):
    """A text holds characters that the tokenizer has no ids for."""
