"""Prometheus metrics: requests, tokens, latencies, slots, queue, prefix cache."""

import time
from collections.abc import Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from octavo.server.served_model import ServedModel

_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)  # seconds


class Metrics:
    """The counters of one server, in their own registry."""

    def __init__(self) -> None:
        # `_created` is a second series for each counter, with the time of its first request.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._requests = Counter("octavo_requests", "Requests answered", ["route", "status"], registry=self._registry)
        self._prompt = self._counter("octavo_prompt_tokens", "Prompt tokens")
        self._cached = self._counter("octavo_prompt_tokens_cached", "Prompt tokens taken from the prefix cache")
        self._generated = self._counter("octavo_generated_tokens", "Generated tokens")
        self._key_requests = self._key_counter("octavo_key_requests", "Requests that compute something, by API key")
        self._key_rejected = self._key_counter("octavo_key_rejected", "Requests beyond the rate limit of their key")
        self._key_prompt = self._key_counter("octavo_key_prompt_tokens", "Prompt tokens, by API key")
        self._key_generated = self._key_counter("octavo_key_generated_tokens", "Generated tokens, by API key")
        self._first = self._histogram("octavo_time_to_first_token_seconds", "From the request to its first token")
        self._inter_token = self._histogram("octavo_inter_token_latency_seconds", "Inter-token latency")
        self._slots = self._gauge("octavo_slots", "Completions that can be generated at once")
        self._busy = self._gauge("octavo_slots_busy", "Completions that are being generated")
        self._queue = self._gauge("octavo_queue", "Completions that wait for a slot")
        self._step = self._gauge("octavo_checkpoint_step", "Training step of the served checkpoint")

    def count_request_of_key(self, key: str) -> None:
        self._key_requests.labels(key).inc()

    def count_rejection(self, key: str) -> None:
        self._key_rejected.labels(key).inc()

    def count_tokens_of_key(self, key: str, prompt: int, generated: int) -> None:
        self._key_prompt.labels(key).inc(prompt)
        self._key_generated.labels(key).inc(generated)

    def count_request(self, route: str, status: int) -> None:
        self._requests.labels(route, str(status)).inc()

    def count_prompts(self, model: str, tokens: int, cached: int) -> None:
        self._prompt.labels(model).inc(tokens)
        self._cached.labels(model).inc(cached)

    def token_timer(self, model: str) -> "TokenTimer":
        """A timer for one text of a request that was just received."""
        return TokenTimer(self._generated.labels(model), self._first.labels(model), self._inter_token.labels(model))

    def render(self, models: Mapping[str, ServedModel]) -> bytes:
        """All metrics in Prometheus's text format, with the current slots, queue and step of each model."""
        for name, model in models.items():
            worker = model.worker
            self._slots.labels(name).set(worker.engine.slots)
            self._busy.labels(name).set(worker.engine.running)
            self._queue.labels(name).set(worker.waiting)
            if model.step is not None:
                self._step.labels(name).set(model.step)
        return generate_latest(self._registry)

    def _gauge(self, name: str, help: str) -> Gauge:
        return Gauge(name, help, ["model"], registry=self._registry)

    def _counter(self, name: str, help: str) -> Counter:
        return Counter(name, help, ["model"], registry=self._registry)

    def _key_counter(self, name: str, help: str) -> Counter:
        return Counter(name, help, ["key"], registry=self._registry)

    def _histogram(self, name: str, help: str) -> Histogram:
        return Histogram(name, help, ["model"], buckets=_BUCKETS, registry=self._registry)


class TokenTimer:
    """Counts the tokens of one text, and observes the time to the first token and the inter-token latency."""

    def __init__(self, tokens: Counter, first: Histogram, inter_token: Histogram) -> None:
        self._tokens, self._next_histogram, self._inter_token = tokens, first, inter_token
        self._last = time.perf_counter()

    def count_token(self) -> None:
        now = time.perf_counter()
        self._tokens.inc()
        self._next_histogram.observe(now - self._last)
        self._last, self._next_histogram = now, self._inter_token  # only the first token is timed from the request
