"""Small runs for the page's tests, trained in seconds, and servers of them."""

import contextlib
import math
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import octavo
from lenses import random_checkpoint
from octavo.runs import Run
from octavo.server import load_model
from serving import SETTINGS, Running, run_server, slow_model

LINES = (
    "The cat sat on the mat, and the cat slept.",
    "جلست القطة على السجادة، ثم نامت القطة.",
    "बिल्ली चटाई पर बैठी, फिर बिल्ली सो गई।",
    "Le chat s’est assis sur le tapis, puis le chat a dormi.",
    "Die Katze saß auf der Matte, und die Katze schlief.",
    "0123456789 € 🦉 abcdefghijklmnopqrstuvwxyz",
)


@dataclass(frozen=True)
class Runs:
    """Two runs: the tokens of one are characters, those of the other bytes."""

    letters: Run
    bytes: Run


def train_runs(folder: Path) -> Runs:
    """Train both for 20 steps, with checkpoints and samples along the way."""
    (folder / "text.txt").write_text("".join(f"{line}\n" for line in LINES) * 12, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:  # do not fill the cache that all tests share
        patch.setenv("OCTAVO_CACHE", str(folder / "cache"))
        letters, raw = (
            octavo.train(
                folder / "text.txt",
                out=folder / name,
                tokenizer=tokenizer,
                n_layer=2,
                n_head=2,
                n_embd=32,
                block_size=64,
                batch_size=4,
                max_steps=20,
                warmup_steps=4,
                eval_every=5,
                log_every=1,
                sample_every=5,
                keep_checkpoints=4,
                val_fraction=0.2,
                device="cpu",
                precision="fp32",
                compile="off",
            )
            for name, tokenizer in (("letters", "char"), ("bytes", "byte"))
        )
    return Runs(letters, raw)


def copy_run(run: Run, name: str) -> Run:
    """A copy of a run under another name, for a test that writes into it."""
    folder = Path(tempfile.mkdtemp(dir=run.folder.parent)) / name
    shutil.copytree(run.folder, folder)
    return Run(folder)


def write_long_model(folder: Path) -> Path:
    """A model with a context of 512 tokens that belongs to no run."""
    return random_checkpoint(folder, "byte", std=0.05, block_size=512, n_layer=1, n_head=2, n_embd=32).folder


@contextlib.contextmanager
def serve_runs(
    runs: dict[str, Run],
    folders: dict[str, Path] | None = None,
    *,
    keys: tuple[str, ...] = (),
    slow_run: Run | None = None,
) -> Iterator[Running]:
    """Serve runs, and checkpoint folders that belong to none. `slow_run` is served as `slow`, by a slow engine."""
    sources = {name: run.folder for name, run in runs.items()} | (folders or {})
    models = {name: load_model(name, source, SETTINGS) for name, source in sources.items()}
    if slow_run:
        models["slow"] = slow_model(list(slow_run.steps.values())[-1])
    with run_server(models, runs=runs, keys=keys) as site:
        yield site


def get_view(site: Running, view: str, model: str = "letters", **options: Any) -> Any:
    """A view as the API returns it."""
    answer = site.post(f"/lens/{view}", model=model, **options)
    assert answer.status == 200, answer.body
    return answer.json


def token_ids(site: Running, text: str, model: str = "letters") -> list[int]:
    return [token["id"] for token in get_view(site, "tokens", model, text=text)["tokens"]]


def softmax(logits: list[float]) -> list[float]:
    powers = [math.exp(logit - max(logits)) for logit in logits]
    return [power / sum(powers) for power in powers]
