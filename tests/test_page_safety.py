"""Hostile text, API keys, and the standalone page."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

import octavo
from browser import (
    LANGUAGES,
    PLAYGROUND_TEXT,
    TABS,
    THEMES,
    Visit,
    axe_violations,
    generate_text,
    open_page,
    parse_number,
)
from octavo import cli, lens
from serving import RunningServer
from sites import Runs, copy_run, serve_runs

HOSTILE = '<img src=x onerror="hacked=1"><script>hacked=1</script>'
NAME = '<img src=x onerror="hacked=1"><script>hacked=1'  # a folder name, which cannot have a slash
KEY = "correct-horse-battery-staple"
STANDALONE_TEXT = f"cat قط {HOSTILE}"


# Hostile text


@pytest.fixture(scope="module")
def hostile(runs: Runs) -> Iterator[RunningServer]:
    """A server of a run whose name is markup, and whose last sample is markup."""
    run = copy_run(runs.bytes, NAME)
    with (run.folder / "samples.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 21, "text": HOSTILE}) + "\n")
    with serve_runs({NAME: run, "bytes": runs.bytes}) as site:
        yield site


def test_markup_in_a_prompt_name_or_sample_is_shown_as_text(chromium: Browser, hostile: RunningServer) -> None:
    with open_page(chromium, hostile.url) as visit:
        page = visit.open_tab("walk", NAME, HOSTILE).page
        shown = 0
        for tab in TABS:
            visit.open_tab(tab)
            if tab == "positions_and_words":
                page.locator("#word").fill("<img onerror=x>")
                for name in ("find", "similarity-first", "similarity-second"):
                    page.locator(f"#{name}").fill("<")
                    page.locator(f"#{name}").press("Enter")
                    visit.settle()
            elif tab == "playground":
                generate_text(visit, HOSTILE, length=4)
                page.locator(f"{PLAYGROUND_TEXT} .token").nth(3).click()
                page.locator("#surprisal-text").fill(HOSTILE)
                page.locator(".surprisal button[type=submit]").click()
                page.locator(".surprisal .token").nth(3).hover()
            elif tab == "training":
                page.locator(".samples pre", has_text="<script>").wait_for()
                assert page.locator(".samples pre").first.text_content() == HOSTILE
                assert page.locator(".tile h2 bdi").first.text_content() == NAME
                for box in page.locator("#panel-training fieldset input").all():
                    box.check()
                page.locator("#history-text").fill(HOSTILE)
                page.locator("#history-word").fill("<")
                page.locator(".history button.main").click()
                page.locator(".history canvas").nth(1).wait_for()
            elif tab == "compare":
                page.locator("#compare-text").fill(HOSTILE)
                page.locator("#panel-compare button.main").click()
                page.locator("#panel-compare .token").first.wait_for()
            visit.settle()
            page.evaluate("document.querySelectorAll('main details').forEach((each) => (each.open = true))")
            visit.settle()
            for text in page.locator("main .running:visible").all_text_contents():
                assert text.startswith(HOSTILE)
                shown += 1
            assert NAME in page.title()
            assert page.locator("body :is(img, script, iframe, object, embed)").count() == 0
        assert shown >= 4
        assert page.locator("#model option").first.text_content() == NAME
        assert page.evaluate("window.hacked") is None
        visit.assert_no_faults()


def test_the_security_policy_blocks_injected_scripts(visit: Visit) -> None:
    page = visit.open_tab("walk").page
    links = '<script src="data:text/javascript,hacked=1"></script><a href="javascript:hacked=1">go</a>'
    page.evaluate(
        """(hostile) => {
            document.body.append(document.createRange().createContextualFragment(hostile));
            document.querySelector("a[href^=javascript]").click();
        }""",
        HOSTILE.replace("src=x", "src=data:,") + links,
    )
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked") is None
    assert len(visit.faults) >= 4
    assert all("Content Security Policy" in each for each in visit.faults)
    visit.faults.clear()


# API keys


@pytest.fixture(scope="module")
def keyed(runs: Runs) -> Iterator[RunningServer]:
    with serve_runs({"letters": runs.letters}, keys={"first": KEY}) as site:
        yield site


def key_locations(visit: Visit) -> set[str]:
    """The places where the browser stores the key."""
    page = visit.page
    locations = {name for name in ("sessionStorage", "localStorage") if KEY in page.evaluate(f"JSON.stringify({name})")}
    return locations | ({"cookies"} if page.context.cookies() else set()) | ({"address"} if KEY in page.url else set())


def test_the_page_asks_for_the_key_and_keeps_it_for_the_session(chromium: Browser, keyed: RunningServer) -> None:
    with open_page(chromium, keyed.url) as visit:
        page = visit.page
        page.goto(f"{keyed.url}/#walk")
        dialog = page.get_by_role("dialog")
        dialog.wait_for()
        question = dialog.text_content() or ""
        assert axe_violations(visit) == []
        page.keyboard.type("wrong")  # the field has the focus
        page.keyboard.press("Enter")
        has_error = "question => document.querySelector('dialog')?.textContent.length > question.length + 5"
        page.wait_for_function(has_error, arg=question)
        assert axe_violations(visit) == []
        page.locator("#key").fill(KEY)
        page.keyboard.press("Enter")
        page.locator("#panel-walk canvas").first.wait_for()
        for tab in TABS:
            visit.open_tab(tab)
            assert page.get_by_role("alert").count() == 0
        generate_text(visit.open_tab("playground"), length=3)
        assert key_locations(visit) == {"sessionStorage"}
        page.reload()
        page.locator("#panel-playground").wait_for()
        visit.settle()
        assert dialog.count() == 0
        # The browser logs each 401 in the console. It must log nothing else.
        assert [each for each in visit.faults if "401" not in each] == []
    with open_page(chromium, keyed.url) as visit:  # another session
        visit.page.goto(f"{keyed.url}/#walk")
        visit.page.get_by_role("dialog").wait_for()
        assert key_locations(visit) == set()


def test_without_a_key_the_page_shows_an_alert_and_asks_again(chromium: Browser, keyed: RunningServer) -> None:
    with open_page(chromium, keyed.url, locale="ar") as visit:
        page = visit.page
        page.goto(f"{keyed.url}/#walk")
        page.get_by_role("dialog").wait_for()
        page.keyboard.press("Escape")
        page.get_by_role("alert").wait_for()
        assert axe_violations(visit) == []
        page.reload()
        page.get_by_role("dialog").wait_for()


# The standalone page


@pytest.fixture(scope="module")
def standalone_file(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The standalone page in a file."""
    file = tmp_path_factory.mktemp("standalone") / "page.html"
    assert cli.main(["inspect", str(runs.bytes.folder), "--html", str(file), "--text", STANDALONE_TEXT]) == 0
    return file


