"""OpenAI's package for Python: completions, chats, their streams, log-probabilities, an error."""

import os

import openai

client = openai.OpenAI(base_url=os.environ["OCTAVO_URL"], api_key=os.environ["OCTAVO_KEY"], max_retries=0)
options = {
    "model": os.environ["OCTAVO_MODEL"],
    "prompt": os.environ["OCTAVO_PROMPT"],
    "max_tokens": int(os.environ["OCTAVO_MAX_TOKENS"]),
    "temperature": 0,
}
assert [model.id for model in client.models.list()] == [options["model"]]
completion = client.completions.create(**options, logprobs=2, extra_body={"min_tokens": 3})
assert completion.choices[0].text == os.environ["OCTAVO_TEXT"]
assert len(completion.choices[0].logprobs.tokens) == completion.usage.completion_tokens
stream = client.completions.create(**options, stream=True)
assert "".join(chunk.choices[0].text for chunk in stream) == os.environ["OCTAVO_TEXT"]
chat = {
    "model": os.environ["OCTAVO_MODEL"],
    "messages": [{"role": "user", "content": os.environ["OCTAVO_PROMPT"]}],
    "max_tokens": int(os.environ["OCTAVO_MAX_TOKENS"]),
    "temperature": 0,
}
assert client.chat.completions.create(**chat).choices[0].message.content == os.environ["OCTAVO_ANSWER"]
stream = client.chat.completions.create(**chat, stream=True)
assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == os.environ["OCTAVO_ANSWER"]
try:
    client.completions.create(**options | {"model": "gpt-4"})
except openai.NotFoundError:
    pass
else:
    raise AssertionError("no exception for an unknown model")
print(openai.__version__)
