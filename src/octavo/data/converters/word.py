"""Text of a Word document (.docx): a line for each paragraph, and for each row of a table, with tabs between cells."""

from octavo.data.converters import xml_events
from octavo.data.converters.zip_parts import ZipParts

_BODY = "word/document.xml"
_BREAKS = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}


def convert(content: bytes, name: str, encoding: str) -> str:
    extractor = _Extractor()
    xml_events.parse(
        ZipParts(content, name).read(_BODY), name, extractor.start, extractor.end, extractor.append_characters
    )
    return "".join(extractor.parts)


class _Extractor:
    """Collects the text of WordprocessingML."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self._in_text = False
        self._cells = self._fallbacks = 0  # open elements

    def start(self, namespace: str, tag: str, attributes: dict[str, str]) -> None:
        if tag == "Fallback":  # a second form of a drawing, for other programs; it repeats the text of the first
            self._fallbacks += 1
        if self._fallbacks or "/wordprocessingml/" not in namespace:
            return
        self._in_text = tag == "t"
        self._cells += tag == "tc"
        if tag in _BREAKS and attributes.keys() <= {f"{namespace} type", f"{namespace} clear"}:  # not a tab stop
            self.parts.append(_BREAKS[tag])

    def end(self, namespace: str, tag: str) -> None:
        self._in_text = False
        self._fallbacks -= tag == "Fallback"
        if self._fallbacks or "/wordprocessingml/" not in namespace:
            return
        self._cells -= tag == "tc"
        if tag == "p":
            self.parts.append(" " if self._cells else "\n")
        elif tag in ("tc", "tr"):
            self.parts.append("\t" if tag == "tc" else "\n")

    def append_characters(self, text: str) -> None:
        if self._in_text:
            self.parts.append(text)
