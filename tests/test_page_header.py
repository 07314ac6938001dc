"""The header of the page: the text field, the tabs, the address, language, theme and step."""

import dataclasses
import re

import pytest
from playwright.sync_api import Browser

import octavo
from browser import PLAYGROUND_TEXT, TABS, Visit, fill_tab, open_page, parse_numbers, wait_until, write_prompt
from octavo.data.prepare import reopen_dataset
from serving import RunningServer, serve_with_prefix
from sites import TEXT, Runs, serve_runs

# Texts that the tokenizer does not know


@pytest.mark.parametrize(
    ("language", "sentence"),
    [
        ("en", "no character of this text: 🐱 Ω"),
        ("ar", "أي حرف من هذا النص: 🐱 Ω"),
        ("hi", "नहीं जानता: 🐱 Ω"),
        ("fr", "aucun caractère de ce texte"),
        ("de", "kein Zeichen: 🐱 Ω"),
    ],
)
def test_an_unreadable_text_is_reported_below_the_field_until_it_changes(
    visit: Visit, language: str, sentence: str
) -> None:
    """The message is in the chosen language and names letters that the model knows. The old panel is pale."""
    page = visit.open_tab("walk", "letters", TEXT).page
    visit.choose(language=language)
    message = page.locator("#tokenization-problem")
    for tab in ("walk", "attention"):
        visit.open_tab(tab)
        assert not message.is_visible()
        page.locator("#text").fill("🐱Ω🐱")
        message.wait_for()
        text = re.sub("[\u2068\u2069]", "", message.inner_text())
        assert sentence in text
        assert re.search(r": \w \w", text)  # letters that the model knows
        assert page.locator(f"#panel-{tab}.stale").count() == 1
        visit.choose(language="de" if language != "de" else "en")  # the text and the message stay
        assert page.locator("#text").input_value() == "🐱Ω🐱"
        assert message.is_visible()
        visit.choose(language=language)
        page.locator("#text").fill("the cat")
        message.wait_for(state="hidden")
        visit.settle()
        assert page.locator("main .stale").count() == 0
        page.locator("#text").fill(TEXT)


def test_while_the_text_is_empty_the_old_panel_is_inert(visit: Visit) -> None:
    page = visit.open_tab("walk", "letters", TEXT).page
    for tab in ("walk", "attention"):
        visit.open_tab(tab)
        page.locator("#text").fill("")
        page.get_by_text("Enter some text first. One letter is enough.").wait_for()
        panel = page.locator(f"#panel-{tab}")
        assert panel.evaluate("each => each.inert && getComputedStyle(each).opacity < 0.5")
        page.locator("#text").fill("t")
        page.locator("#tokenization-problem").wait_for(state="hidden")
        visit.settle()
        assert panel.evaluate("each => !each.inert && getComputedStyle(each).opacity === '1'")


def test_changing_the_model_replaces_an_unreadable_text(visit: Visit) -> None:
    page = visit.open_tab("walk", "bytes", "Ωμέγα").page
    page.locator("#model").select_option("letters")
    visit.settle()
    page.locator("#panel-walk .running").wait_for()
    assert page.locator("#text").input_value() not in ("", "Ωμέγα")


@pytest.mark.parametrize("tab", ["playground", "compare", "training"])
def test_no_tab_requests_an_unreadable_text(visit: Visit, tab: str) -> None:
    page = visit.open_tab(tab, "letters").page
    visit.choose(language="de")
    fields = {"playground": ("prompt", "surprisal-text"), "compare": ("compare-text",), "training": ("history-text",)}[
        tab
    ]
    for field in fields:
        if field == "prompt":
            write_prompt(visit, "🐱")
        page.locator(f"#{field}").fill("🐱")
        page.locator(f"form:has(#{field}) button.main, form:has(#{field}) button[type=submit]").first.click()
        page.get_by_role("alert").get_by_text("kein Zeichen: 🐱").wait_for()
        page.locator(f"#{field}").fill("the cat")
        page.locator(f"form:has(#{field}) button.main, form:has(#{field}) button[type=submit]").first.click()
        page.get_by_role("alert").wait_for(state="detached")
        visit.settle()


def test_server_errors_are_shown_without_command_line_hints(visit: Visit) -> None:
    page = visit.open_tab("walk", "letters", TEXT).page
    visit.choose(language="ar")
    error = {"message": "there is no such thing", "hint": '--text "The "', "type": "invalid_request_error"}
    page.route("**/lens/shapes", lambda route: route.fulfill(status=400, json={"error": error}))
    page.locator("#walk-head").select_option("1")
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert "يقول الخادم (بالإنجليزية): there is no such thing" in alert.inner_text()
    assert "--" not in alert.inner_text()
    assert alert.locator("bdi").get_attribute("lang") == "en"
    visit.faults.clear()  # the error is intended


