"""Choose fonts for a text: the fewest installed ones that have all its characters."""

from collections.abc import Callable, Mapping, Set
from functools import cache

_PREFERRED = [
    "DejaVu Sans", "Noto Sans", "Noto Sans Arabic", "Noto Naskh Arabic", "Noto Sans Devanagari", "Noto Sans CJK JP",
    "Noto Sans CJK SC", "Segoe UI", "Nirmala UI", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Geeza Pro",
    "Kohinoor Devanagari", "PingFang SC", "Hiragino Sans", "Arial Unicode MS",
]  # fmt: skip


def choose_fonts(
    text: str, max_length: int = 1000, available: Mapping[str, Set[str]] | None = None
) -> tuple[str, list[str]]:
    """Shorten a text to `max_length` characters, and return it with the fonts to draw it with.

    Few fonts, because a combining mark and its base character have to come from the same one. A character that no font
    has is replaced by its code point. `available` are fonts with their characters (default: the installed ones).
    """
    names = installed_fonts() if available is None else list(available)
    characters: Callable[[str], Set[str]] = characters_of if available is None else available.__getitem__
    text = shorten(text, max_length)
    missing, fonts = set(text) - {"\n"}, []
    while missing:
        # The generator stops at the first font that has all characters, so the files of later fonts are not opened.
        font = next((each for each in names if missing <= characters(each)), None)
        font = font or max(names, key=lambda each: len(missing & characters(each)))
        if not missing & characters(font):
            text = "".join(f"U+{ord(each):04X}" if each in missing else each for each in text)
            return choose_fonts(text, max_length, available)
        fonts.append(font)
        missing -= characters(font)
    # matplotlib takes the line height from the letters l and p, so the list needs a font with Latin letters.
    return text, list(dict.fromkeys([*fonts, *names[:1]]))


def shorten(text: str, max_length: int) -> str:
    """Cut a text to `max_length` characters, the last of them an ellipsis."""
    return text if len(text) <= max_length else text[: max_length - 1] + "…"


@cache
def installed_fonts() -> list[str]:
    """The installed fonts to choose from, best first. matplotlib itself includes DejaVu Sans."""
    from matplotlib.font_manager import fontManager

    upright = {each.name for each in fontManager.ttflist if each.style == "normal" and each.weight in (400, "normal")}
    others = sorted(each for each in upright if each.startswith("Noto Sans "))
    return [each for each in dict.fromkeys([*_PREFERRED, *others]) if each in upright]


@cache
def characters_of(font: str) -> frozenset[str]:
    """All characters that a font has."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(map(chr, get_font(findfont(FontProperties(family=[font]))).get_charmap()))
