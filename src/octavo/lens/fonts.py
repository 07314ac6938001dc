"""Which font has which letter: words as they can be shown here, in whatever fonts are installed."""

from functools import cache

_FONTS = [
    "DejaVu Sans",
    "Noto Sans",
    "Noto Sans Arabic",
    "Noto Naskh Arabic",
    "Noto Sans Devanagari",
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Segoe UI",
    "Nirmala UI",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "Geeza Pro",
    "Kohinoor Devanagari",
    "PingFang SC",
    "Hiragino Sans",
    "Arial Unicode MS",
]


def displayable(words: str, most: int = 1000) -> tuple[str, list[str]]:
    """Words as they can be shown here, and fonts for them: as few as will do, for a mark and what it stands on have to
    be of one. A character that no font has is named by its code point. At most so many characters.
    """
    words = short(words, most)
    missing, fonts = set(words) - {"\n"}, []
    while missing:
        best = next((each for each in _fonts() if missing <= _letters(each)), None)  # opens no more than it has to
        best = best or max(_fonts(), key=lambda each: len(missing & _letters(each)))
        if not missing & _letters(best):
            return displayable("".join(f"U+{ord(each):04X}" if each in missing else each for each in words), most)
        fonts.append(best)
        missing -= _letters(best)
    return words, list(dict.fromkeys([*fonts, *_fonts()[:1]]))  # the height of a line is that of an l and a p


def short(text: str, most: int) -> str:
    """A text of at most so many characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


@cache
def _fonts() -> list[str]:
    """The fonts to choose from that are installed, best first. matplotlib itself brings DejaVu Sans."""
    from matplotlib.font_manager import fontManager

    upright = {each.name for each in fontManager.ttflist if each.style == "normal" and each.weight in (400, "normal")}
    others = sorted(each for each in upright if each.startswith("Noto Sans "))
    return [each for each in dict.fromkeys([*_FONTS, *others]) if each in upright]


@cache
def _letters(font: str) -> frozenset[str]:
    """The characters that a font has."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(map(chr, get_font(findfont(FontProperties(family=[font]))).get_charmap()))
