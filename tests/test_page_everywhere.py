"""Every tab in every language and theme: accessibility, translations, layout and errors.

One tour opens each tab with all its content and records what the tests check.
"""

import re
import xml.etree.ElementTree as ET
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from browser import (
    LANGUAGES,
    PLAYGROUND_TEXT,
    TABS,
    THEMES,
    Visit,
    axe_violations,
    fill_tab,
    generate_text,
    load_sentences,
    open_page,
    parse_number,
    save_file,
)
from octavo.server.static_page import ROOT
from octavo.views import VIEWS
from serving import RunningServer

ARABIC, HINDI = "القطة جلست على السجادة ثم نامت", "बिल्ली चटाई पर बैठी फिर सो गई"
SAME_AS_ENGLISH = {  # keys of sentences that may equal the English ones: code, signs, and words that languages share
    "ar": {"sampling.topk", "sampling.topp"},
    "hi": {"sampling.topk", "sampling.topp", "col.logit"},
    "fr": {
        "tab.attention",
        "play.mode",
        "sampling.topk",
        "sampling.topp",
        "col.id",
        "col.logit",
        "train.unit.h",
        "train.unit.m",
        "train.unit.s",
        "col.token",
        "col.contribution",
        "col.position",
        "col.bits",
        "figure.token",
        "layers.start",
        "surprisal.bits",
        "train.minutes",
        "compare.b",
    },
    "de": {"sampling.topk", "sampling.topp", "figure.token", "tab.training"},
}
LATIN = r"(?:\b[A-Za-z]{2,}\b[ ,.]*){3}"
ENGLISH = r"\b(?:the|of|is|and|with|which|what|that|this|are)\b"
FOREIGN = {"ar": LATIN, "hi": LATIN, "fr": ENGLISH, "de": ENGLISH}  # patterns that no sentence of a language matches
SCRIPT = (Path(__file__).parent / "tour.js").read_text(encoding="utf-8")
WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 320, "height": 640}
CLOSE_LARGE_TABLES = """document.querySelectorAll("main details.table").forEach((details) =>
    (details.open = details.querySelectorAll("td").length < 500))"""  # thousands of cells are slow to lay out
# Both scripts are of visible figures with a picture: count the drawings from now on, and return the counts.
COUNT_DRAWS = """[...document.querySelectorAll(".panel:not([hidden]) figure.figure")].forEach((figure) => {
    const draw = figure.uncounted ?? figure.draw;
    Object.assign(figure, { uncounted: draw, draws: 0, draw: () => (figure.draws++, draw()) });
})"""
# [the length of the bar in its track, the probability that is printed beside it or in its table's cell] of every bar
READ_PROBABILITY_BARS = """() => {
    const bars = ".bar .fill, .token-bars .track > *, .pairs.percent .track > *, .guess .track > *";
    return [...document.querySelectorAll(`.panel:not([hidden]) :is(${bars})`)].map((bar) => {
        const track = bar.parentElement;
        const row = track.closest(".bar, .token-bars li, .pairs li, .guess");
        const shares = [...row.querySelectorAll(".value, .share > span, .share:not(:has(span)), small")]
            .map((each) => each.textContent).filter((text) => text.includes("%"));
        const index = [...row.querySelectorAll(".track")].indexOf(track);
        return [bar.getBoundingClientRect().width / track.getBoundingClientRect().width, shares[index] ?? ""];
    });
}"""
READ_DRAWS = """[...document.querySelectorAll(".panel:not([hidden]) figure.figure")]
    .filter((figure) => "draws" in figure && figure.body.clientWidth)
    .map((figure) => [figure.className, figure.draws])"""
# The width of the same Arabic letters, joined and apart, in the font for code
MEASURE_ARABIC = """() => {
    const context = document.createElement("canvas").getContext("2d");
    const style = getComputedStyle(document.documentElement);
    context.font = `20px ${style.getPropertyValue("--mono")}`;
    return ["ااااا", "سسسسس"].map((text) => context.measureText(text).width);
}"""
# Axe needs most of its time for these rules. The contrast of colors differs by theme and not by language; the second
# rule is about the style sheets.
CONTRAST, ORIENTATION = "color-contrast", "css-orientation-lock"


