"""Draw the pictures of the page in `docs/` and the moving picture `docs/learning.svg`, of a local run.

python docs/page_pictures.py runs/my-1
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

from playwright.sync_api import sync_playwright

from octavo.lens.learning import learning_svg

TEXT = "My lord, the king and the queen are come to see the"
PICTURES = {  # a file: the language, the theme, the address, and where the pointer is in the picture, if it is there
    "page-model.png": ("en", "light", "#model", (0.55, 0.43)),
    "page-walk.png": ("en", "light", "#walk/8", None),
    "page-words-ar.png": ("ar", "dark", "#positions_and_words", None),
}


def main() -> None:
    docs, run = Path(__file__).parent.resolve(), sys.argv[1]
    command = [sys.executable, "-m", "octavo", "serve", run, "--port", "0", "--device", "cpu", "--json"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout
    names = ("chromium", "chromium-browser", "google-chrome")
    path = os.environ.get("OCTAVO_CHROMIUM") or next(filter(None, map(shutil.which, names)))
    root = hasattr(os, "geteuid") and os.geteuid() == 0  # Chromium has no sandbox for root
    try:
        url = json.loads(server.stdout.readline())["page"]
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=path, chromium_sandbox=not root)
            for name, (language, theme, address, pointer) in PICTURES.items():
                options = {"locale": language, "color_scheme": theme, "reduced_motion": "reduce"}
                page = browser.new_page(viewport={"width": 1280, "height": 900}, **options)
                page.goto(f"{url}{address}?text={quote(TEXT)}")
                page.locator("main canvas").first.wait_for()
                page.wait_for_function("() => !document.querySelector('[aria-busy=true]')")
                if pointer:
                    box = page.locator(".flow canvas").bounding_box()
                    assert box
                    page.mouse.move(box["x"] + pointer[0] * box["width"], box["y"] + pointer[1] * box["height"])
                page.wait_for_timeout(500)
                page.screenshot(path=docs / name)
            browser.close()
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()
    (docs / "learning.svg").write_text(learning_svg(run, TEXT), encoding="utf-8")


if __name__ == "__main__":
    main()
