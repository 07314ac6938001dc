"""OpenAI's package for JavaScript in Chromium, on a page of another origin: CORS must allow what the package sends."""

import functools
import http.server
import json
import os
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from browser import launch_browser

USE_CLIENT = """async ([url, key, options]) => {
    const { default: OpenAI } = await import("/node_modules/openai/index.mjs");
    const client = new OpenAI({ baseURL: url, apiKey: key, maxRetries: 0, dangerouslyAllowBrowser: true });
    const completion = await client.completions.create(options);
    let streamed = "";
    for await (const chunk of await client.completions.create({ ...options, stream: true })) {
        streamed += chunk.choices[0].text;
    }
    const models = (await client.models.list()).data.map((model) => model.id);
    return { text: completion.choices[0].text, streamed, models, id: completion._request_id };
}"""


class Files(http.server.SimpleHTTPRequestHandler):
    """The folder with `node_modules`; `/` is an empty page."""

    def guess_type(self, path: object) -> str:
        return "text/javascript" if str(path).endswith(".mjs") else super().guess_type(path)

    def do_GET(self) -> None:
        if self.path == "/":
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, *arguments: object) -> None:
        pass


folder, model = Path(os.environ["OCTAVO_FOLDER"]), os.environ["OCTAVO_MODEL"]
options = {
    "model": model,
    "prompt": os.environ["OCTAVO_PROMPT"],
    "max_tokens": int(os.environ["OCTAVO_MAX_TOKENS"]),
    "temperature": 0,
}
address = ("127.0.0.1", int(os.environ["OCTAVO_ORIGIN_PORT"]))
with http.server.ThreadingHTTPServer(address, functools.partial(Files, directory=folder)) as site:
    threading.Thread(target=site.serve_forever, daemon=True).start()
    with launch_browser() as browser:
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{address[1]}/")
        seen = page.evaluate(USE_CLIENT, [os.environ["OCTAVO_URL"], os.environ["OCTAVO_KEY"], options])
    site.shutdown()
assert seen["text"] == seen["streamed"] == os.environ["OCTAVO_TEXT"], seen
assert seen["models"] == [model]
assert seen["id"], "the page cannot read X-Request-Id"
print(json.loads((folder / "node_modules" / "openai" / "package.json").read_text())["version"])
