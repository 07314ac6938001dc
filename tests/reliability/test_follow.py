"""A server follows a run under load: no request fails, and a new checkpoint is served soon after it is written.

`make torture` switches 50 times, CI three times.
"""

import contextlib
import http.client
import json
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

import octavo
from octavo import tokenizers
from octavo.checkpoint import TrainerState
from octavo.model import GPT
from octavo.runs import Run
from octavo.settings import Settings
from reliability.torture import IS_TORTURE, Report, start

SWITCHES = 50 if IS_TORTURE else 3
CLIENTS = 8
TOKENIZER = tokenizers.build("byte", "")
SETTINGS = Settings(
    n_layer=4,
    n_head=4,
    n_embd=128,
    block_size=128,
    vocab_size=TOKENIZER.vocab_size,
    max_steps=10**6,
    keep_checkpoints=0,
)
BODY = json.dumps({"prompt": "the cat sat on the mat, and the rat", "max_tokens": 24, "temperature": 0}).encode()


def save(run: Run, step: int) -> None:
    """Save a checkpoint with other weights than those before, as training does: it becomes `best` and `last`."""
    model = GPT(SETTINGS, torch.Generator().manual_seed(step)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10)  # so that every model has another greedy text
    info = {"step": step, "val_loss": 5.0}
    run.save(step, model, TOKENIZER, SETTINGS, info, TrainerState({"x": torch.zeros(1000)}, {}), is_best=True)


def request(port: int, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("POST" if body else "GET", path, body, {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()


def test_every_checkpoint_is_served_soon_and_no_request_fails(tmp_path: Path, report: Report) -> None:
    run = Run.create(SETTINGS, "live", out=tmp_path / "live")
    save(run, 0)
    process = start(["serve", run.folder, "--port", 0, "--json", "--log-level", "error"], tmp_path)
    assert process.stdout is not None
    done, outcomes, texts = threading.Event(), Counter[int](), dict[str, set[str]]()

    def send_requests() -> None:
        while not done.is_set():
            try:
                status, content = request(port, "/v1/completions", BODY)
            except OSError:
                outcomes[0] += 1
                continue
            outcomes[status] += 1
            if status == 200:
                answer: dict[str, Any] = json.loads(content)
                texts.setdefault(answer["system_fingerprint"], set()).add(answer["choices"][0]["text"])

    try:
        port = int(json.loads(process.stdout.readline())["url"].rpartition(":")[2].removesuffix("/v1"))
        threads = [threading.Thread(target=send_requests) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        delays = []  # seconds from a written checkpoint to the first look at which it is served
        for step in range(1, SWITCHES + 1):
            save(run, step)
            written = time.monotonic()
            while json.loads(request(port, "/v1/models")[1])["data"][0]["step"] != step:
                assert time.monotonic() - written < 60
                time.sleep(0.01)
            delays.append(time.monotonic() - written)
        done.set()
        for thread in threads:
            thread.join()
    finally:
        done.set()
        process.terminate()
        err = process.communicate(timeout=60)[1]
    assert process.returncode == 0, err
    assert outcomes.keys() == {200}, outcomes
    for name, answers in texts.items():  # each text is that of the weights that it names
        [text] = answers
        if name == f"step-{SWITCHES:06d}":
            [sample] = octavo.generate(
                run, json.loads(BODY)["prompt"], max_new_tokens=24, temperature=0, overflow="stop"
            )
            assert sample.text == text
    assert len({text for answers in texts.values() for text in answers}) == len(texts)
    milliseconds = sorted(round(1000 * delay) for delay in delays)
    print("milliseconds until a checkpoint was served:", milliseconds)
    if IS_TORTURE:
        assert milliseconds[-1] < 2000
    report(
        "switch of a served checkpoint under load",
        SWITCHES,
        requests=outcomes.total(),
        failed_requests=0,
        ms_median=milliseconds[len(milliseconds) // 2],
        ms_longest=milliseconds[-1],
    )
