"""Draw the pictures of the page in `docs/` and the animation `docs/learning.svg`.

    python docs/page_pictures.py tinyshakespeare.txt

It trains the two runs that they show: one on this text, in some minutes, and a small one on the page's own Arabic
sentences.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from playwright.sync_api import Page, sync_playwright

import octavo
from octavo.lens.learning import learning_svg
from octavo.runs import Run

TEXT = "My lord, the king and the queen are come to see the"
ARABIC_TEXT = "كل صف رمز، ويبيّن كيف يوزّع انتباهه على الرموز التي قبله"
SHAKESPEARE, ARABIC = "shakespeare", "arabic"  # the names of the runs


@dataclass(frozen=True)
class Picture:
    """A picture of a tab: of the whole window, or of one element."""

    tab: str
    language: str = "en"
    theme: str = "light"
    pointer: tuple[float, float] | None = None  # where it is in the canvas, as shares of its width and height
    click: str | None = None  # a selector of what is chosen first
    element: str | None = None  # a selector


PICTURES = {
    "page-model.png": Picture("model", pointer=(0.55, 0.43)),
    "page-walk.png": Picture("walk/8"),
    "page-words-ar.png": Picture(
        "positions_and_words", language="ar", theme="dark", click=".row > button.chip >> nth=1"
    ),
    "page-attention.png": Picture("attention", click=".arcs .token >> nth=-1", element="#panel-attention .arcs"),
}


def main() -> None:
    docs, text = Path(__file__).parent.resolve(), Path(sys.argv[1]).resolve()
    names = ("chromium", "chromium-browser", "google-chrome")
    path = os.environ.get("OCTAVO_CHROMIUM") or next(filter(None, map(shutil.which, names)))
    root = hasattr(os, "geteuid") and os.geteuid() == 0  # Chromium has no sandbox for root
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        run, arabic = train_shakespeare(text, Path(folder)), train_arabic_run(Path(folder))
        command = [
            sys.executable,
            "-m",
            "octavo",
            "serve",
            run.folder,
            arabic.folder,
            "--port",
            "0",
            "--device",
            "cpu",
            "--json",
        ]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert server.stdout
        try:
            url = json.loads(server.stdout.readline())["page"]
            browser = driver.chromium.launch(executable_path=path, chromium_sandbox=not root)
            for name, picture in PICTURES.items():
                options = {"locale": picture.language, "color_scheme": picture.theme, "reduced_motion": "reduce"}
                page = browser.new_page(viewport={"width": 1280, "height": 900}, **options)
                is_arabic = picture.language == "ar"
                choices = {"model": ARABIC if is_arabic else SHAKESPEARE, "text": ARABIC_TEXT if is_arabic else TEXT}
                page.goto(f"{url}#{picture.tab}?{urlencode(choices)}")
                draw(page, picture, docs / name)
            browser.close()
        finally:
            server.terminate()
            server.wait()
            server.stdout.close()
        (docs / "learning.svg").write_text(learning_svg(run, TEXT), encoding="utf-8")


def train_shakespeare(text: Path, folder: Path) -> Run:
    """Train a model whose tokens are words and parts of words, with more layers and heads than `tiny` has."""
    size = {"n_layer": 6, "n_head": 6, "n_embd": 96}
    return octavo.train(text, out=folder / SHAKESPEARE, tokenizer="bpe:4096", max_steps=700, **size)


def train_arabic_run(folder: Path) -> Run:
    """Train a model of words for 300 steps on the sentences of the page in Arabic."""
    files = (Path(octavo.__file__).parent / "page" / "i18n" / "ar").glob("*.json")
    sentences = [
        sentence for file in sorted(files) for sentence in json.loads(file.read_text(encoding="utf-8")).values()
    ]
    text = folder / "arabic.txt"
    text.write_text("\n".join(sentences), encoding="utf-8")
    return octavo.train(text, out=folder / ARABIC, preset="words", max_steps=300)


def draw(page: Page, picture: Picture, file: Path) -> None:
    page.locator("main canvas, main .arcs").first.wait_for()
    page.wait_for_function("() => !document.querySelector('[aria-busy=true]')")
    if picture.click:
        page.locator(picture.click).click()
        page.wait_for_function("() => !document.querySelector('[aria-busy=true]')")
    if picture.pointer:
        box = page.locator("main canvas").first.bounding_box()
        assert box
        x, y = picture.pointer
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
    page.wait_for_timeout(500)
    if picture.element:
        page.locator(picture.element).screenshot(path=file)
    else:
        page.screenshot(path=file)


if __name__ == "__main__":
    main()
