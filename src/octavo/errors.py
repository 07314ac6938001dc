"""The one error that is the user's to mend.

An `OctavoError` says what was given, what was expected and what to try. The command line prints it
in a line or two and exits with 2; from Python it is an ordinary exception. What we believe
impossible is an `assert`; what the machine did wrong (no disk, no memory) is turned into an
`OctavoError` where somebody can do something about it.
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
