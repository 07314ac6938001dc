"""Measure the page in a browser: opening the whole model, and a click on the tab Attention, both with 512 tokens.

    python bench/page.py [--rounds 5] [--layers 2]

The model has the width and heads of GPT-2 (768, 12), a context of 512 and random weights. Each round opens a new page
in the installed Chromium (OCTAVO_CHROMIUM, or the one on PATH), driven by Playwright; the server is another process on
the same machine. The script prints medians, in seconds; the limit is one second on 2 cores. The tab Model is opened
with a text of 40 tokens, in a window of 1280 pixels: the time from the request of the page to the picture, and the
frames per second while it moves.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import torch
from playwright.sync_api import Browser, sync_playwright

import machine
from octavo import checkpoint, tokenizers
from octavo.model import GPT
from octavo.settings import resolve

TEXT = ("To be, or not to be: that is the question. " * 12)[:512]
CLICK_AND_TIME = """() => new Promise((done) => {
    const start = performance.now();
    document.querySelector("#tab-attention").click();
    const check = () => {
        const isDrawn = [...document.querySelectorAll("#panel-attention .matrix [role=application]")]
            .some((stage) => (stage.getAttribute("aria-label") ?? "").match(/512/g)?.length === 2);
        if (!isDrawn) return requestAnimationFrame(check);
        requestAnimationFrame(() => setTimeout(() => { // after the frame that shows it
            const requests = performance.getEntriesByType("resource");
            const request = requests.find(({ name }) => name.endsWith("/lens/attention"));
            done([performance.now() - start, request.duration, request.encodedBodySize, request.decodedBodySize]);
        }));
    };
    check();
})"""
SHORT_TEXT = TEXT[:40]
IS_MODEL_DRAWN = """() => {
    const figure = document.querySelector("#panel-model .flow");
    return figure?.scene && figure.still.width > 0;
}"""
COUNT_FRAMES = """(seconds) => new Promise((done) => {
    const start = performance.now();
    let frames = 0;
    const count = () => {
        frames++;
        const elapsed = (performance.now() - start) / 1000;
        if (elapsed < seconds) requestAnimationFrame(count);
        else done(frames / elapsed);
    };
    requestAnimationFrame(count);
})"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=2)
    options = parser.parse_args()
    settings = resolve(vocab_size=257, tokenizer="byte", block_size=512, n_embd=768, n_head=12, n_layer=options.layers)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        model = GPT(settings, torch.Generator().manual_seed(0))
        checkpoint.save(Path(folder) / "model", model, tokenizers.build("byte", ""), settings, {})
        names = ("chromium", "chromium-browser", "google-chrome")
        path = os.environ.get("OCTAVO_CHROMIUM") or next(filter(None, map(shutil.which, names)))
        root = hasattr(os, "geteuid") and os.geteuid() == 0  # Chromium has no sandbox for root
        browser = driver.chromium.launch(executable_path=path, chromium_sandbox=not root)
        with serve(Path(folder) / "model") as url:
            rounds = [measure(browser, url) for _ in range(options.rounds + 1)][1:]  # the first one warms up
            model_rounds = [measure_model(browser, url) for _ in range(options.rounds + 1)][1:]
        browser.close()
    picture, response, compressed, uncompressed = (statistics.median(each) for each in zip(*rounds, strict=True))
    print(machine.summary())
    print(f"{options.layers} layers, 12 heads, width 768, 512 tokens")
    print(f"from the click to the picture  {picture / 1000:6.3f}  (limit 1)")
    size = f"{compressed / 1e3:,.0f} kB, {uncompressed / 1e3:,.0f} kB uncompressed"
    print(f"of which the server's response {response / 1000:6.3f}  {size}")
    first, frames = (statistics.median(each) for each in zip(*model_rounds, strict=True))
    print(f"the whole model, 40 tokens     {first:6.3f}  (limit 1), then {frames:.0f} frames per second")


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve a checkpoint in another process; yields the address of the page."""
    command = [sys.executable, "-m", "octavo", "serve", str(folder), "--port", "0", "--device", "cpu", "--json"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout
    try:
        yield json.loads(server.stdout.readline())["page"]
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()


def measure_model(browser: Browser, url: str) -> tuple[float, float]:
    """Open a new page at the whole model. Returns the seconds to the picture, and the frames per second."""
    with browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="no-preference") as context:
        page = context.new_page()
        start = time.perf_counter()
        page.goto(f"{url}#model?text={quote(SHORT_TEXT)}", wait_until="commit")
        page.wait_for_function(IS_MODEL_DRAWN)
        seconds = time.perf_counter() - start
        page.locator(".flow canvas").hover()
        return seconds, page.evaluate(COUNT_FRAMES, 3)


def measure(browser: Browser, url: str) -> tuple[float, float, float, float]:
    """Open a new page. Returns the milliseconds to the picture and the response, and its bytes, compressed and not."""
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(f"{url}#walk")
        page.locator("#panel-walk canvas").first.wait_for()
        page.locator("#text").fill(TEXT)
        page.wait_for_function("() => document.querySelector('#panel-walk .shape')?.textContent.includes('512')")
        page.wait_for_function("() => !document.querySelector('[aria-busy=true]')")
        return tuple(page.evaluate(CLICK_AND_TIME))  # type: ignore[return-value]


if __name__ == "__main__":
    main()
