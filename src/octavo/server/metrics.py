"""What a Prometheus server may ask: requests, tokens, waiting times, slots, queue, prefix cache."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from octavo.server.worker import Worker

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter("octavo_requests", "Requests answered", ["route", "status"], registry=self._registry)
        self._prompt = self._counter("octavo_prompt_tokens", "Tokens of prompts")
        self._cached = self._counter("octavo_prompt_tokens_cached", "Of those, taken from the prefix cache")
        self._written = self._counter("octavo_generated_tokens", "Tokens written")
        self._first = self._histogram("octavo_time_to_first_token_seconds", "From the request to its first token")
        self._gap = self._histogram("octavo_token_gap_seconds", "From a token of a text to its next")
        self._slots = self._gauge("octavo_slots", "Texts that can be under way at once")
        self._busy = self._gauge("octavo_slots_busy", "Texts under way")
        self._queue = self._gauge("octavo_queue", "Texts that wait for a slot")

    def answered(self, route: str, status: int) -> None:
        """A request was answered."""
        self._requests.labels(route, str(status)).inc()

    def read(self, model: str, tokens: int, cached: int) -> None:
        """A prompt was read."""
        self._prompt.labels(model).inc(tokens)
        self._cached.labels(model).inc(cached)

    def wrote(self, model: str, seconds: float, first: bool) -> None:
        """A token was written, so many seconds after the one before it, or the first after its request."""
        self._written.labels(model).inc()
        (self._first if first else self._gap).labels(model).observe(seconds)

    def page(self, models: Mapping[str, Worker]) -> bytes:
        """All of it, in Prometheus's text format, with the models' slots and queues as they are."""
        for model, worker in models.items():
            self._slots.labels(model).set(worker.engine.slots)
            self._busy.labels(model).set(worker.engine.running)
            self._queue.labels(model).set(worker.waiting)
        return generate_latest(self._registry)

    def _gauge(self, name: str, help: str) -> Gauge:
        return Gauge(name, help, ["model"], registry=self._registry)

    def _counter(self, name: str, help: str) -> Counter:
        return Counter(name, help, ["model"], registry=self._registry)

    def _histogram(self, name: str, help: str) -> Histogram:
        return Histogram(name, help, ["model"], buckets=_SECONDS, registry=self._registry)
