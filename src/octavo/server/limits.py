"""Every bound of the server, in one place. What lies beyond is refused before anything is allocated for it."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Counts, bytes and seconds. The API's own document (`/openapi.json`) states the defaults."""

    # a connection
    connections: int = 512  # open at once; one more is answered 429
    header_bytes: int = 16 << 10  # request line and headers
    headers: int = 100
    header_seconds: float = 10  # from the connection, or the next request's first byte, to the end of the headers
    idle_seconds: float = 30  # between two requests of one connection
    linger_seconds: float = 2  # that a connection about to be closed is still read, so that its answer arrives

    # a request
    body_bytes: int = 1 << 20
    body_seconds: float = 20
    request_seconds: float = 600  # writing the answer, waiting for a slot included
    fields: int = 64  # of a body
    prompts: int = 128
    n: int = 128
    best_of: int = 20
    sequences: int = 128  # prompts times candidates for each
    max_tokens: int = 1 << 16
    logprobs: int = 5
    stops: int = 4
    stop_characters: int = 256
    logit_bias: int = 1024  # tokens

    # the lens, and a run's lines
    lens_at_once: int = 2  # views that are made
    lens_waiting: int = 16  # and that wait for it; beyond that, 429
    lens_characters: int = 200_000
    lens_positions: int = 4096
    lens_words: int = 20
    lens_word: int = 100  # characters
    lines: int = 5000  # of an answer
    lines_bytes: int = 4 << 20

    # the server
    queue: int = 64  # sequences that may wait for a slot; beyond that, 429
    prefix_bytes: int = 256 << 20  # of memory for the prompts that a model has read
