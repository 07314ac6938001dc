"""Small runs for the page's tests, trained in seconds, and servers of them."""

import contextlib
import dataclasses
import math
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import octavo
from lenses import random_checkpoint
from octavo.runs import Run
from octavo.server import load_model
from serving import SETTINGS, RunningServer, run_server, slow_model

TEXT = "the cat sat on the mat"  # the letters are tokens of both runs
CHAT_TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"
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
    """Two runs: the tokens of `letters` are characters, those of `bytes` are bytes."""

    letters: Run
    bytes: Run

    @classmethod
    def in_folder(cls, folder: Path) -> "Runs":
        return cls(Run(folder / "letters"), Run(folder / "bytes"))


def train_runs(folder: Path) -> None:
    """Train both for 20 steps, with checkpoints and samples along the way."""
    folder.mkdir()
    (folder / "text.txt").write_text("".join(f"{line}\n" for line in LINES) * 12, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:  # do not write into the cache that the tests share
        patch.setenv("OCTAVO_CACHE", str(folder / "cache"))
        for name, tokenizer in (("letters", "char"), ("bytes", "byte")):
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


def copy_run(run: Run, name: str) -> Run:
    """Copy a run under another name, so that a test can write into it."""
    folder = Path(tempfile.mkdtemp(dir=run.folder.parent)) / name
    shutil.copytree(run.folder, folder)
    return Run(folder)


def write_long_model(folder: Path) -> Path:
    """Write the checkpoint of a model with a context of 512 tokens that belongs to no run."""
    return random_checkpoint(folder, "byte", std=0.05, block_size=512, n_layer=1, n_head=2, n_embd=32).folder


@contextlib.contextmanager
def serve_runs(
    runs: dict[str, Run],
    folders: dict[str, Path] | None = None,
    *,
    keys: dict[str, str] | None = None,
    slow_run: Run | None = None,
    templates: dict[str, str] | None = None,
) -> Iterator[RunningServer]:
    """Serve runs, checkpoint folders that belong to no run, and `slow_run` with a slow engine under the name `slow`.

    `templates` are chat templates by the names of their models.
    """
    sources = {name: run.folder for name, run in runs.items()} | (folders or {})
    models = {name: load_model(name, source, SETTINGS) for name, source in sources.items()}
    for name, template in (templates or {}).items():
        models[name] = dataclasses.replace(models[name], own_chat_template=template)
    if slow_run:
        models["slow"] = slow_model(list(slow_run.checkpoints.values())[-1])
    with run_server(models, runs=runs, keys=keys) as site:
        yield site


def token_ids(site: RunningServer, text: str, model: str = "letters") -> list[int]:
    return [token["id"] for token in site.view("tokens", model, text=text)["tokens"]]


def softmax(logits: list[float]) -> list[float]:
    powers = [math.exp(logit - max(logits)) for logit in logits]
    return [power / sum(powers) for power in powers]
