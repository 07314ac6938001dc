"""Run third-party clients against `octavo serve`, each in a separate environment; print the table in docs/serve.md.

    make clients                                         # all of them
    .venv/bin/python bench/clients/run.py openai-node litellm

Environments are built under build/clients, with the newest release of each client unless its row pins one; that takes
1 GB of disk. A client's script sends requests to a server that needs an API key, checks the answers itself, and prints
the version of its package. The client in a browser uses Playwright's Chromium.
"""

import json
import os
import secrets
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BUILD = HERE.parents[1] / "build" / "clients"
PROMPT, MAX_TOKENS = "The import", 12
ORIGIN_PORT = 8765  # of the page in the browser; the server allows requests from that origin


@dataclass(frozen=True)
class Client:
    """A client: its package, the part of it that the script uses, and the packages of its environment."""

    name: str
    package: str
    use: str
    script: str
    pip: tuple[str, ...] = ()
    npm: tuple[str, ...] = ()


CLIENTS = (
    # openai 1.x before 1.55 needs an httpx that still has the argument `proxies`.
    Client("openai-oldest", "openai", "Python, oldest of 1.x", "openai_python.py", pip=("openai==1.0.0", "httpx<0.28")),
    Client("openai", "openai", "Python", "openai_python.py", pip=("openai",)),
    Client("openai-node", "openai", "Node.js", "openai_node.mjs", npm=("openai",)),
    Client("openai-browser", "openai", "Chromium, from another origin", "openai_browser.py", npm=("openai",)),
    Client("langchain", "langchain-openai", "`OpenAI`", "langchain_llm.py", pip=("langchain-openai",)),
    Client("langchain-chat", "langchain-openai", "`ChatOpenAI`", "langchain_chat.py", pip=("langchain-openai",)),
    Client(
        "llama-index",
        "llama-index-llms-openai-like",
        "`OpenAILike`",
        "llama_index_llm.py",
        pip=("llama-index-llms-openai-like",),
    ),
    Client("litellm", "litellm", "`text_completion`", "litellm_text.py", pip=("litellm",)),
    Client("llm", "llm", "`completion: true`", "llm_command.py", pip=("llm",)),
)


def main(names: list[str]) -> int:
    if unknown := set(names) - {client.name for client in CLIENTS}:
        print(f"error: no client {min(unknown)}\n  try: {' '.join(client.name for client in CLIENTS)}", file=sys.stderr)
        return 2
    chosen = [client for client in CLIENTS if not names or client.name in names]
    BUILD.mkdir(parents=True, exist_ok=True)
    run = train_model()
    key = secrets.token_urlsafe(16)
    words = [sys.executable, "-m", "octavo", "serve", str(run), "--port", "0", "--json"]
    words += ["--allow-origin", f"http://127.0.0.1:{ORIGIN_PORT}"]
    failed = 0
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=os.environ | {"OCTAVO_API_KEY": key}) as server:
        try:
            assert server.stdout is not None
            url = json.loads(server.stdout.readline())["url"]
            environment = os.environ | {
                "OCTAVO_URL": url,
                "OCTAVO_MODEL": run.name,
                "OCTAVO_KEY": key,
                "OCTAVO_PROMPT": PROMPT,
                "OCTAVO_MAX_TOKENS": str(MAX_TOKENS),
                "OCTAVO_TEXT": greedy_choice(url, key, "completions", prompt=PROMPT)["text"],
                "OCTAVO_ANSWER": greedy_choice(
                    url, key, "chat/completions", messages=[{"role": "user", "content": PROMPT}]
                )["message"]["content"],
                "OCTAVO_ORIGIN_PORT": str(ORIGIN_PORT),
            }
            print("| client | version | |\n|---|---|---|")
            for client in chosen:
                result = try_client(client, environment)
                version = result.stdout.strip().rpartition("\n")[2]
                outcome = "works" if result.returncode == 0 else "fails"
                print(f"| {client.package}: {client.use} | {version} | {outcome} |", flush=True)
                if result.returncode:
                    failed += 1
                    print(result.stderr[-2000:], file=sys.stderr)
        finally:
            server.terminate()
    return int(failed > 0)


def train_model() -> Path:
    """A small model, trained once."""
    run = BUILD / "pydocs-clients"
    if not (run / "checkpoints").is_dir():
        words = [sys.executable, "-m", "octavo", "train", "pydocs", "--preset", "quick", "--max-steps", "30"]
        subprocess.run([*words, "--out", str(run)], check=True, stdout=subprocess.DEVNULL)
    return run


def greedy_choice(url: str, key: str, endpoint: str, **fields: Any) -> dict[str, Any]:
    """The greedy choice that every client must receive, requested with the standard library's HTTP client."""
    body = json.dumps({"max_tokens": MAX_TOKENS, "temperature": 0} | fields).encode()
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    with urllib.request.urlopen(urllib.request.Request(f"{url}/{endpoint}", body, headers)) as response:
        return dict(json.load(response)["choices"][0])


def try_client(client: Client, environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    folder = BUILD / client.name
    installed = folder / "installed.txt"
    specification = " ".join((*client.pip, *client.npm))
    python = sys.executable  # the browser's script needs Playwright
    if client.pip:
        python = str(folder / ("Scripts" if os.name == "nt" else "bin") / "python")
    if not installed.is_file() or installed.read_text() != specification:
        if client.pip:
            subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
            subprocess.run([python, "-m", "pip", "install", "--quiet", *client.pip], check=True)
        else:
            folder.mkdir(exist_ok=True)
            subprocess.run(["npm", "install", "--silent", "--prefix", str(folder), *client.npm], check=True)
        installed.write_text(specification)
    environment = environment | {"OCTAVO_FOLDER": str(folder)}
    words = ["node", HERE / client.script] if client.script.endswith(".mjs") else [python, HERE / client.script]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300, cwd=folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
