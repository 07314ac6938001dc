"""langchain-openai's `OpenAI`: a text, a stream, a batch."""

import os
from importlib.metadata import version

from langchain_openai import OpenAI

llm = OpenAI(
    base_url=os.environ["OCTAVO_URL"],
    api_key=os.environ["OCTAVO_KEY"],
    model=os.environ["OCTAVO_MODEL"],
    max_tokens=int(os.environ["OCTAVO_MAX_TOKENS"]),
    temperature=0,
)
prompt, text = os.environ["OCTAVO_PROMPT"], os.environ["OCTAVO_TEXT"]
assert llm.invoke(prompt) == text
assert "".join(llm.stream(prompt)) == text
assert llm.batch([prompt, prompt]) == [text, text]
print(version("langchain-openai"))
