"""Every bound of the server. What is too large is rejected before anything is allocated for it."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Counts, bytes and seconds. The request schemas in `requests.py` and `/openapi.json` use the default values."""

    # connections
    connections: int = 512  # open at once; beyond that, 429
    refused_connections: int = 64  # connections beyond that whose clients may read the 429; any more are reset
    header_bytes: int = 16 << 10  # request line and headers
    headers: int = 100
    header_seconds: float = 10  # from the connection, or a later request's first byte, to the end of the headers
    idle_seconds: float = 30  # between two requests, and while the client has to read on, but does not
    linger_seconds: float = 2  # after an error, keep reading this long: unread data would reset the connection

    # requests
    body_bytes: int = 1 << 20
    body_seconds: float = 20
    request_seconds: float = 600  # until the response is complete, including the wait for a slot
    fields: int = 64  # in a body
    prompts: int = 128
    messages: int = 2048
    message_parts: int = 256
    n: int = 128
    best_of: int = 20
    sequences: int = 128  # prompts times completions of each
    max_tokens: int = 1 << 16
    logprobs: int = 20
    logprob_values: int = 1 << 21  # in one response
    stops: int = 32
    stop_characters: int = 256  # of a stop string or a bad word
    stop_token_ids: int = 128
    bad_words: int = 64
    allowed_token_ids: int = 1 << 16
    logit_bias: int = 1024  # tokens

    # the lens, and the lines of a run's logs
    concurrent_views: int = 2
    queued_views: int = 16  # beyond that, 429
    lens_characters: int = 200_000
    lens_positions: int = 4096
    lens_words: int = 20
    lens_word_characters: int = 100
    lines: int = 5000  # in one response
    lines_bytes: int = 4 << 20
