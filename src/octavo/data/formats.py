"""The formats of files that Octavo reads: one table, from which the readers, the help and docs/data.md derive.

The suffix of a file's name decides its format. Nothing here reads a file.
"""

from dataclasses import dataclass
from pathlib import PurePath


@dataclass(frozen=True)
class Format:
    """A row of the table. `suffixes` are in lower case. The package that reads the format is in the extra `extra`."""

    name: str  # as a summary of a folder counts its files
    suffixes: tuple[str, ...]
    documents: str  # how many documents a file has, and their text
    extra: str | None = None


TEXT = Format("text", (), "one, or several separated by lines `<|endoftext|>`")
JSON_LINES = Format(
    "JSON lines", (".jsonl", ".ndjson"), "one per row: the field `text`, or `--text-field`; or its chat"
)
JSON = Format(
    "JSON",
    (".json",),
    "one per object in an array, or on a line, as for JSON lines; a chat; any other JSON is read as it is",
)
CSV = Format("CSV", (".csv", ".tsv"), "one per row: the field `text`, or `--text-field`")
PARQUET = Format("Parquet", (".parquet",), "one per row: the field `text`, or `--text-field`", extra="parquet")
HTML = Format("HTML", (".html", ".htm", ".xhtml"), "one: the text without its markup, scripts and navigation")
PDF = Format("PDF", (".pdf",), "one: the text of its pages", extra="docs")
WORD = Format("Word", (".docx",), "one: a line for each paragraph")
EPUB = Format("EPUB", (".epub",), "one: the text of its chapters")
NOTEBOOK = Format("notebook", (".ipynb",), "one: its cells, without their outputs")
ZIP = Format("ZIP", (".zip",), "those of the files in it, which are treated like the files of a folder")
TAR = Format("tar", (".tar", ".tgz"), "those of the files in it, which are treated like the files of a folder")

FORMATS = (TEXT, JSON_LINES, JSON, CSV, PARQUET, HTML, PDF, WORD, EPUB, NOTEBOOK, ZIP, TAR)
ARCHIVES = (ZIP, TAR)
COMPRESSED = (".gz", ".zst")  # after any other suffix
_BY_SUFFIX = {suffix: format for format in FORMATS for suffix in format.suffixes}


def find_format(name: str) -> Format:
    """The format of a file, from its name: that of `rows.jsonl` for `rows.jsonl.gz`."""
    outer = PurePath(name)
    inner = PurePath(outer.stem) if outer.suffix.lower() in COMPRESSED else outer
    return _BY_SUFFIX.get(inner.suffix.lower(), TEXT)


def is_compressed(name: str) -> bool:
    """Whether the file must be decompressed before it is read. `.tgz` is `.tar.gz`."""
    return PurePath(name).suffix.lower() in (*COMPRESSED, ".tgz")


def list_suffixes() -> str:
    """All suffixes, for help: `.jsonl, .ndjson, .json, ...`."""
    return ", ".join(suffix for format in FORMATS for suffix in format.suffixes)
