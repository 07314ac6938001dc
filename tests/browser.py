"""What the page's tests share: a browser, and a page in it that writes down what goes wrong.

The browser is a Chromium that is installed here; nothing but the server under test can be reached from it. A test
finds what is on the page by the ids and roles that its users have, and reads a picture's numbers from its table.
"""

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Browser, ConsoleMessage, Dialog, Locator, Page, Request, Response, sync_playwright

LANGUAGES = {"en": "ltr", "ar": "rtl", "hi": "ltr", "fr": "ltr", "de": "ltr"}
THEMES = ("light", "dark")
WRITTEN = "#panel-playground .desk .page"
TABS = ("walk", "attention", "positions_and_words", "playground", "training", "compare")
PATIENCE = 30_000  # milliseconds: other people may be at work on this machine


# The browser


def executable() -> str:
    """The Chromium that is installed."""
    named = os.environ.get("OCTAVO_CHROMIUM")
    found = named or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        message = "no chromium on PATH (scripts/install test brings Debian's; or set OCTAVO_CHROMIUM)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found


@contextlib.contextmanager
def launched() -> Iterator[Browser]:
    """A browser that finds no host but this one."""
    path = executable()
    root = hasattr(os, "geteuid") and os.geteuid() == 0  # Chromium has no sandbox for root
    alone = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=[alone], chromium_sandbox=not root)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """A page, and what it did."""

    page: Page
    url: str
    asked: list[Request] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)  # what must not be: see `watch`
    under_way: set[Request] = field(default_factory=set)

    def watch(self) -> None:
        """Write down requests, and as faults: those to elsewhere, refusals, dialogs, and what the console is told."""
        page, faults = self.page, self.faults

        def request(each: Request) -> None:
            self.asked.append(each)
            self.under_way.add(each)
            if not each.url.startswith((f"{self.url}/", "data:", "blob:")) and each.url != self.url:
                faults.append(f"asked for {each.url[:200]}")

        def response(each: Response) -> None:
            if each.status >= 400:
                self.under_way.discard(each.request)  # nobody may read it to its end
                faults.append(
                    f"{each.status} for {each.request.method} {each.url} {(each.request.post_data or '')[:300]}"
                )

        def failed(each: Request) -> None:
            self.under_way.discard(each)
            if each.failure != "net::ERR_ABORTED":  # which is the page's own wish
                faults.append(f"{each.failure} for {each.url[:200]}")

        def console(each: ConsoleMessage) -> None:
            if each.type in ("error", "warning"):
                faults.append(f"console {each.type}: {each.text[:500]}")

        def dialog(each: Dialog) -> None:
            faults.append(f"dialog: {each.message}")
            each.dismiss()

        page.on("request", request)
        page.on("response", response)
        page.on("requestfinished", lambda each: self.under_way.discard(each))
        page.on("requestfailed", failed)
        page.on("console", console)
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on("dialog", dialog)

    def go(self, tab: str, model: str | None = None, text: str | None = None) -> "Visit":
        """To a tab, and there to a model and a text; until all is drawn."""
        if not self.page.url.startswith(self.url):
            self.page.goto(f"{self.url}/#{tab}")
        else:
            self.page.locator(f"#tab-{tab}").click()
        self.page.locator(f"#tab-{tab}[aria-selected=true]").wait_for()
        self.settle()
        if model:
            self.page.locator("#model").select_option(model)
            self.settle()
        if text:
            self.page.locator("#text").fill(text)
            self.page.wait_for_function("wanted => Object.values(sessionStorage).includes(wanted)", arg=text)
            self.settle()
        return self

    def settle(self) -> None:
        """Wait until nothing is asked for and no panel is busy."""
        still, end = 0, time.monotonic() + PATIENCE / 1000
        while still < 3:
            self.page.wait_for_function("""() => new Promise((done) => requestAnimationFrame(() =>
                setTimeout(() => done(!document.querySelector("[aria-busy=true]")), 15)))""")
            lasting = [each.url for each in self.under_way if not re.search(r"/runs\b", each.url)]
            still = 0 if lasting else still + 1
            assert time.monotonic() < end, f"no answer came from {lasting}"

    def choose(self, language: str | None = None, theme: str | None = None) -> None:
        if language:
            self.page.locator("#language").select_option(language)
            self.page.locator(f"html[lang={language}]").wait_for()
        if theme:
            self.page.locator("#theme").select_option(theme)
        self.settle()

    @property
    def panel(self) -> Locator:
        return self.page.locator("[role=tabpanel]:visible")

    def table(self, name: str | Locator) -> list[list[str]]:
        """The rows of a picture's table, which is opened."""
        details = (self.page.locator(name) if isinstance(name, str) else name).locator("details.table").first
        if not details.evaluate("each => each.open"):
            details.locator("summary").click()
        details.locator("tbody tr").first.wait_for(state="attached")
        return details.evaluate("""each => [...each.querySelectorAll("tbody tr")].map((row) =>
            [...row.children].map((cell) => cell.textContent))""")  # fmt: skip

    def sent(self, part: str) -> list[Request]:
        """What was asked for so far of whose address this is a part."""
        return [each for each in self.asked if part in each.url]

    def calm(self) -> None:
        """Nothing went wrong."""
        assert not self.faults, "\n".join(dict.fromkeys(self.faults))