def test_enter_takes_the_text_and_adds_no_line_break(visit: Visit) -> None:
    page = visit.open_tab("walk", "letters", TEXT).page
    field = page.locator("#text")
    field.fill("the cat")
    field.press("Enter")
    page.wait_for_function("() => Object.values(sessionStorage).includes('the cat')")
    assert field.input_value() == "the cat"
    field.press("Shift+Enter")  # a line break on purpose
    assert field.input_value() == "the cat\n"


def test_a_text_that_is_too_long_is_said_to_be_cut_where_it_is_typed(visit: Visit, site: RunningServer) -> None:
    page = visit.open_tab("walk", "letters", TEXT).page
    note = page.locator("#cut-text")
    assert not note.is_visible()
    visit.open_tab("walk", text="the cat sat. " * 10)
    assert re.findall(r"\d+", note.inner_text()) == ["130", "64", "66"]  # tokens, block_size, left out
    visit.open_tab("attention")
    assert note.is_visible()
    visit.open_tab("attention", text=TEXT)
    assert not note.is_visible()


def test_the_first_text_is_an_example_from_the_validation_split(
    chromium: Browser, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCTAVO_CACHE", str(runs.letters.folder.parent / "cache"))  # has the prepared text
    with serve_runs({"letters": runs.letters}) as site, open_page(chromium, site.url) as visit:
        page = visit.open_tab("model").page
        examples = site.request("GET", "/lens/examples").json["examples"]
        assert len(examples) > 1
        val = octavo.load(runs.letters)
        dataset = reopen_dataset(val.settings, val.info["data"], val.tokenizer).result  # type: ignore[arg-type]
        text = val.tokenizer.decode(dataset.tokens["val"])
        assert all(each in text and "\n" not in each for each in examples)
        assert page.locator("#text").input_value() == examples[0]
        page.locator("#example").select_option(examples[1])
        visit.settle()
        assert page.locator("#text").input_value() == examples[1]
        visit.assert_no_faults()


# Tabs and the address


def test_the_back_button_and_a_reload_restore_tab_and_stage(visit: Visit) -> None:
    page = visit.open_tab("walk", text=TEXT).page
    for _ in range(5):
        page.locator(".steps button.main").click()
    assert "#walk/6?" in page.url
    visit.open_tab("attention").open_tab("training")
    page.go_back()
    page.locator("#panel-attention").wait_for()
    page.go_back()
    page.locator("#panel-walk").wait_for()
    counter = page.locator(".steps .mono")
    assert counter.text_content() == "6 / 18"
    page.reload()
    visit.settle()
    assert counter.text_content() == "6 / 18"
    page.goto(f"{visit.url}/#walk/17")
    wait_until(lambda: counter.text_content() == "17 / 18", page)
    page.goto(f"{visit.url}/#walk/99")
    wait_until(lambda: counter.text_content() == "18 / 18", page)


def test_controls_are_at_least_24_pixels_wide_and_high(visit: Visit) -> None:
    for tab in TABS:
        page = visit.open_tab(tab).page
        small = page.evaluate("""[...document.querySelectorAll("button, input, select, textarea, summary")]
            .filter((each) => each.checkVisibility())
            .map((each) => [Math.min(...["width", "height"].map((side) => each.getBoundingClientRect()[side])), each])
            .filter(([side]) => side < 24).map(([side, each]) => `${side} ${each.outerHTML.slice(0, 90)}`)""")
        assert small == [], tab


def test_tabs_follow_the_aria_pattern_and_change_the_address(visit: Visit) -> None:
    page = visit.open_tab("walk").page
    tabs = page.get_by_role("tab")
    assert tabs.evaluate_all("all => all.map((each) => each.id.slice(4))") == list(TABS)

    def assert_open(name: str) -> None:
        page.locator(f"#panel-{name}").wait_for()
        assert tabs.evaluate_all("all => all.map((each) => each.ariaSelected)").count("true") == 1
        chosen = page.locator("[role=tab][aria-selected=true]")
        assert chosen.get_attribute("id") == f"tab-{name}"
        assert chosen.evaluate("each => each === document.activeElement")
        assert tabs.evaluate_all("all => all.filter((each) => each.tabIndex === 0).length") == 1
        assert page.locator("[role=tabpanel]:visible").get_attribute("aria-labelledby") == f"tab-{name}"
        assert f"#{name}?" in page.url
        visit.settle()

    page.locator("#tab-walk").focus()
    for key, name in (
        ("ArrowRight", "attention"),
        ("ArrowLeft", "walk"),
        ("ArrowLeft", "model"),
        ("ArrowLeft", "compare"),
        ("ArrowRight", "model"),
        ("End", "compare"),
        ("Home", "model"),
    ):
        page.keyboard.press(key)
        assert_open(name)
    visit.choose(language="ar")
    page.locator("#tab-model").focus()
    page.keyboard.press("ArrowLeft")  # forward in a right-to-left language
    assert_open("walk")
    page.goto(f"{visit.url}/#positions_and_words")
    page.locator("#panel-positions_and_words").wait_for()
    visit.settle()


def test_a_reload_keeps_language_theme_tab_and_text(visit: Visit) -> None:
    page = visit.open_tab("attention", text=TEXT).page
    visit.choose(language="de", theme="dark")
    page.reload()
    page.locator("#tab-attention[aria-selected=true]").wait_for()
    visit.settle()
    assert page.locator("html").get_attribute("lang") == "de"
    assert page.locator("#text").input_value() == TEXT
    assert [page.locator(f"#{name}").input_value() for name in ("language", "theme")] == ["de", "dark"]
    assert page.locator("html").evaluate("each => getComputedStyle(each).colorScheme") == "dark"


def test_every_tab_shows_the_chosen_step(visit: Visit, site: RunningServer) -> None:
    page = visit.open_tab("walk", "letters", TEXT).page
    first = min(site.models["letters"].steps)
    page.locator("#step").select_option(str(first))
    visit.settle()
    page.locator(".steps button.main").click()
    values = site.view("shapes", text=TEXT, step=first, layer=0, head=0)["stages"][1]["values"]
    for row, expected in zip(visit.table("#panel-walk .matrix"), values, strict=True):
        assert parse_numbers(row[1:]) == pytest.approx(expected, rel=1e-5)
    fill_tab(visit, "playground")  # the server generates text with one step only; for the others the browser samples
    assert not visit.requests_to("/v1/completions")
    assert page.locator(f"{PLAYGROUND_TEXT} .token").count() > 12


def test_the_page_follows_the_checkpoint_that_is_served(visit: Visit, site: RunningServer) -> None:
    """Training has written a newer checkpoint, or has removed the one that is shown."""
    assert isinstance(site.models, dict)
    served = site.models["letters"]
    first = min(served.steps)
    page = visit.open_tab("walk", "letters", TEXT).page
    page.locator(".steps button.main").click()
    chosen = page.locator("#step option:checked")
    before = visit.table("#panel-walk .matrix")
    assert str(served.step) in chosen.inner_text()
    try:
        site.models["letters"] = dataclasses.replace(served, checkpoint=octavo.load(served.steps[first]))
        wait_until(lambda: str(served.step) not in chosen.inner_text(), page)
        visit.settle()
        assert str(first) in chosen.inner_text()
        assert visit.table("#panel-walk .matrix") != before
    finally:
        site.models["letters"] = served
    wait_until(lambda: str(served.step) in chosen.inner_text(), page)
    visit.settle()
    assert visit.table("#panel-walk .matrix") == before


def test_the_header_names_step_0_of_a_served_checkpoint(visit: Visit, site: RunningServer) -> None:
    """`octavo train --max-steps 0` writes such a checkpoint."""
    assert isinstance(site.models, dict)
    served = site.models["letters"]
    untrained = dataclasses.replace(served.checkpoint, folder=served.checkpoint.folder.with_name("step-000000"))
    try:
        site.models["letters"] = dataclasses.replace(served, checkpoint=untrained)
        page = visit.open_tab("walk", "letters", TEXT).page
        assert "step 0" in page.locator("#step option:checked").inner_text()
    finally:
        site.models["letters"] = served


def test_the_page_works_under_the_path_of_a_proxy(chromium: Browser, site: RunningServer) -> None:
    """As behind Jupyter, Codespaces or nginx. The visit fails at any request outside of the path."""
    with (
        serve_with_prefix(site, "/deep/octavo") as port,
        open_page(chromium, f"http://127.0.0.1:{port}/deep/octavo") as visit,
    ):
        visit.page.goto(f"{visit.url}/")
        visit.settle()
        for tab in visit.page.get_by_role("tab").all():
            tab.click()
            visit.settle()
            assert visit.panel.inner_text().strip()
        visit.choose(language="ar")
        visit.assert_no_faults()
        assert visit.requests_to("/deep/octavo/lens/")
