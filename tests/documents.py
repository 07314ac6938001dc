"""Small files of other programs that the tests of sources read: PDF, Word, EPUB, notebooks, archives, chats."""

import io
import json
import tarfile
import zipfile
from typing import Any

_WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_CONTAINER = '<container xmlns="urn:c"><rootfiles><rootfile full-path="OPS/book.opf"/></rootfiles></container>'
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\xff"


def pdf(*pages: str) -> bytes:
    """A PDF with a line of text on each page."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b"", b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    kids = []
    for text in pages:
        content = f"BT /F1 12 Tf 20 700 Td ({text}) Tj ET".encode()
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content))
        resources = b"/Contents %d 0 R /Resources << /Font << /F1 3 0 R >> >>" % len(objects)
        objects.append(b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] %s >>" % resources)
        kids.append(b"%d 0 R" % len(objects))
    objects[1] = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (b" ".join(kids), len(kids))
    file, offsets = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        offsets.append(b"%010d 00000 n \n" % len(file))
        file += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    size = len(objects) + 1
    table = b"xref\n0 %d\n0000000000 65535 f \n" % size + b"".join(offsets)
    return file + table + b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (size, len(file))


def zip_of(files: dict[str, str | bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def tar_of(files: dict[str, bytes], mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def word(body: str) -> bytes:
    """A Word document with this body, in WordprocessingML."""
    xml = f'<?xml version="1.0"?><w:document xmlns:w="{_WORD}"><w:body>{body}</w:body></w:document>'
    return zip_of({"[Content_Types].xml": "<Types/>", "word/document.xml": xml})


def paragraph(text: str) -> str:
    return f'<w:p><w:r><w:t xml:space="preserve">{text}</w:t></w:r></w:p>'


def epub(*chapters: str) -> bytes:
    """A book whose files are listed in the reverse of their reading order."""
    items = "".join(f'<item id="c{i}" href="text/{i}%20a.xhtml"/>' for i in reversed(range(len(chapters))))
    spine = "".join(f'<itemref idref="c{i}"/>' for i in range(len(chapters)))
    package = f'<package xmlns="urn:p"><manifest>{items}</manifest><spine>{spine}</spine></package>'
    texts = {f"OPS/text/{i} a.xhtml": f"<html><body><p>{text}</p></body></html>" for i, text in enumerate(chapters)}
    return zip_of({"META-INF/container.xml": _CONTAINER, "OPS/book.opf": package, **texts})


def notebook(*cells: str | list[str]) -> str:
    outputs: list[Any] = [{"data": {"image/png": "A" * 100}}]
    return json.dumps({"nbformat": 4, "cells": [{"source": cell, "outputs": outputs} for cell in cells]})


def chatgpt_export(title: str = "Owls") -> list[dict[str, Any]]:
    """A conversation whose first answer was generated again."""

    def node(role: str | None, text: str, parent: str | None, *children: str) -> dict[str, Any]:
        message = role and {"author": {"role": role}, "content": {"content_type": "text", "parts": [text]}}
        return {"message": message, "parent": parent, "children": list(children)}

    mapping = {
        "root": node(None, "", None, "hidden"),
        "hidden": node("system", "hidden instructions", "root", "question"),
        "question": node("user", "How do owls fly?", "hidden", "first", "second"),
        "first": node("assistant", "Loudly.", "question"),
        "second": node("assistant", "In silence.", "question"),
    }
    return [{"title": title, "mapping": mapping, "current_node": "second"}]
