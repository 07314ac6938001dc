"""OpenAI's package for Python: a completion, a stream, log-probabilities, and the exception for an unknown model."""

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
try:
    client.completions.create(**options | {"model": "gpt-4"})
except openai.NotFoundError:
    pass
else:
    raise AssertionError("no exception for an unknown model")
print(openai.__version__)
