"""What the page's tests look at: small runs, trained in seconds, and servers of them."""

import contextlib
import math
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import octavo
from lenses import random_checkpoint
from octavo.runs import Run
from octavo.server import load_model
from octavo.server.worker import Served
from serving import SMALL, Running, running, slow

LINES = (
    "The cat sat on the mat, and the cat slept.", "جلست القطة على السجادة، ثم نامت القطة.",
    "बिल्ली चटाई पर बैठी, फिर बिल्ली सो गई।", "Le chat s’est assis sur le tapis, puis le chat a dormi.",
    "Die Katze saß auf der Matte, und die Katze schlief.", "0123456789 € 🦉 abcdefghijklmnopqrstuvwxyz",
)  # fmt: skip


@dataclass(frozen=True)
class Runs:
    """Two runs: one whose tokens are letters, and one whose tokens are bytes."""

    letters: Run
    bytes: Run


def trained(folder: Path) -> Runs:
    """Train them, twenty steps each; some steps are kept, and samples were written."""
    (folder / "text.txt").write_text("".join(f"{line}\n" for line in LINES) * 12, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:  # the cache of all tests is no test's own
        patch.setenv("OCTAVO_CACHE", str(folder / "cache"))
        letters, raw = (
            octavo.train(
                folder / "text.txt", out=folder / name, tokenizer=tokenizer, n_layer=2, n_head=2, n_embd=32,
                block_size=64, batch_size=4, max_steps=20, warmup_steps=4, eval_every=5, log_every=1, sample_every=5,
                keep_checkpoints=4, val_fraction=0.2, device="cpu", precision="fp32", compile="off",
            )
            for name, tokenizer in (("letters", "char"), ("bytes", "byte"))
        )  # fmt: skip
    return Runs(letters, raw)


def copied(run: Run, name: str) -> Run:
    """A run of another name, which may be written into."""
    folder = Path(tempfile.mkdtemp(dir=run.folder.parent)) / name
    shutil.copytree(run.folder, folder)
    return Run(folder)


def long(folder: Path) -> Path:
    """A model that takes 512 tokens, and belongs to no run."""
    return random_checkpoint(folder, "byte", std=0.05, block_size=512, n_layer=1, n_head=2, n_embd=32).folder


@contextlib.contextmanager
def served(runs: dict[str, Run], folders: dict[str, Path] | None = None, *, keys: tuple[str, ...] = (),
           slowly: Run | None = None) -> Iterator[Running]:  # fmt: skip
    """Serve runs, and models that belong to none; one of them slowly."""
    cpu = torch.device("cpu")
    named = {name: run.folder for name, run in runs.items()} | (folders or {})
    models: dict[str, Served] = {name: load_model(name, folder, cpu, SMALL) for name, folder in named.items()}
    if slowly:
        models["slow"] = slow(list(slowly.steps.values())[-1])
    with running(models, runs=runs, keys=keys) as it:
        yield it


def look(site: Running, view: str, model: str = "letters", **options: Any) -> Any:
    """A view, as the API answers it."""
    answer = site.post(f"/lens/{view}", model=model, **options)
    assert answer.status == 200, answer.body
    return answer.json


def ids_of(site: Running, text: str, model: str = "letters") -> list[int]:
    return [token["id"] for token in look(site, "tokens", model, text=text)["tokens"]]


def chances(logits: list[float]) -> list[float]:
    """Softmax, plainly."""
    powers = [math.exp(logit - max(logits)) for logit in logits]
    return [each / sum(powers) for each in powers]
