"""Text of a PDF: the text of its pages, one after another, as pypdf extracts it."""

import io
import logging

from octavo.data.unreadable import UnreadableFileError


def convert(content: bytes, name: str, encoding: str) -> str:
    import pypdf

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it reports every oddity that it works around
    try:
        reader = pypdf.PdfReader(io.BytesIO(content))
        if reader.is_encrypted and not reader.decrypt(""):
            raise UnreadableFileError(f"{name} is encrypted", "encrypted", "a copy without a password")
        pages = [page.extract_text().strip() for page in reader.pages]
    except UnreadableFileError:
        raise
    except pypdf.errors.DependencyError as error:
        raise UnreadableFileError(f"{name} is encrypted: {error}", "encrypted", "pip install cryptography") from None
    except Exception as error:  # pypdf raises errors of many classes for damaged files
        raise UnreadableFileError(f"{name} is damaged: {error or type(error).__name__}", "damaged") from None
    text = "\n".join(f"{page}\n" for page in pages if page)
    if not text:
        hint = "a copy with recognized text, as ocrmypdf writes it"
        raise UnreadableFileError(f"{name} has no text in it: its pages are images", "without text", hint)
    return text
