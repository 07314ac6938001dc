"""langchain-openai's `ChatOpenAI`: an answer, a stream, a batch."""

import os
from importlib.metadata import version

from langchain_openai import ChatOpenAI

llm = ChatOpenAI(
    base_url=os.environ["OCTAVO_URL"],
    api_key=os.environ["OCTAVO_KEY"],
    model=os.environ["OCTAVO_MODEL"],
    max_tokens=int(os.environ["OCTAVO_MAX_TOKENS"]),
    temperature=0,
)
prompt, text = os.environ["OCTAVO_PROMPT"], os.environ["OCTAVO_ANSWER"]
assert llm.invoke(prompt).content == text
assert "".join(str(chunk.content) for chunk in llm.stream(prompt)) == text
assert [answer.content for answer in llm.batch([prompt, prompt])] == [text, text]
print(version("langchain-openai"))
