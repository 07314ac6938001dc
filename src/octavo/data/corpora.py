"""Where text comes from: a corpus that has a name, a file, a folder, a glob, or standard input.

`read` turns a SOURCE into a `Corpus`: one text, and the sha256 it is recognized by. Nothing is tokenized
or written here, and no network is reached but for `shakespeare`, once. The text is what the files say,
line endings included; only byte order marks go. The built-in corpus is at the bottom.
"""

import ast
import codecs
import difflib
import glob
import hashlib
import itertools
import os
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from octavo import files
from octavo.errors import OctavoError

NAMED: tuple[str, ...] = ("pydocs", "shakespeare")

_SHAKESPEARE = (
    "tinyshakespeare.txt",
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)


@dataclass(frozen=True)
class Corpus:
    """A text, a name for it that can be a folder's, and the sha256 of its UTF-8 bytes."""

    name: str
    text: str
    sha256: str

    @property
    def size(self) -> int:
        """The number of UTF-8 bytes."""
        return len(self.text.encode())


def read(source: str, encoding: str = "utf-8", errors: str = "strict") -> Corpus:
    """Read the text that `source` names.

    `source` is one of `NAMED` (the name wins: a file of that name is `./pydocs`), a text file, a folder,
    a glob such as `notes/**/*.md`, or `-` for standard input. A folder is read through and through, except
    for what is hidden, what is binary (a NUL byte in its first 64 KiB) and folders behind links. A glob
    leaves out the same, but follows links. Files are joined in the order of their paths, and each starts
    on a line of its own.

    `encoding` and `errors` (strict, replace or ignore) are those of `bytes.decode`; a byte order mark at
    the start of a file is dropped. Raises `OctavoError` where there is no text, or it can't be read.
    """
    encoding = _checked(encoding, errors)
    try:
        match source:
            case "pydocs":
                text = _pydocs()
            case "shakespeare":
                text = files.fetched(*_SHAKESPEARE).read_bytes().decode()
            case "-":
                text = _standard_input(encoding, errors)
            case _:
                text = _joined(source, encoding, errors)
        return Corpus(_name(source), text, hashlib.sha256(text.encode()).hexdigest())
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it, or a codec that has its own
        raise _unreadable(source, error) from error


def _checked(encoding: str, errors: str) -> str:
    """The encoding's own name. `utf-8-sig` is `utf-8` here: the mark goes, and offsets count it."""
    try:
        "a".encode(encoding)
    except (LookupError, ValueError) as error:
        hint = "--encoding utf-8, latin-1, cp1252 or utf-16"
        raise OctavoError(f"there is no text encoding {encoding!r}", hint) from error
    if errors not in ("strict", "replace", "ignore"):
        raise OctavoError(f"errors is {errors!r}, not strict, replace or ignore", "--errors replace")
    return codecs.lookup(encoding).name.removesuffix("-sig")


def _name(source: str) -> str:
    """A corpus's name, a file's stem, or the name of a folder: for a glob, the one it looks in."""
    if source in NAMED or source == "-":
        return source if source in NAMED else "stdin"
    path = Path(os.path.abspath(source))
    while not path.exists():
        path = path.parent
    name = path.name if path.is_dir() else path.stem
    return re.sub(r"[^\w.-]+", "-", name)[:60].strip(".-") or "text"


def _unreadable(source: str, error: OSError | ValueError) -> OctavoError:
    path = getattr(error, "filename", None) or source
    if not isinstance(error, FileNotFoundError):
        reason = getattr(error, "strerror", None) or error
        return OctavoError(f"{path!r} can't be read: {reason}", "check its name, permissions and encoding")
    near = difflib.get_close_matches(source.lower(), NAMED, n=1)
    others = f"a file, a folder, a glob, - for standard input, {' or '.join(NAMED)}"
    return OctavoError(f"there is no file or folder {path!r}", near[0] if near else others)


# Files


def _joined(source: str, encoding: str, errors: str) -> str:
    """The text of all files that `source` names, each starting on a line of its own."""
    paths = _paths(source)
    texts = []
    for path in paths:
        with open(path, "rb") as file:
            texts.append(_text(file, path, encoding, errors))
    found = [text for text in texts if text]
    if not found:
        what = f"has no text in it ({len(paths)} files, {texts.count(None)} of them binary)"
        if paths == [source]:
            what = "is empty" if texts == [""] else "is binary, not text"
        raise OctavoError(f"{source} {what}", "give a text file, or a folder of them")
    return "".join(text if text.endswith("\n") else f"{text}\n" for text in found[:-1]) + found[-1]


def _paths(source: str) -> list[str]:
    """The files that `source` names, sorted by the parts of their paths."""
    if os.path.isdir(source):
        found = list(_walk(Path(source)))
    elif os.path.exists(source) or not glob.has_magic(source):
        found = [source]  # where it can't be read, opening it says why
    else:
        found = [path for path in set(glob.glob(source, recursive=True)) if os.path.isfile(path)]
        if not found:
            raise OctavoError(f"no file matches {source!r}", "** for any folder, * for any name")
    return sorted(found, key=lambda path: Path(path).parts)