@pytest.mark.parametrize("language", ["en", "ar"])
def test_the_standalone_page_works_from_a_file_and_loads_nothing_else(
    chromium: Browser, runs: Runs, standalone_file: Path, language: str
) -> None:
    with open_page(chromium, standalone_file.as_uri(), locale=language) as visit:
        page = visit.page
        page.goto(standalone_file.as_uri())
        page.locator("#panel-model .flow canvas").wait_for()
        page.locator("#tab-walk").click()
        page.locator("#panel-walk .running").wait_for()
        assert page.locator("html").get_attribute("dir") == LANGUAGES[language]
        tabs = page.get_by_role("tab").evaluate_all("all => all.map((each) => each.id.slice(4))")
        assert tabs == ["model", "walk", "attention", "positions_and_words"]
        assert page.locator("#panel-walk .running").text_content() == STANDALONE_TEXT
        for stage in range(17):
            assert page.locator("#panel-walk canvas").count(), stage
            page.locator(".steps button.main").click()

        page.locator("#tab-attention").click()
        page.locator("#attention-layer").select_option("1")
        page.locator("#attention-head").select_option("0")
        pattern = page.locator("#panel-attention .matrix").nth(1)
        stage = pattern.get_by_role("application")
        stage.focus()
        stage.press("PageDown")
        stage.press("Home")
        weights = lens.attention(octavo.load(runs.bytes.folder), STANDALONE_TEXT, layer=1, head=0).weights
        exact = (pattern.locator(".exact").text_content() or "").replace("٫", ".")
        assert parse_number(exact) == pytest.approx(float(weights[-1][0]), rel=1e-4)
        assert page.locator(".arcs .token").count() == len(STANDALONE_TEXT)

        page.locator("#tab-positions_and_words").click()
        for part in ("position", "wpe"):
            page.locator(f"[aria-labelledby={part}-title] canvas").first.wait_for()
        assert page.get_by_role("alert").count() == 0
        for theme in THEMES:
            page.locator("#theme").select_option(theme)
            for tab in tabs:
                page.locator(f"#tab-{tab}").click()
                assert axe_violations(visit) == []
        for each in LANGUAGES:
            page.locator("#language").select_option(each)
            page.locator(f"html[lang={each}]").wait_for()
        assert page.evaluate("window.hacked") is None
        assert {each.url for each in visit.requests if not each.url.startswith("data:")} == {standalone_file.as_uri()}
        visit.assert_no_faults()
