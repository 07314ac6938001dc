"""The built-in corpus: the documentation that lies inside every Python, about a megabyte of plain ASCII.

It needs no network and no files of ours. Other Pythons have other documentation, so what was prepared from it is
known by its sha256 like any text.
"""

import ast
import itertools
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from octavo.errors import OctavoError

_PYDOCS_BYTES = 1_000_000  # enough to train on for a while; all of it would take twice as long to parse
_PASSED_OVER = re.compile(r"\b(_|tests?\b|distutils|encodings|idlelib|lib2to3|turtledemo)")
_TYPEWRITER = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "--", "…": "..."})


def text() -> str:
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
