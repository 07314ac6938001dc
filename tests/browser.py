"""A browser for the tests of the page, and a visit to the page that records its requests and errors.

The browser is the installed Chromium. It can only reach the server under test. Tests find elements by the ids and
roles that the page gives them, and read the numbers of a picture from its table.
"""

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Browser, ConsoleMessage, Dialog, Locator, Page, Request, Response, sync_playwright

from octavo.server.static_page import ROOT

LANGUAGES = {"en": "ltr", "ar": "rtl", "hi": "ltr", "fr": "ltr", "de": "ltr"}
THEMES = ("light", "dark")
TABS = ("model", "walk", "attention", "positions_and_words", "playground", "training", "compare")
PLAYGROUND_TEXT = "#panel-playground .workspace .scrolling-text"
TIMEOUT = 30_000  # milliseconds; long, because the machine may be busy
IDLE_FRAMES = """async () => {
    for (let count = 0; count < 3; count++) {
        await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
        if (document.querySelector("[aria-busy=true]")) count = -1;
    }
    return true;
}"""


# The browser


def find_chromium() -> str:
    """The path of the installed Chromium; skips the test if no Chromium is installed."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = os.environ.get("OCTAVO_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if path is None:
        message = "no chromium on PATH (scripts/install test installs Debian's; or set OCTAVO_CHROMIUM)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return path


@contextlib.contextmanager
def launch_browser() -> Iterator[Browser]:
    """A browser that resolves no host names, so that it reaches 127.0.0.1 only."""
    path = find_chromium()
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0  # Chromium has no sandbox for root
    rules = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=[rules], chromium_sandbox=not is_root)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """A visit to the page at `url`: the browser's page, its requests, and what went wrong."""

    page: Page
    url: str
    requests: list[Request] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    pending: set[Request] = field(default_factory=set)

    def record(self) -> None:
        """Record requests; and as faults requests to other hosts, refusals, dialogs, errors and console messages."""
        page, faults = self.page, self.faults

        def on_request(request: Request) -> None:
            self.requests.append(request)
            self.pending.add(request)
            if not request.url.startswith((f"{self.url}/", "data:", "blob:")) and request.url != self.url:
                faults.append(f"request to {request.url[:200]}")

        def on_response(response: Response) -> None:
            if response.status >= 400:
                request = response.request
                self.pending.discard(request)  # `requestfinished` never comes if the body is not read
                body = (request.post_data or "")[:300]
                faults.append(f"{response.status} for {request.method} {response.url} {body}")

        def on_failed(request: Request) -> None:
            self.pending.discard(request)
            if request.failure != "net::ERR_ABORTED":  # the page aborts requests itself
                faults.append(f"{request.failure} for {request.url[:200]}")

        def on_console(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning"):
                faults.append(f"console {message.type}: {message.text[:500]}")

        def on_dialog(dialog: Dialog) -> None:
            faults.append(f"dialog: {dialog.message}")
            dialog.dismiss()

        page.on("request", on_request)
        page.on("response", on_response)
        page.on("requestfinished", lambda request: self.pending.discard(request))
        page.on("requestfailed", on_failed)
        page.on("console", on_console)
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on("dialog", on_dialog)

    def open_tab(self, tab: str, model: str | None = None, text: str | None = None) -> "Visit":
        """Open a tab with a model and a text, and wait until everything is drawn.

        The first call loads the page at an address that names them, with a text of up to 2,000 characters. Later calls
        choose the model and type the text.
        """
        if not self.page.url.startswith(self.url):
            choices = {name: value for name, value in (("model", model), ("text", text)) if value}
            self.page.goto(f"{self.url}/#{tab}{f'?{urlencode(choices)}' if choices else ''}")
            model = text = None
        else:
            self.page.locator(f"#tab-{tab}").click()
        self.page.locator(f"#tab-{tab}[aria-selected=true]").wait_for()
        self.settle()
        if model:
            self.page.locator("#model").select_option(model)
            self.settle()
        if text:
            self.page.locator("#text").fill(text)
            self.page.wait_for_function("text => Object.values(sessionStorage).includes(text)", arg=text)
            self.settle()
        return self

    def settle(self) -> None:
        """Wait until no request is pending and no panel is busy, for three frames."""
        deadline = time.monotonic() + TIMEOUT / 1000
        while True:
            was_pending = self.pending_urls()
            self.page.wait_for_function(IDLE_FRAMES)
            pending = self.pending_urls()
            if not was_pending and not pending:
                return
            assert time.monotonic() < deadline, f"no response from {pending}"

    def pending_urls(self) -> list[str]:
        """The requests without a response. The page asks for runs again and again, so these are left out."""
        return [request.url for request in self.pending if not re.search(r"/runs\b", request.url)]

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

    def table(self, picture: str | Locator) -> list[list[str]]:
        """Open the table of a picture and return its rows."""
        locator = self.page.locator(picture) if isinstance(picture, str) else picture
        details = locator.locator("details.table").first
        if not details.evaluate("details => details.open"):
            details.locator("summary").click()
        details.locator("tbody tr").first.wait_for(state="attached")
        rows: list[list[str]] = details.evaluate("""details => [...details.querySelectorAll("tbody tr")].map((row) =>
            [...row.children].map((cell) => cell.textContent))""")
        return rows

    def requests_to(self, part: str) -> list[Request]:
        """The requests so far whose URL contains `part`."""
        return [request for request in self.requests if part in request.url]

    def assert_no_faults(self) -> None:
        assert not self.faults, "\n".join(dict.fromkeys(self.faults))


@contextlib.contextmanager
def open_page(browser: Browser, url: str, **options: Any) -> Iterator[Visit]:
    """A visit in a new context: no cookies, nothing stored, every request to another host aborted."""
    context = browser.new_context(**{"locale": "en-US", "reduced_motion": "reduce"} | options)
    try:
        context.set_default_timeout(TIMEOUT)
        context.route(re.compile(rf"^(?!{re.escape(url)}|data:|blob:)"), lambda route: route.abort())
        visit = Visit(context.new_page(), url)
        visit.record()
        yield visit
    finally:
        context.close()


# Sentences


def load_sentences(language: str) -> dict[str, str]:
    """The sentences of the page in a language, by key."""
    sentences: dict[str, str] = {}
    for path in sorted((ROOT / "i18n" / language).glob("*.json")):
        more: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        assert not sentences.keys() & more.keys(), path
        sentences |= more
    return sentences


# Accessibility and numbers on the screen


def axe_violations(visit: Visit, only: Sequence[str] = (), without: Sequence[str] = ()) -> list[str]:
    """The accessibility rules that axe finds violated, with the elements. `only` and `without` choose rules by id.

    Axe needs milliseconds for each cell of a table. It gets three rows and columns of each table.
    """
    if not visit.page.evaluate("'axe' in window"):
        visit.page.evaluate(AXE_SCRIPT)
    options: dict[str, Any] = {"resultTypes": ["violations"], "rules": {rule: {"enabled": False} for rule in without}}
    if only:
        options["runOnly"] = list(only)
    violations = visit.page.evaluate(
        """async (options) => {
            const sheet = new CSSStyleSheet();
            sheet.replaceSync(":is(tbody tr, tr > *):nth-child(n+3):not(:last-child, [class]) { display: none }");
            document.adoptedStyleSheets.push(sheet);
            const { violations } = await axe.run(options).finally(() => document.adoptedStyleSheets.pop());
            return violations;
        }""",
        options,
    )
    return [
        f"{rule['id']}: {node['html'][:160]} ({'; '.join(check['message'] for check in node['any'] + node['all'])})"
        for rule in violations
        for node in rule["nodes"][:3]
    ]


def parse_number(text: str) -> float:
    """The first number in a text of the English page."""
    match = re.search(r"[-+−±]?\d[\d,]*(\.\d+)?(E-?\d+)?", text)
    assert match, text
    return float(match[0].replace(",", "").replace("−", "-").replace("±", ""))


def parse_numbers(row: list[str]) -> list[float]:
    return [parse_number(cell) for cell in row if cell]


def wait_until(condition: Callable[[], bool], page: Page, seconds: float = TIMEOUT / 1000) -> float:
    """Wait until a condition is true while the page runs. Returns the seconds that it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() < start + seconds, f"the condition was not met within {seconds} s"
        page.wait_for_timeout(20)
    return time.monotonic() - start


# Actions on tabs


def save_file(visit: Visit, button: Locator) -> bytes:
    """Click a button that saves a file, and return the file's content."""
    with visit.page.expect_download() as download:
        button.click()
    return Path(download.value.path()).read_bytes()


def fill_tab(visit: Visit, tab: str) -> None:
    """Open a tab with all its content: every step and picture, all tables open."""
    page = visit.open_tab(tab).page
    if tab == "model":
        page.locator(".flow [role=application]").press("ArrowUp")
    elif tab == "walk":
        page.locator(".steps input[type=checkbox]").check()
        for _ in range(7):
            page.locator(".steps button.main").click()
    elif tab == "attention":
        page.locator(".arcs .token").nth(5).click()
    elif tab == "positions_and_words":
        page.locator("#find").fill("a")
        page.locator("#find").press("Enter")
    elif tab == "playground":
        generate_text(visit, length=12)
        page.locator(f"{PLAYGROUND_TEXT} .token").nth(8).click()
        visit.settle()
        page.locator(".surprisal button[type=submit]").click()
    elif tab == "training":
        page.locator(".curves canvas").first.wait_for()
        page.locator("#panel-training input[type=checkbox]").nth(1).check()
        page.locator(".history button.main").click()
        page.locator(".history canvas").first.wait_for()
    elif tab == "compare":
        page.locator("#panel-compare button.main").click()
        page.locator("#panel-compare canvas").first.wait_for()
    visit.settle()
    page.evaluate("document.querySelectorAll('main details').forEach((details) => (details.open = true))")
    visit.settle()


def generate_text(visit: Visit, prompt: str | None = None, length: int = 12) -> None:
    """Generate a text on the playground and wait until it is complete."""
    page = visit.page
    if prompt is not None:
        write_prompt(visit, prompt)
    page.locator("#length").fill(str(length))
    page.locator("#panel-playground button[type=submit]").first.click()
    wait_for_text(visit)


def write_prompt(visit: Visit, text: str) -> None:
    """Write a text into the box of the playground."""
    editor = visit.page.locator("#prompt")
    if not editor.is_visible():
        visit.page.locator("#panel-playground button.edit").click()
    editor.fill(text)


def wait_for_text(visit: Visit) -> None:
    """Wait until the text of the playground is complete."""
    visit.settle()
    visit.page.locator("#panel-playground .next-token:visible").wait_for()
    visit.settle()
