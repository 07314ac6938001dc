"""The queue, deadlines and failures of a model's worker."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from octavo.server.limits import Limits
from serving import error_of, run_server, slow_model, write_checkpoint


def test_a_full_queue_is_429(tmp_path: Path) -> None:
    limits = Limits(queue=2)
    served = slow_model(write_checkpoint(tmp_path / "slow", "char"), slots=1, limits=limits)
    with run_server({"slow": served}, limits) as server:
        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda _: server.complete(max_tokens=20), range(12)))
        counts = {status: [each.status for each in answers].count(status) for status in (200, 429)}
        assert sum(counts.values()) == 12
        assert counts[200] >= 3
        assert counts[429] >= 1
        full = next(each for each in answers if each.status == 429)
        assert full.headers["retry-after"] == "1"
        assert full.json["error"]["code"] == "rate_limit_exceeded"
        assert server.complete(["a"] * 10, max_tokens=2).status == 200  # more than the capacity, while nothing waits


def test_an_answer_that_takes_too_long_is_503_and_frees_its_slot(tmp_path: Path) -> None:
    limits = Limits(request_seconds=0.3)
    served = slow_model(write_checkpoint(tmp_path / "slow", "char"), slots=1, limits=limits)
    with run_server({"slow": served}, limits) as server:
        answer = server.complete(max_tokens=50)
        assert "0.3 seconds" in error_of(answer, 503, code="timeout")
        assert answer.headers["x-should-retry"] == "false"
        *chunks, last = server.complete(max_tokens=50, stream=True).events
        assert 0 < len(chunks) < 50
        assert last["error"]["code"] == "timeout"
        assert server.complete(max_tokens=2).status == 200


def test_a_failed_engine_takes_no_more_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    served = slow_model(write_checkpoint(tmp_path / "slow", "char"))
    with run_server({"slow": served}) as server:
        monkeypatch.setattr(served.worker.engine, "step", lambda: 1 / 0)
        assert error_of(server.complete(), 500)
        assert error_of(server.complete(), 503)
        assert error_of(server.ask("GET", "/ready"), 503)
        assert server.ask("GET", "/health").status == 200
    assert "Traceback" in capfd.readouterr().err


def test_weights_that_are_not_finite_fail_only_that_request(tmp_path: Path) -> None:
    served = slow_model(write_checkpoint(tmp_path / "slow", "char"))
    with run_server({"slow": served}) as server:
        ok = server.text(seed=1, temperature=0.5)
        gpt = served.checkpoint.model
        kept = gpt.transformer.ln_f.weight.data.clone()
        gpt.transformer.ln_f.weight.data[:] = float("nan")
        assert "not finite" in error_of(server.complete(), 500)
        assert "not finite" in server.complete(stream=True).events[-1]["error"]["message"]
        gpt.transformer.ln_f.weight.data[:] = kept
        assert server.text(seed=1, temperature=0.5) == ok