def _walk(folder: Path) -> Iterator[str]:
    """The files in `folder` and in the folders in it, except for what is hidden and folders behind links."""
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)
        elif path.is_file():
            yield str(path)


def _standard_input(encoding: str, errors: str) -> str:
    stream: BinaryIO | None = getattr(sys.stdin, "buffer", None)  # a program without a terminal may have none
    text = _text(stream, "standard input", encoding, errors) if stream else ""
    if not text:
        what = "binary, not text" if text is None else "empty"
        raise OctavoError(f"standard input is {what}", "pipe a text into it, or give a file")
    return text


def _text(file: BinaryIO, where: str, encoding: str, errors: str) -> str | None:
    """What `file` says, or None where it is binary."""
    head = file.read(65_536)
    if b"\0" not in "a".encode(encoding):  # UTF-16 and UTF-32 are full of NULs
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise OctavoError(f"{where} looks like utf-16, not {encoding}", "--encoding utf-16")
        if b"\0" in head:
            return None
    try:
        return (head + file.read()).decode(encoding, errors).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        what = f"{where} is not {encoding}: {error.reason} at byte offset {error.start}"
        raise OctavoError(what, "--encoding latin-1 (or what it is in), or --errors replace") from error


# The documentation inside every Python

_PYDOCS_BYTES = 1_000_000  # enough to train on for a while; all of it would take twice as long to parse
_PASSED_OVER = re.compile(r"\b(_|tests?\b|distutils|encodings|idlelib|lib2to3|turtledemo)")
_TYPEWRITER = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "--", "…": "..."})


def _pydocs() -> str:
    """The language reference, then the standard library's docstrings, to about a megabyte of ASCII.

    Pieces stand two blank lines apart, under a heading each. What the reference says in several places
    (a fifth of it) is said once. The same on every call, but other Pythons have other documentation.
    """
    headings: dict[str, str] = {}  # by the body beneath
    size = 0
    for piece in itertools.chain(_language_reference(), _docstrings()):
        heading, _, body = _plain(piece).partition("\n\n")
        if body and body not in headings:
            headings[body] = heading
            size += len(heading) + len(body)
        if size > _PYDOCS_BYTES:
            break
    return "\n\n\n".join(f"{heading}\n\n{body}" for body, heading in headings.items()) + "\n"


def _plain(text: str) -> str:
    """`text` in printable ASCII: quotes and dashes as a typewriter has them, paragraphs with more left out.

    So a character tokenizer has fewer than a hundred symbols to learn, and none is very rare.
    """
    lines = "\n".join(line.rstrip() for line in text.translate(_TYPEWRITER).splitlines())
    paragraphs = lines.strip("\n").split("\n\n")
    return "\n\n".join(p for p in paragraphs if p.isascii() and p.replace("\n", "").isprintable())


def _language_reference() -> Iterator[str]:
    """The sections of the topics that `help()` knows, each from its underlined title on."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise _undocumented("pydoc_data.topics") from error
    for _, topic in sorted(topics.items()):
        yield from re.split(r"\n+(?=\S.*\n[*=~^-]{3,}\n)", topic)


def _docstrings() -> Iterator[str]:
    """What public modules, classes and functions say of themselves, by their source: none is imported."""
    library = Path(sysconfig.get_path("stdlib"))  # the base installation's, in a virtual environment too
    if not (library / "os.py").is_file():
        raise _undocumented(f"source of the library in {library}")
    for name in sorted(sys.stdlib_module_names):
        sources = [library / f"{name}.py", *(library / name).rglob("*.py")]
        for path in sorted(sources, key=lambda path: path.parts):
            module = ".".join(path.relative_to(library).with_suffix("").parts).removesuffix(".__init__")
            if path.is_file() and not _PASSED_OVER.search(module):
                with warnings.catch_warnings(action="ignore"):  # old modules have odd escapes
                    tree = ast.parse(path.read_bytes())
                yield from _documented(tree, module)


_Named = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _documented(node: ast.Module | _Named, name: str) -> Iterator[str]:
    """The docstrings of a module, class or function and of what is public in it, each under its name."""
    if docstring := ast.get_docstring(node):
        match node:
            case ast.Module():
                heading = f"module {name}"
            case ast.ClassDef():
                heading = f"class {name}"
            case _:
                heading = f"{name}({ast.unparse(node.args)})"
        yield f"{heading}\n\n{docstring}"
    if isinstance(node, ast.Module | ast.ClassDef):
        for child in node.body:
            if isinstance(child, _Named) and not child.name.startswith("_"):
                yield from _documented(child, f"{name}.{child.name}")


def _undocumented(missing: str) -> OctavoError:
    what = f"this Python came without its documentation: there is no {missing}"
    return OctavoError(what, "shakespeare, or a text of your own")
