"""The queue, deadlines and failures of a model's worker."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from octavo.generation.prompt import encode_prompt
from octavo.generation.stream import TextPiece, TextRequest, TextStream
from octavo.server.client import Client, RateLimits
from octavo.server.limits import Limits
from octavo.server.metrics import Metrics
from octavo.server.text_batch import TextBatch
from serving import LIMITS, openai_error, run_server, slow_model, wait_until, write_checkpoint


def test_a_full_queue_is_429(tmp_path: Path) -> None:
    served = slow_model(write_checkpoint(tmp_path / "slow", "char", end_of_text=False), slots=1, queue=2)
    with run_server({"slow": served}) as server:
        with ThreadPoolExecutor(12) as pool:
            responses = list(pool.map(lambda _: server.complete(max_tokens=20), range(12)))
        counts = {status: [each.status for each in responses].count(status) for status in (200, 429)}
        assert sum(counts.values()) == 12
        assert counts[200] >= 3
        assert counts[429] >= 1
        refused = next(each for each in responses if each.status == 429)
        assert refused.headers["retry-after"] == "1"
        assert refused.json["error"]["code"] == "rate_limit_exceeded"
        assert server.complete(["a"] * 10, max_tokens=2).status == 200  # above the capacity, but the queue is empty


def test_a_completion_that_takes_too_long_is_503_and_frees_its_slot(tmp_path: Path) -> None:
    limits = Limits(request_seconds=1)
    served = slow_model(write_checkpoint(tmp_path / "slow", "char", end_of_text=False), slots=1, seconds=0.05)
    with run_server({"slow": served}, limits) as server:
        response = server.complete(max_tokens=50)
        assert "after 1 seconds" in openai_error(response, 503, code="timeout")
        assert response.headers["x-should-retry"] == "false"
        *chunks, last = server.complete(max_tokens=50, stream=True).events
        assert 0 < len(chunks) < 50
        assert last["error"]["code"] == "timeout"
        assert server.complete(max_tokens=2).status == 200


def test_a_text_that_nobody_reads_is_kept_in_few_pieces(tmp_path: Path) -> None:
    served = slow_model(write_checkpoint(tmp_path / "model", "char", end_of_text=False), seconds=0)
    metrics = Metrics()

    async def read_late() -> tuple[str, list[TextPiece]]:
        prompt = encode_prompt(served.checkpoint.tokenizer, "the")
        request = TextRequest(prompt=prompt, max_new_tokens=600, overflow="rechunk")
        client = Client("none", "", RateLimits(), metrics)
        batch = TextBatch(served, [request], client, LIMITS, metrics, incremental=True)
        [[stream]] = batch.streams
        await asyncio.to_thread(wait_until, lambda: stream.finish_reason is not None)
        return stream.text, [piece async for _, piece in batch.pieces()]

    text, pieces = asyncio.run(read_late())
    assert len(pieces) < 300
    assert "".join(piece.text for piece in pieces) == text
    assert sum(len(piece.tokens) for piece in pieces) == len(text) == 600
    served.worker.close()


def test_after_an_engine_failure_requests_are_503(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    served = slow_model(write_checkpoint(tmp_path / "slow", "char", end_of_text=False))
    with run_server({"slow": served}) as server:
        monkeypatch.setattr(served.worker.engine, "step", lambda: 1 / 0)
        assert openai_error(server.complete(), 500)
        assert openai_error(server.complete(), 503)
        assert openai_error(server.request("GET", "/ready"), 503)
        assert server.request("GET", "/health").status == 200
    assert "ZeroDivisionError" in caplog.text


def test_after_an_engine_failure_every_text_ends_also_if_one_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = slow_model(write_checkpoint(tmp_path / "slow", "char", end_of_text=False))
    prompt = encode_prompt(served.checkpoint.tokenizer, "the")

    def fail(stream: TextStream) -> None:
        if stream.finish_reason == "error":
            raise MemoryError

    first, second = (
        TextStream(TextRequest(prompt=prompt), served.checkpoint.tokenizer, on_update=on_update)
        for on_update in (fail, lambda stream: None)
    )
    monkeypatch.setattr(served.worker.engine, "step", lambda: 1 / 0)
    served.worker.submit([first, second])
    wait_until(lambda: second.finish_reason == "error")
    served.worker.close()


def test_logits_that_are_not_finite_are_an_error_of_their_request_only(tmp_path: Path) -> None:
    served = slow_model(write_checkpoint(tmp_path / "slow", "char", end_of_text=False))
    with run_server({"slow": served}) as server:
        before = server.text(seed=1, temperature=0.5)
        gpt = served.checkpoint.model
        weight = gpt.transformer.ln_f.weight.data.clone()
        gpt.transformer.ln_f.weight.data[:] = float("nan")
        assert "not finite" in openai_error(server.complete(), 500)
        assert "not finite" in server.complete(stream=True).events[-1]["error"]["message"]
        gpt.transformer.ln_f.weight.data[:] = weight
        assert server.text(seed=1, temperature=0.5) == before
