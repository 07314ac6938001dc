"""The command `llm`, with the model in extra-openai-models.yaml."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

folder = Path(os.environ["OCTAVO_FOLDER"])
(folder / "extra-openai-models.yaml").write_text(
    f"- model_id: mine\n  model_name: {os.environ['OCTAVO_MODEL']}\n  api_base: {os.environ['OCTAVO_URL']}\n"
    "  api_key_name: mine\n  completion: true\n"
)
words = [sys.executable, "-m", "llm", "-m", "mine", "--key", os.environ["OCTAVO_KEY"], "--no-log"]
words += ["-o", "max_tokens", os.environ["OCTAVO_MAX_TOKENS"], "-o", "temperature", "0"]
for extra in ([], ["--no-stream"]):
    result = subprocess.run(
        [*words, *extra, os.environ["OCTAVO_PROMPT"]],
        env=os.environ | {"LLM_USER_PATH": str(folder)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == os.environ["OCTAVO_TEXT"].strip(), result.stdout
print(version("llm"))
