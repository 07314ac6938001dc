"""The built-in corpus: documentation that comes with Python, about a megabyte of ASCII text.

It needs no network, and Octavo ships no text. The text differs between versions of Python, so a dataset prepared from
it is identified by its sha256, as with any other text.
"""

import ast
import itertools
import os
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from octavo.errors import OctavoError

_MAX_CHARACTERS = 1_000_000  # enough for a short training run; parsing the whole library would double the time
_SKIPPED_MODULES = re.compile(r"\b(_|tests?\b|distutils|encodings|idlelib|lib2to3|turtledemo)")
_ASCII_PUNCTUATION = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "--", "…": "..."})


def text() -> str:
    """The sections of the language reference, then the docstrings of the standard library.

    Each section has a heading, and two blank lines separate it from the next. A fifth of the reference repeats earlier
    sections; each section is used once. Every call returns the same text.
    """
    headings: dict[str, str] = {}  # by the body of the section
    size = 0
    for section in itertools.chain(_reference_sections(), _library_docstrings()):
        heading, _, body = _to_ascii(section).partition("\n\n")
        if body and body not in headings:
            headings[body] = heading
            size += len(heading) + len(body)
        if size > _MAX_CHARACTERS:
            break
    return "\n\n\n".join(f"{heading}\n\n{body}" for body, heading in headings.items()) + "\n"


def identity_files() -> list[str]:
    """Files that change when the text does: with another version of Python, or of this module."""
    library = sysconfig.get_path("stdlib")
    return [__file__, os.path.join(library, "os.py"), os.path.join(library, "pydoc_data", "topics.py")]


def _to_ascii(text: str) -> str:
    """Replace quotes, dashes and ellipses, and drop paragraphs that have other characters than printable ASCII.

    A character tokenizer then has fewer than a hundred tokens, none of them very rare.
    """
    lines = "\n".join(line.rstrip() for line in text.translate(_ASCII_PUNCTUATION).splitlines())
    paragraphs = lines.strip("\n").split("\n\n")
    return "\n\n".join(p for p in paragraphs if p.isascii() and p.replace("\n", "").isprintable())


def _reference_sections() -> Iterator[str]:
    """Yield the sections of the help topics, which are pages of the language reference. Each begins with its title."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise _missing_documentation("pydoc_data.topics") from error
    for _, topic in sorted(topics.items()):
        yield from re.split(r"\n+(?=\S.*\n[*=~^-]{3,}\n)", topic)


def _library_docstrings() -> Iterator[str]:
    """Yield the docstrings of public modules, classes and functions. Their source is parsed, not imported."""
    library = Path(sysconfig.get_path("stdlib"))  # in a virtual environment, this is the base installation's
    if not (library / "os.py").is_file():
        raise _missing_documentation(f"source of the library in {library}")
    for name in sorted(sys.stdlib_module_names):
        sources = [library / f"{name}.py", *(library / name).rglob("*.py")]
        for path in sorted(sources, key=lambda path: path.parts):
            module = ".".join(path.relative_to(library).with_suffix("").parts).removesuffix(".__init__")
            if path.is_file() and not _SKIPPED_MODULES.search(module):
                with warnings.catch_warnings(action="ignore"):  # some modules have invalid escape sequences
                    tree = ast.parse(path.read_bytes())
                yield from _docstrings(tree, module)


_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _docstrings(node: ast.Module | _Definition, name: str) -> Iterator[str]:
    """Yield the docstring of a module, class or function and those of its public members, with their names."""
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
            if isinstance(child, _Definition) and not child.name.startswith("_"):
                yield from _docstrings(child, f"{name}.{child.name}")


def _missing_documentation(missing: str) -> OctavoError:
    message = f"this Python was installed without its documentation: there is no {missing}"
    return OctavoError(message, "shakespeare, or a text of your own")