@contextlib.contextmanager
def visiting(browser: Browser, url: str, **options: Any) -> Iterator[Visit]:
    """A page in a context of its own: no cookies, nothing stored, every request to elsewhere aborted."""
    context = browser.new_context(**{"locale": "en-US", "reduced_motion": "reduce"} | options)
    try:
        context.set_default_timeout(PATIENCE)
        context.route(re.compile(rf"^(?!{re.escape(url)}|data:|blob:)"), lambda route: route.abort())
        page = context.new_page()
        visit = Visit(page, url)
        visit.watch()
        yield visit
    finally:
        context.close()


# What is read from the screen


def axe(visit: Visit) -> list[str]:
    """What axe finds, with the elements it means."""
    if not visit.page.evaluate("'axe' in window"):
        visit.page.evaluate(AXE_SCRIPT)
    found = visit.page.evaluate("axe.run({ resultTypes: ['violations'] }).then((results) => results.violations)")
    return [f"{rule['id']}: {node['html'][:160]} ({'; '.join(each['message'] for each in node['any'] + node['all'])})"
            for rule in found for node in rule["nodes"][:3]]  # fmt: skip


def numeral(text: str) -> float:
    """A number as English has it on the page, whatever stands around it."""
    found = re.search(r"[-+−±]?\d[\d,]*(\.\d+)?(E-?\d+)?", text)
    assert found, text
    return float(found[0].replace(",", "").replace("−", "-").replace("±", ""))


def numbers(row: list[str]) -> list[float]:
    return [numeral(each) for each in row if each]


def until(condition: Callable[[], bool], page: Page, seconds: float = PATIENCE / 1000) -> float:
    """Wait for what the page shows; gives the seconds that it took."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() < begin + seconds, "it never came"
        page.wait_for_timeout(20)
    return time.monotonic() - begin


def fill(visit: Visit, tab: str) -> None:
    """Bring a tab to where it shows all that it has, its tables opened."""
    page = visit.go(tab).page
    if tab == "walk":
        page.locator(".steps input[type=checkbox]").check()
        for _ in range(7):
            page.locator(".steps button.main").click()
    elif tab == "attention":
        page.locator(".arcs .token").nth(5).click()
    elif tab == "positions_and_words":
        page.locator("#find").fill("a")
        page.locator("#find").press("Enter")
    elif tab == "playground":
        write(visit, length=12)
        page.locator(f"{WRITTEN} .token").nth(8).click()
        visit.settle()
        page.locator(".surprisal button[type=submit]").click()
    elif tab == "training":
        page.locator(".curves canvas").first.wait_for()
        page.locator("#panel-training input[type=checkbox]").nth(1).check()
        page.locator(".probe button.main").click()
        page.locator(".probe canvas").first.wait_for()
    elif tab == "compare":
        page.locator("#panel-compare button.main").click()
        page.locator("#panel-compare canvas").first.wait_for()
    visit.settle()
    page.evaluate("document.querySelectorAll('main details').forEach((each) => (each.open = true))")
    visit.settle()


def write(visit: Visit, prompt: str | None = None, length: int = 12) -> None:
    """Let the model write on the playground, to the end."""
    page = visit.page
    if prompt is not None:
        page.locator("#prompt").fill(prompt)
    page.locator("#length").fill(str(length))
    page.locator("#panel-playground button[type=submit]").first.click()
    wrote(visit)


def wrote(visit: Visit) -> None:
    """Wait for the end of what is being written."""
    visit.settle()
    visit.page.locator("#panel-playground .odds:visible").wait_for()
    visit.settle()
