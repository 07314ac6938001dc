"""LiteLLM's `text_completion`: a text, a stream, and its exception for an unknown model."""

import os
from importlib.metadata import version

import litellm

options = {
    "model": f"text-completion-openai/{os.environ['OCTAVO_MODEL']}",
    "api_base": os.environ["OCTAVO_URL"],
    "api_key": os.environ["OCTAVO_KEY"],
    "prompt": os.environ["OCTAVO_PROMPT"],
    "max_tokens": int(os.environ["OCTAVO_MAX_TOKENS"]),
    "temperature": 0,
}
text = os.environ["OCTAVO_TEXT"]
assert litellm.text_completion(**options).choices[0].text == text
chunks = litellm.text_completion(**options, stream=True)
assert "".join(chunk.choices[0].text or "" for chunk in chunks) == text
try:
    litellm.text_completion(**options | {"model": "text-completion-openai/gpt-4"})
except litellm.NotFoundError:
    pass
else:
    raise AssertionError("no exception for an unknown model")
print(version("litellm"))
