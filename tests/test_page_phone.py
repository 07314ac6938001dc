"""The page on a phone of 390 by 844 pixels: every tab begins high, folds its sections and is short on opening."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser

from browser import LANGUAGES, PLAYGROUND_TEXT, TABS, Visit, open_page, wait_until
from lenses import random_checkpoint
from serving import RunningServer
from sites import TEXT, serve_runs

PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
LONG_TEXT = "The cat sat on the mat, and the cat slept while the dog went out. " * 4
FOLDING = ("attention", "positions_and_words", "playground", "training", "compare")
# [the top of the first word of the open panel, the height of the page, the width of the page] in pixels
MEASURE = """() => {
    const panel = document.querySelector("[role=tabpanel]:not([hidden])");
    const walker = document.createTreeWalker(panel, NodeFilter.SHOW_TEXT);
    const isShown = ({ data, parentElement: parent }) =>
        data.trim() && parent.checkVisibility() && !parent.closest(".visually-hidden");
    let node;
    do node = walker.nextNode();
    while (!isShown(node));
    const range = document.createRange();
    range.selectNodeContents(node);
    const { scrollHeight, scrollWidth } = document.scrollingElement;
    return [range.getBoundingClientRect().top + scrollY, scrollHeight, scrollWidth];
}"""


def assert_fits_a_phone(visit: Visit, tab: str, language: str) -> None:
    visit.settle()
    top, height, width = visit.page.evaluate(MEASURE)
    assert top < 844 / 2, (tab, language)
    assert height <= 2500, (tab, language)
    assert width <= 390, (tab, language)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_tab_begins_in_the_upper_half_and_is_short(chromium: Browser, site: RunningServer, language: str) -> None:
    with open_page(chromium, site.url, locale=language, **PHONE) as visit:
        visit.open_tab("model", "letters", TEXT)
        for tab in TABS:
            visit.open_tab(tab)
            assert_fits_a_phone(visit, tab, language)
        visit.assert_no_faults()


def test_a_large_model_and_a_long_text_are_as_short(chromium: Browser, tmp_path: Path) -> None:
    """Twelve layers with twelve heads each, and 240 tokens, in the language with the longest sentences."""
    model = random_checkpoint(tmp_path / "large", "byte", std=0.05, block_size=512, n_layer=12, n_head=12, n_embd=48)
    with serve_runs({}, {"large": model.folder}) as site, open_page(chromium, site.url, locale="de", **PHONE) as visit:
        visit.open_tab("model", "large", LONG_TEXT[:240])
        for tab in TABS:
            visit.open_tab(tab)
            assert_fits_a_phone(visit, tab, "de")
        visit.assert_no_faults()


@pytest.mark.parametrize("tab", FOLDING)
def test_sections_are_folded_and_open_with_their_content(chromium: Browser, site: RunningServer, tab: str) -> None:
    with open_page(chromium, site.url, **PHONE) as visit:
        page = visit.open_tab(tab, "letters", TEXT).page
        if tab == "training":
            page.locator(".curve.loss canvas").first.wait_for()
            visit.settle()
        folds = visit.panel.locator("details.fold:visible")
        assert folds.count() >= 1
        assert folds.evaluate_all("all => all.some((each) => each.open)") is False
        for fold in folds.all():
            summary = fold.locator("summary").first
            summary.tap()
            visit.settle()
            assert fold.evaluate("each => each.clientHeight > each.firstElementChild.clientHeight + 20")
            for figure in fold.locator("figure.figure:visible canvas, figure.figure:visible .uplot").all():
                assert figure.evaluate("each => each.clientWidth") > 0
            assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
            summary.tap()
        visit.assert_no_faults()


def test_what_comes_next_is_right_below_the_text_of_the_playground(chromium: Browser, site: RunningServer) -> None:
    """The sliders are folded; opened, they change the bars."""
    with open_page(chromium, site.url, **PHONE) as visit:
        page = visit.open_tab("playground", "letters", TEXT).page
        page.locator(f"{PLAYGROUND_TEXT} .token").first.wait_for()
        slider = page.locator("#sampling-topk")
        assert not slider.is_visible()
        page.get_by_text("How the next token is sampled").tap()
        slider.press("Home")  # greedy
        bars = page.locator(".next-token .token-bars > li:visible")
        wait_until(lambda: bars.count() == 1, page)
        assert bars.locator(".share").inner_text() == "100.0%"
        visit.assert_no_faults()
