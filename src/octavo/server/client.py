"""Who sends a request, and how much this client may still ask for."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from octavo.server.api_error import ApiError
from octavo.server.metrics import Metrics

NO_KEY = "none"  # the name of all clients together if the server has no keys


@dataclass(frozen=True, kw_only=True)
class RateLimits:
    """What each client may ask for in a minute; 0: unlimited."""

    requests: int = 0
    tokens: int = 0  # of prompts and generated texts together


class TokenBucket:
    """Refills steadily to `per_minute`. A large amount can overdraw it; then it is empty for longer."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute, self._clock = per_minute, clock
        self._level, self._time = float(per_minute), clock()

    def take(self, amount: float) -> None:
        self._level = self.level - amount

    @property
    def level(self) -> float:
        """What is left now."""
        now = self._clock()
        self._level = min(self.per_minute, self._level + (now - self._time) * self.per_minute / 60)
        self._time = now
        return self._level

    def seconds_until(self, amount: float) -> float:
        """How long until the level is `amount`."""
        return max(0.0, (amount - self.level) * 60 / self.per_minute)


class Client:
    """The holder of an API key; or everybody, if the server has no keys."""

    def __init__(self, name: str, cache_scope: str, limits: RateLimits, metrics: Metrics) -> None:
        """Clients of different `cache_scope` share no cached prefix: response times would reveal their prompts."""
        self.name, self.cache_scope = name, cache_scope
        self._requests = TokenBucket(limits.requests) if limits.requests else None
        self._tokens = TokenBucket(limits.tokens) if limits.tokens else None
        self._metrics = metrics

    def admit(self) -> None:
        """Count a request. Raises `ApiError` if the client has used up what it may ask for in a minute."""
        for bucket, amount, unit in ((self._requests, 1.0, "requests"), (self._tokens, 0.0, "tokens")):
            if bucket is not None and (bucket.level < amount or bucket.level <= 0):
                seconds = max(1, math.ceil(bucket.seconds_until(max(amount, 1.0))))
                self._metrics.count_rejection(self.name)
                raise ApiError(
                    429,
                    f"the rate limit is {bucket.per_minute:,} {unit} per minute: try again in {seconds} s",
                    code="rate_limit_exceeded",
                    headers={"retry-after": str(seconds)},
                )
        if self._requests is not None:
            self._requests.take(1)
        self._metrics.count_request_of_key(self.name)

    def count_tokens(self, prompt: int, generated: int) -> None:
        """Count the tokens of a request when it ends."""
        if self._tokens is not None:
            self._tokens.take(prompt + generated)
        self._metrics.count_tokens_of_key(self.name, prompt, generated)
