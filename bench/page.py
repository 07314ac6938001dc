"""How soon the page shows what 512 tokens attend to: from the click on the tab to the picture, in a browser.

    python bench/page.py [--rounds 5] [--layers 2]

The model has the notes' width and heads (768, 12), a block of 512 and random weights. Each round is a fresh page in
a Chromium that is installed here (OCTAVO_CHROMIUM, or the one on PATH), driven by Playwright; the server is a process
of its own on the same machine. Medians, in seconds; the ceiling is one second on 2 cores.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from playwright.sync_api import Browser, sync_playwright

from octavo import checkpoint, tokenizers
from octavo.model import GPT
from octavo.settings import resolve

TEXT = ("To be, or not to be: that is the question. " * 12)[:512]
CLICK = """() => new Promise((done) => {
    const start = performance.now();
    document.querySelector("#tab-attention").click();
    const look = () => {
        const drawn = [...document.querySelectorAll("#panel-attention .matrix [role=application]")]
            .some((each) => (each.getAttribute("aria-label") ?? "").match(/512/g)?.length === 2);
        if (!drawn) return requestAnimationFrame(look);
        requestAnimationFrame(() => setTimeout(() => { // after the frame that shows it
            const asked = performance.getEntriesByType("resource").find(({ name }) => name.endsWith("/lens/attention"));
            done([performance.now() - start, asked.duration, asked.encodedBodySize, asked.decodedBodySize]);
        }));
    };
    look();
})"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=2)
    options = parser.parse_args()
    settings = resolve(vocab_size=256, tokenizer="byte", block_size=512, n_embd=768, n_head=12, n_layer=options.layers)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        model = GPT(settings, torch.Generator().manual_seed(0))
        checkpoint.save(Path(folder) / "wide", model, tokenizers.build("byte", ""), settings, {})
        names = ("chromium", "chromium-browser", "google-chrome")
        path = os.environ.get("OCTAVO_CHROMIUM") or next(filter(None, map(shutil.which, names)))
        root = hasattr(os, "geteuid") and os.geteuid() == 0  # Chromium has no sandbox for root
        browser = driver.chromium.launch(executable_path=path, chromium_sandbox=not root)
        with served(Path(folder) / "wide") as url:
            rounds = [once(browser, url) for _ in range(options.rounds + 1)][1:]  # the first makes what is made once
        browser.close()
    shown, asked, packed, plain = (statistics.median(each) for each in zip(*rounds, strict=True))
    print(f"{options.layers} layers, 12 heads, 768 wide, 512 tokens; {os.cpu_count()} cores")
    print(f"from the click to the picture  {shown / 1000:6.3f}  (ceiling 1)")
    print(f"of it, the server's answer     {asked / 1000:6.3f}  {packed / 1e3:,.0f} kB, {plain / 1e3:,.0f} kB unpacked")


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A server, and the page's address."""
    command = [sys.executable, "-m", "octavo", "serve", str(folder), "--port", "0", "--device", "cpu", "--json"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout
    try:
        yield json.loads(server.stdout.readline())["page"]
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()


def once(browser: Browser, url: str) -> tuple[float, float, float, float]:
    """A fresh page: milliseconds to the picture and to the answer, bytes sent and unpacked."""
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(f"{url}#walk")
        page.locator("#panel-walk canvas").first.wait_for()
        page.locator("#text").fill(TEXT)
        page.wait_for_function("() => document.querySelector('#panel-walk .shape')?.textContent.includes('512')")
        page.wait_for_function("() => !document.querySelector('[aria-busy=true]')")
        return tuple(page.evaluate(CLICK))  # type: ignore[return-value]


if __name__ == "__main__":
    main()