@dataclass
class Tour:
    """The record of a tour, by tab and language."""

    faults: dict[str, list[str]] = field(default_factory=dict)
    violations: defaultdict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))
    directions: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    sentences: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    # The width of the page in a window of 320 pixels, and elements that overflow
    widths: dict[tuple[str, str], tuple[int, list[str]]] = field(default_factory=dict)
    pictures: dict[str, list[tuple[str, int]]] = field(default_factory=dict)  # and the number of rows in each table
    focus: dict[str, tuple[int, list[str], list[str]]] = field(default_factory=dict)  # count, unreached, invisible
    bars: dict[str, list[tuple[float, str]]] = field(default_factory=dict)  # of probabilities: length, and percent
    files: dict[str, list[bytes]] = field(default_factory=dict)  # every picture, saved as SVG


@pytest.fixture(scope="module")
def tour(chromium: Browser, site: RunningServer) -> Tour:
    tour = Tour()
    for tab in TABS:
        with open_page(chromium, site.url) as visit:
            page = visit.open_tab(tab, "letters", "The cat sat.").page
            fill_tab(visit, tab)
            tour.pictures[tab] = run_script(visit, "pictures")
            tour.bars[tab] = page.evaluate(READ_PROBABILITY_BARS)
            buttons = page.locator(".panel:visible .save button:visible").filter(has_text="SVG").all()
            tour.files[tab] = [save_file(visit, button) for button in buttons]
            page.evaluate(CLOSE_LARGE_TABLES)
            controls = run_script(visit, "watchFocus")
            for _ in range(controls + 2):
                page.keyboard.press("Tab")
            tour.focus[tab] = (controls, *run_script(visit, "focusReport"))
            for theme in THEMES:
                visit.choose(theme=theme)
                tour.violations[tab, "en"] += axe_violations(visit, only=[CONTRAST])
            tour.violations[tab, "en"] += axe_violations(visit, only=[ORIENTATION])
            sizes = [WIDE, NARROW]
            for language in LANGUAGES:
                visit.choose(language=language)
                for size in sizes:
                    if page.viewport_size != size:
                        page.set_viewport_size(size)
                        visit.settle()
                    if size == WIDE:
                        tour.directions[tab, language] = run_script(visit, "directions")
                        tour.sentences[tab, language] = run_script(visit, "sentences")
                        tour.violations[tab, language] += axe_violations(visit, without=[CONTRAST, ORIENTATION])
                    else:
                        stages = run_script(visit, "stages")
                        tour.widths[tab, language] = max(width for width, _ in stages)
                        narrow_sentences = [each for _, sentences in stages for each in sentences]
                tour.sentences[tab, language] += narrow_sentences
                sizes.reverse()  # the next language begins with the present size
            tour.faults[tab] = visit.faults
    return tour


def run_script(visit: Visit, function: str) -> Any:
    """Call a function of tour.js and return its result."""
    if not visit.page.evaluate("'tour' in window"):
        visit.page.evaluate(SCRIPT)
    return visit.page.evaluate(f"tour.{function}()")


# The page's files


