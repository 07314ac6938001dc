"""Parse XML that may be hostile: elements and text are handed to the caller as they come, and entities are rejected."""

from collections.abc import Callable
from xml.parsers import expat

from octavo.data.unreadable import UnreadableFileError


def parse(
    content: bytes,
    name: str,
    start: Callable[[str, str, dict[str, str]], None],
    end: Callable[[str, str], None] = lambda namespace, tag: None,
    characters: Callable[[str], None] = lambda text: None,
) -> None:
    """Call `start(namespace, tag, attributes)`, `end(namespace, tag)` and `characters(text)` for all of a document.

    A document type declaration is an error: it can define entities that expand without bound.
    """

    def reject(*_: object) -> None:
        raise UnreadableFileError(f"{name} is damaged: its XML has a document type declaration", "damaged")

    def split(qualified: str) -> tuple[str, str]:
        namespace, _, tag = qualified.rpartition(" ")
        return namespace, tag

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartDoctypeDeclHandler = reject
    parser.StartElementHandler = lambda tag, attributes: start(*split(tag), attributes)
    parser.EndElementHandler = lambda tag: end(*split(tag))
    parser.CharacterDataHandler = characters
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise UnreadableFileError(f"{name} is damaged: its XML is not well-formed, {error}", "damaged") from None
