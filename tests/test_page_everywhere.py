"""The page on every tab, in every language, light and dark: nothing missing, nothing in the way, nobody left out.

One tour sees it all, each tab brought to where it shows all that it has; the tests ask what was seen there.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from browser import LANGUAGES, TABS, THEMES, WRITTEN, Visit, axe, fill, visiting
from octavo.server.static_page import ROOT
from serving import Running

ARABIC, HINDI = "القطة جلست على السجادة ثم نامت", "बिल्ली चटाई पर बैठी फिर सो गई"
SAME = {  # what may be as in English: signs, code, and words that a language shares with it
    "ar": {"bend.topk", "bend.topp"},
    "hi": {"bend.topk", "bend.topp", "col.logit"},
    "fr": {"tab.attention", "bend.topk", "bend.topp", "col.id", "col.logit", "train.unit.h", "train.unit.m",
           "train.unit.s", "col.token", "col.pushed", "col.position", "col.bits", "draw.token", "layers.start",
           "score.bits", "train.minutes", "compare.b"},  # attention, contribution, position, bits, minutes, Second …
    "de": {"bend.topk", "bend.topp", "draw.token", "tab.training"},
}  # fmt: skip
LATIN = r"(?:\b[A-Za-z]{2,}\b[ ,.]*){3}"
ENGLISH = r"\b(?:the|of|is|and|with|which|what|that|this|are)\b"
FOREIGN = {"ar": LATIN, "hi": LATIN, "fr": ENGLISH, "de": ENGLISH}  # what none of the page's sentences has
SCRIPT = (Path(__file__).parent / "tour.js").read_text(encoding="utf-8")
CLOSE_LARGE = """document.querySelectorAll("main details").forEach((each) =>
    (each.open = each.querySelectorAll("td").length < 500))"""  # axe takes its time with thousands of cells


@dataclass
class Tour:
    """What was seen, by tab, language and theme."""

    faults: dict[str, list[str]] = field(default_factory=dict)
    violations: dict[tuple[str, str, str], list[str]] = field(default_factory=dict)  # of axe's rules
    directions: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    said: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    widths: dict[tuple[str, str], tuple[int, list[str]]] = field(default_factory=dict)  # at 320 px, and what stands out
    pictures: dict[str, list[tuple[str, int]]] = field(default_factory=dict)  # with the rows of their tables
    tabbed: dict[str, tuple[int, list[str], list[str]]] = field(default_factory=dict)  # controls, missed, not shown


@pytest.fixture(scope="module")
def tour(chromium: Browser, site: Running) -> Tour:
    tour = Tour()
    for tab in TABS:
        with visiting(chromium, site.url) as visit:
            page = visit.page
            visit.go("walk", "letters", "The cat sat.")
            fill(visit, tab)
            tour.pictures[tab] = ask(visit, "pictures")
            page.evaluate(CLOSE_LARGE)
            controls = ask(visit, "begin")
            for _ in range(controls + 2):
                page.keyboard.press("Tab")
            tour.tabbed[tab] = (controls, *ask(visit, "end"))
            for language in LANGUAGES:
                visit.choose(language=language)
                tour.directions[tab, language] = ask(visit, "directions")
                tour.said[tab, language] = [each for _ in stages(visit, tab) for each in ask(visit, "said")]
                for theme in THEMES:
                    visit.choose(theme=theme)
                    tour.violations[tab, language, theme] = axe(visit)
                page.set_viewport_size({"width": 320, "height": 640})
                visit.settle()
                tour.widths[tab, language] = max(ask(visit, "width") for _ in stages(visit, tab))
                page.set_viewport_size({"width": 1280, "height": 800})
                visit.settle()
            tour.faults[tab] = visit.faults
    return tour


def ask(visit: Visit, what: str) -> Any:
    if not visit.page.evaluate("'tour' in window"):
        visit.page.evaluate(SCRIPT)
    return visit.page.evaluate(f"tour.{what}()")


def stages(visit: Visit, tab: str) -> Iterator[None]:
    """All stages of the walk in turn; of another tab there is one."""
    yield
    boxes = visit.page.locator(".map .box").all() if tab == "walk" else []
    for box in boxes:
        box.dispatch_event("click")
        yield
    if boxes:
        boxes[7].dispatch_event("click")


# Nothing goes wrong


@pytest.mark.parametrize("tab", TABS)
def test_a_tab_asks_nobody_else_and_has_nothing_to_complain_of(tour: Tour, tab: str) -> None:
    """In five languages, light and dark: no request but to this server, no refusal, no word on the console."""
    assert not tour.faults[tab], "\n".join(dict.fromkeys(tour.faults[tab]))


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("tab", TABS)
def test_axe_finds_no_violation(tour: Tour, tab: str, language: str) -> None:
    found = [each for theme in THEMES for each in tour.violations[tab, language, theme]]
    assert not found, "\n".join(dict.fromkeys(found))


@pytest.mark.parametrize("tab", TABS)
def test_the_tab_key_reaches_every_control_and_shows_where_it_is(tour: Tour, tab: str) -> None:
    controls, missed, unseen = tour.tabbed[tab]
    assert controls > 10
    assert (missed, unseen) == ([], [])


@pytest.mark.parametrize("tab", TABS)
def test_every_picture_has_a_table(tour: Tour, tab: str) -> None:
    assert tour.pictures[tab]
    assert not [(picture, rows) for picture, rows in tour.pictures[tab] if rows < 1]


def test_no_tab_is_wider_than_320_pixels(tour: Tour) -> None:
    assert {where: what for where, (wide, what) in tour.widths.items() if wide > 320} == {}


# Languages


def words(language: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in sorted((ROOT / "i18n" / language).glob("*.json")):
        more: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        assert not found.keys() & more.keys(), path
        found |= more
    return found


@pytest.mark.parametrize("language", list(LANGUAGES)[1:])
def test_a_language_has_every_sentence_with_all_that_is_filled_in(language: str) -> None:
    english, own = words("en"), words(language)
    assert own.keys() == english.keys()
    for key, sentence in own.items():
        assert sentence.strip(), key
        filled, code = (set(re.findall(pattern, sentence)) for pattern in (r"\{\w+\}", r"`[^`]*`"))
        assert filled == set(re.findall(r"\{\w+\}", english[key])), key
        assert code >= set(re.findall(r"`[^`]*`", english[key])), key  # and what else would lose its order
    assert {key for key in own if own[key] == english[key]} <= SAME[language]
    script = {"ar": r"[\u0600-\u06ff]", "hi": r"[\u0900-\u097f]"}.get(language)
    if script:
        assert {key for key in own if not re.search(script, own[key])} <= SAME[language]


def test_every_sentence_that_the_page_says_is_there() -> None:
    """Keys that stand whole in the code; those put together there are found by the tour."""
    code = "".join(path.read_text(encoding="utf-8") for path in ROOT.rglob("*.js") if "vendor" not in path.parts)
    english = words("en")
    wanted = set(re.findall(r"""(?:say\w*: |\bt\(|\bsaid\(|\bsay\(\w[\w.]*, )\[?"([a-z_]\w*(?:\.[\w']+)+)\"""", code))
    assert len(wanted) > 100
    assert wanted - english.keys() == set()


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_tab_says_its_language_and_direction(tour: Tour, language: str) -> None:
    way = LANGUAGES[language]
    for tab in TABS:
        lang, dir, body, text, *formulas = tour.directions[tab, language]
        assert (lang, dir, body, text) == (language, way, way, way), tab
        assert set(formulas) <= {"ltr"}, tab


@pytest.mark.parametrize("language", list(LANGUAGES)[1:])
def test_nothing_on_screen_is_left_in_english(tour: Tour, language: str) -> None:
    english, own = words("en"), words(language)
    left = {piece for key, sentence in english.items() if key not in SAME[language]
            for piece in re.split(r"[`{][^`}]*[`}]", sentence) if len(piece.split()) > 2}  # fmt: skip
    left -= {piece for sentence in own.values() for piece in re.split(r"[`{][^`}]*[`}]", sentence)}
    found = []
    for tab in TABS:
        for text in tour.said[tab, language]:
            plain = re.sub(r"[\u2068\u2069]", "", text)
            if any(piece in plain for piece in left) or re.search(FOREIGN[language], plain):
                found.append((tab, text))
            assert not re.fullmatch(r"[a-z]\w*(\.\w+)+", plain), f"no sentence for {plain}"
            assert not re.search(r"\{[a-z_]\w*\}", plain), f"not filled in: {plain}"
    assert found == []


@pytest.mark.parametrize("locale", ["ar-EG", "hi-IN", "fr-CA", "de", "ja-JP"])
def test_the_browsers_language_is_the_first_one(chromium: Browser, site: Running, locale: str) -> None:
    with visiting(chromium, site.url, locale=locale) as visit:
        page = visit.go("walk").page
        expected = locale[:2] if locale[:2] in LANGUAGES else "en"
        assert page.locator("html").get_attribute("lang") == expected
        assert page.locator("html").get_attribute("dir") == LANGUAGES[expected]
        assert page.locator("#tab-walk").text_content() == words(expected)["tab.walk"]
        visit.calm()


# Scripts that join their letters


@pytest.mark.parametrize("model", ["letters", "bytes"])
@pytest.mark.parametrize("text", [ARABIC, HINDI])
def test_text_in_spans_is_as_wide_as_without(visit: Visit, text: str, model: str) -> None:
    page = visit.go("walk", model, text[: 60 if model == "letters" else 20]).page
    seen = 0
    for tab in ("walk", "attention", "playground", "compare"):
        visit.go(tab)
        if tab == "attention":
            page.locator(".arcs .token").nth(2).click()
        if tab == "playground":
            page.locator("#score-text").fill(text)
            page.locator(".surprisal button[type=submit]").click()
            page.locator("#prompt").fill(text[:20])
            page.locator("#length").fill("8")
            page.locator("#panel-playground button[type=submit]").first.click()
            visit.settle()
            page.locator(f"{WRITTEN} .token").nth(2).click()
        if tab == "compare":
            page.locator("#compare-text").fill(text)
            page.locator("#panel-compare button.main").click()
        visit.settle()
        page.locator("main .running:visible").first.wait_for()
        for spans, plain, count, direction in ask(visit, "spans"):
            assert count > 5
            assert plain > 50
            assert abs(spans - plain) <= 1, tab
            assert direction == ("rtl" if text == ARABIC else "ltr"), tab
            seen += 1
        assert ask(visit, "apart") == []
    assert seen >= 4


def test_tokens_that_share_a_character_are_one_piece_with_their_bytes(visit: Visit) -> None:
    page = visit.go("walk", "bytes", "a🦉ق!").page
    spans = page.locator("#panel-walk .running .token")
    assert spans.all_text_contents() == ["a", "🦉", "ق", "!"]
    titles = [(each.get_attribute("title") or "").lower() for each in spans.all()]
    assert [re.findall(r"\b[0-9a-f]{2}\b", each.split("·")[1]) for each in titles] == [
        [f"{byte:02x}" for byte in each.encode()] for each in "a🦉ق!"
    ]
