"""LlamaIndex's `OpenAILike`: a completion and a stream."""

import os
from importlib.metadata import version

from llama_index.llms.openai_like import OpenAILike

llm = OpenAILike(
    api_base=os.environ["OCTAVO_URL"],
    api_key=os.environ["OCTAVO_KEY"],
    model=os.environ["OCTAVO_MODEL"],
    max_tokens=int(os.environ["OCTAVO_MAX_TOKENS"]),
    temperature=0,
    is_chat_model=False,
)
prompt, text = os.environ["OCTAVO_PROMPT"], os.environ["OCTAVO_TEXT"]
assert llm.complete(prompt).text == text
assert [each.text for each in llm.stream_complete(prompt)][-1] == text
print(version("llama-index-llms-openai-like"))
