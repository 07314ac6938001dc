"""Text of a web page: without markup, scripts, styles and navigation; a line for each block, as a browser shows it."""

import html.parser
import re

from octavo.byte_order_mark import split_mark
from octavo.data.unreadable import UnreadableFileError

_SKIPPED = {"head", "script", "style", "template", "noscript", "svg", "nav", "iframe", "select", "button"}
_PARAGRAPHS = {"p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "dl", "table", "blockquote", "pre", "figure", "hr"}
_LINES = {"div", "li", "br", "tr", "dt", "dd", "section", "article", "header", "footer", "main", "aside", "figcaption"}
_CHARSET = re.compile(
    rb"<meta[^>]+charset\s*=\s*[\"']?\s*([\w-]+)|^\s*<\?xml[^>]+encoding=[\"']([\w-]+)", re.IGNORECASE
)
_HEAD_BYTES = 2048  # in which a page states its encoding
_GENERATOR = "octavo-static"  # the id of the data in a page that Octavo wrote


def convert(content: bytes, name: str, encoding: str) -> str:
    """The text of a page. `encoding` is used if the page does not state its own."""
    marked, body = split_mark(content)
    stated = _CHARSET.search(content[:_HEAD_BYTES])
    if marked is None and stated is not None:
        encoding = (stated[1] or stated[2]).decode()
    try:
        markup = body.decode(marked or encoding)
    except LookupError:
        raise UnreadableFileError(
            f"{name} states an unknown encoding, {encoding!r}", "with an unknown encoding"
        ) from None
    except UnicodeDecodeError as error:
        raise UnreadableFileError(
            f"{name} is not {marked or encoding}: {error.reason} at byte offset {error.start}",
            "not in the encoding that is stated",
            "--encoding latin-1, or the file's encoding",
        ) from None
    return convert_markup(markup, name)


def convert_markup(markup: str, name: str) -> str:
    """The text of a page that is decoded."""
    if f'id="{_GENERATOR}"' in markup:
        raise UnreadableFileError(f"{name} is a page that octavo inspect --html wrote", "written by Octavo")
    extractor = _Extractor()
    extractor.feed(markup)
    extractor.close()
    return extractor.text()


class _Extractor(html.parser.HTMLParser):
    """Collects the text between tags."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._parts: list[str] = []
        self._skipped: list[str] = []  # the open elements whose text is left out, the outermost first
        self._preformatted = 0

    def parse_marked_section(self, i: int, report: bool = True) -> int:
        """`<![` begins a comment unless a known section follows, as in browsers. Python's method raises an error."""
        try:
            return super().parse_marked_section(i, report)
        except AssertionError:
            return self.parse_bogus_comment(i, report)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "body":  # a page may leave out </head>
            self._skipped.clear()
        elif tag in _SKIPPED:
            self._skipped.append(tag)
        elif not self._skipped:
            self._preformatted += tag == "pre"
            self._break(tag)
            if tag == "li":
                self._parts.append("- ")

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        if not self._skipped:
            self._break(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._skipped:
            del self._skipped[self._skipped.index(tag) :]
        elif not self._skipped:
            self._preformatted -= tag == "pre" and self._preformatted > 0
            self._break(tag)
            if tag in ("td", "th"):
                self._parts.append("\t")

    def handle_data(self, data: str) -> None:
        if self._skipped:
            return
        if not self._preformatted:
            data = re.sub(r"\s+", " ", data)
            if self._parts and self._parts[-1].endswith(("\n", " ", "\t")):
                data = data.lstrip(" ")
        self._parts.append(data)

    def _break(self, tag: str) -> None:
        if tag in _PARAGRAPHS:
            self._parts.append("\n\n")
        elif tag in _LINES:
            self._parts.append("\n")

    def text(self) -> str:
        lines = "".join(self._parts).replace("\0", "").split("\n")
        return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip(" \t\r") for line in lines)).strip() + "\n"
