"""Text of an e-book (.epub): its chapters in reading order, with an empty line between them."""

import posixpath
from urllib.parse import unquote

from octavo.data.converters import html, xml_events
from octavo.data.converters.zip_parts import ZipParts
from octavo.data.unreadable import UnreadableFileError

_CONTAINER = "META-INF/container.xml"


def convert(content: bytes, name: str, encoding: str) -> str:
    parts = ZipParts(content, name)
    chapters = [html.convert(parts.read(part), name, "utf-8") for part in _reading_order(parts, name)]
    return "\n".join(chapter for chapter in chapters if chapter.strip())


def _reading_order(parts: ZipParts, name: str) -> list[str]:
    """The parts with the chapters, as the book's package document lists them."""
    packages: list[str] = []
    files: dict[str, str] = {}  # by id
    order: list[str] = []

    def read_container(namespace: str, tag: str, attributes: dict[str, str]) -> None:
        if tag == "rootfile":
            packages.append(attributes.get("full-path", ""))

    def read_package(namespace: str, tag: str, attributes: dict[str, str]) -> None:
        if tag == "item":
            files[attributes.get("id", "")] = unquote(attributes.get("href", ""))
        elif tag == "itemref":
            order.append(attributes.get("idref", ""))

    xml_events.parse(parts.read(_CONTAINER), name, read_container)
    if not packages:
        raise UnreadableFileError(f"{name} is damaged: {_CONTAINER} names no package", "damaged")
    xml_events.parse(parts.read(packages[0]), name, read_package)
    folder, names = posixpath.dirname(packages[0]), set(parts.names)
    chapters = [posixpath.normpath(posixpath.join(folder, files[id])) for id in order if id in files]
    missing = [chapter for chapter in chapters if chapter not in names]
    if missing or not chapters:
        raise UnreadableFileError(f"{name} is damaged: it lacks {missing[0] if missing else 'chapters'}", "damaged")
    return chapters
