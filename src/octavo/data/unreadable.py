"""The error for a file that has no text for Octavo: an error if the user named the file, a count if a folder has it."""

from octavo.errors import OctavoError


class UnreadableFileError(OctavoError):
    """A file that cannot be read as text. `reason` says why in a word or two; the summary of a folder has it."""

    def __init__(self, message: str, reason: str, hint: str = "leave it out, or another file") -> None:
        super().__init__(message, hint)
        self.reason, self.hint = reason, hint