def test_the_import_map_names_every_module() -> None:
    modules = {path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.js") if "vendor" not in path.parts}
    index = (ROOT / "index.html").read_text(encoding="utf-8")
    import_map = dict(re.findall(r'"octavo/([\w/]+)": "\./page/([\w/.]+)"', index))
    assert import_map == {module.removesuffix(".js"): module for module in modules}


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_two_tabs_and_buttons_of_the_header_have_one_name(language: str) -> None:
    sentences = load_sentences(language)
    keys = [*(f"tab.{tab}" for tab in TABS), "tour.start"]
    assert len({sentences[key] for key in keys}) == len(keys)


def test_every_tab_of_the_table_of_views_exists() -> None:
    assert {view.tab for view in VIEWS.values() if view.tab} <= set(TABS)


# Errors and accessibility


@pytest.mark.parametrize("tab", TABS)
def test_a_tab_causes_no_errors_and_requests_no_other_host(tour: Tour, tab: str) -> None:
    """No HTTP error and no console message either, in five languages and two themes."""
    assert not tour.faults[tab], "\n".join(dict.fromkeys(tour.faults[tab]))


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("tab", TABS)
def test_axe_finds_no_violations(tour: Tour, tab: str, language: str) -> None:
    violations = tour.violations[tab, language]
    assert not violations, "\n".join(dict.fromkeys(violations))


@pytest.mark.parametrize("tab", TABS)
def test_the_tab_key_reaches_every_control_visibly(tour: Tour, tab: str) -> None:
    controls, unreached, invisible = tour.focus[tab]
    assert controls > 10
    assert (unreached, invisible) == ([], [])


@pytest.mark.parametrize("tab", TABS)
def test_every_picture_has_a_table(tour: Tour, tab: str) -> None:
    assert tour.pictures[tab]
    assert not [(picture, rows) for picture, rows in tour.pictures[tab] if rows < 1]


@pytest.mark.parametrize("tab", TABS)
def test_every_picture_can_be_saved_as_svg(tour: Tour, tab: str) -> None:
    assert tour.files[tab]
    for content in tour.files[tab]:
        elements = [*ET.fromstring(content).iter()]
        assert [each for each in elements if each.tag.endswith("}text") and each.text]
        assert len(elements) > 5
        assert b"NaN" not in content


def test_every_bar_of_a_probability_is_on_a_scale_from_0_to_100_percent(tour: Tour) -> None:
    assert {tab for tab in TABS if tour.bars[tab]} == {"playground", "compare"}
    for tab, bars in tour.bars.items():
        for length, share in bars:
            assert 100 * length == pytest.approx(parse_number(share), abs=0.5), tab


def test_no_tab_is_wider_than_320_pixels(tour: Tour) -> None:
    assert {tab: elements for tab, (width, elements) in tour.widths.items() if width > 320} == {}


# Languages


@pytest.mark.parametrize("language", list(LANGUAGES)[1:])
def test_every_sentence_is_translated_with_its_placeholders_and_code(language: str) -> None:
    english, translated = load_sentences("en"), load_sentences(language)
    assert translated.keys() == english.keys()
    for key, sentence in translated.items():
        assert sentence.strip(), key
        placeholders, code = (set(re.findall(pattern, sentence)) for pattern in (r"\{\w+\}", r"`[^`]*`"))
        assert placeholders == set(re.findall(r"\{\w+\}", english[key])), key
        assert code >= set(re.findall(r"`[^`]*`", english[key])), key  # it may have more
    assert {key for key in translated if translated[key] == english[key]} <= SAME_AS_ENGLISH[language]
    script = {"ar": r"[\u0600-\u06ff]", "hi": r"[\u0900-\u097f]"}.get(language)
    if script:
        assert {key for key in translated if not re.search(script, translated[key])} <= SAME_AS_ENGLISH[language]


FANCY = {  # words for "most likely" and "sampling" that a newcomer does not know
    "en": r"likeliest|the draw\b|\bdrawn\b|\bby lot\b",
    "ar": r"سحب|قرعة",
    "hi": r"लॉटरी|ड्रॉ(?!पआउट)",  # not dropout
    "fr": r"\btirage|loterie",
    "de": r"Ziehung|gezogen|\bLos\b|Auslosung",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_sampling_is_told_in_plain_words(language: str) -> None:
    fancy = {key for key, text in load_sentences(language).items() if re.search(FANCY[language], text, re.IGNORECASE)}
    assert fancy == set()


def test_every_key_in_the_code_has_a_sentence() -> None:
    """Only keys that are literals: the tour finds those that the code composes."""
    code = "".join(path.read_text(encoding="utf-8") for path in ROOT.rglob("*.js") if "vendor" not in path.parts)
    english = load_sentences("en")
    callers = r"\b(?:text|label|title)Key: |\bt\(|\btNodes\(|\bset(?:Sentence|Label)\(\w[\w.]*, "
    keys = set(re.findall(rf"""(?:{callers})\[?"([a-z_]\w*(?:\.[\w']+)+)\"""", code))
    assert len(keys) > 100
    assert keys - english.keys() == set()


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_tab_declares_its_language_and_direction(tour: Tour, language: str) -> None:
    direction = LANGUAGES[language]
    for tab in TABS:
        lang, dir, body, text, *formulas = tour.directions[tab, language]
        assert (lang, dir, body, text) == (language, direction, direction, direction), tab
        assert set(formulas) <= {"ltr"}, tab


@pytest.mark.parametrize("language", list(LANGUAGES)[1:])
def test_no_text_on_the_screen_is_still_english(tour: Tour, language: str) -> None:
    english, translated = load_sentences("en"), load_sentences(language)
    untranslated = {
        piece
        for key, sentence in english.items()
        if key not in SAME_AS_ENGLISH[language]
        for piece in re.split(r"[`{][^`}]*[`}]", sentence)
        if len(piece.split()) > 2
    }
    untranslated -= {piece for sentence in translated.values() for piece in re.split(r"[`{][^`}]*[`}]", sentence)}
    english_texts = []
    for tab in TABS:
        for text in tour.sentences[tab, language]:
            plain = re.sub(r"[\u2068\u2069]", "", text)
            if any(piece in plain for piece in untranslated) or re.search(FOREIGN[language], plain):
                english_texts.append((tab, text))
            assert not re.fullmatch(r"[a-z]\w*(\.\w+)+", plain), f"no sentence for {plain}"
            assert not re.search(r"\{[a-z_]\w*\}", plain), f"not filled in: {plain}"
    assert english_texts == []


@pytest.mark.parametrize("locale", ["ar-EG", "hi-IN", "fr-CA", "de", "ja-JP"])
def test_the_first_language_is_that_of_the_browser(chromium: Browser, site: RunningServer, locale: str) -> None:
    with open_page(chromium, site.url, locale=locale) as visit:
        page = visit.open_tab("walk").page
        expected = locale[:2] if locale[:2] in LANGUAGES else "en"
        assert page.locator("html").get_attribute("lang") == expected
        assert page.locator("html").get_attribute("dir") == LANGUAGES[expected]
        assert page.locator("#tab-walk").text_content() == load_sentences(expected)["tab.walk"]
        visit.assert_no_faults()


# Arabic and Devanagari


@pytest.mark.parametrize("model", ["letters", "bytes"])
@pytest.mark.parametrize("text", [ARABIC, HINDI])
def test_text_in_spans_is_shaped_like_plain_text(visit: Visit, text: str, model: str) -> None:
    page = visit.open_tab("walk", model, text[: 60 if model == "letters" else 20]).page
    text_count = 0
    for tab in ("walk", "attention", "playground", "compare"):
        visit.open_tab(tab)
        if tab == "attention":
            page.locator(".arcs .token").nth(2).click()
        if tab == "playground":
            page.locator("#surprisal-text").fill(text)
            page.locator(".surprisal button[type=submit]").click()
            generate_text(visit, text[:20], length=8)
            page.locator(f"{PLAYGROUND_TEXT} .token").nth(2).click()
        if tab == "compare":
            page.locator("#compare-text").fill(text)
            page.locator("#panel-compare button.main").click()
        visit.settle()
        page.locator("main .running:visible").first.wait_for()
        for spans, plain, count, direction in run_script(visit, "spans"):
            assert count > 5
            assert plain > 50
            assert abs(spans - plain) <= 1, tab
            assert direction == ("rtl" if text == ARABIC else "ltr"), tab
            text_count += 1
        assert run_script(visit, "separatedSpans") == []
    assert text_count >= 4


def test_tokens_of_one_character_share_a_span_with_their_bytes(visit: Visit) -> None:
    page = visit.open_tab("walk", "bytes", "a🦉ق!").page
    spans = page.locator("#panel-walk .running .token")
    assert spans.all_text_contents() == ["a", "🦉", "ق", "!"]
    titles = [(each.get_attribute("title") or "").lower() for each in spans.all()]
    assert [re.findall(r"\b[0-9a-f]{2}\b", each.split("·")[1]) for each in titles] == [
        [f"{byte:02x}" for byte in each.encode()] for each in "a🦉ق!"
    ]


def test_a_change_of_language_draws_every_figure_once(visit: Visit) -> None:
    for tab in TABS:
        visit.open_tab(tab)
        if tab == "training":
            visit.page.locator(".curves canvas").first.wait_for()  # the first poll has drawn the curves
            visit.settle()
        visit.page.evaluate(COUNT_DRAWS)
        visit.page.locator("#language").select_option("de" if visit.page.locator("html[lang=en]").count() else "en")
        visit.settle()
        draws = visit.page.evaluate(READ_DRAWS)
        assert all(count == 1 for _, count in draws), f"{tab}: {draws}"


def test_narrow_and_wide_arabic_letters_differ_in_monospace_text(visit: Visit) -> None:
    narrow, wide = visit.open_tab("walk").page.evaluate(MEASURE_ARABIC)
    assert wide > 1.5 * narrow, "every letter is squeezed into a cell"
