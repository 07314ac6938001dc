"""Run nanoGPT's own scripts, unmodified, in a copy of a checkout. Used by the other benchmarks."""

import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import machine
from octavo.loss import TokenSequence
from octavo.model import GPT
from octavo.settings import resolve


class NanoGPT:
    """A copy of the checkout inside `folder`; the original is never written to."""

    def __init__(self, checkout: Path, folder: Path) -> None:
        self.folder = Path(shutil.copytree(checkout, folder / "nanogpt", ignore=shutil.ignore_patterns(".git")))
        self.characters = self.folder / "data" / "shakespeare_char"

    def prepare_characters(self, text: Path) -> np.ndarray:
        """Run its `data/shakespeare_char/prepare.py` on a text. Returns the token ids of the validation split."""
        shutil.copy(text, self.characters / "input.txt")
        command = [sys.executable, "prepare.py"]
        environment = machine.environment_of_peers()
        subprocess.run(command, cwd=self.characters, check=True, stdout=subprocess.DEVNULL, env=environment)
        return np.fromfile(self.characters / "val.bin", dtype=np.uint16)

    def write_tokens(self, name: str, train: TokenSequence, val: TokenSequence, vocab_size: int | None = None) -> None:
        """Write splits as its train.py reads them. Without vocab_size, train.py uses GPT-2's, rounded up."""
        data = self.folder / "data" / name
        data.mkdir()
        if vocab_size is not None:
            (data / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": vocab_size}))
        train[:].astype(np.uint16).tofile(data / "train.bin")
        val[:].astype(np.uint16).tofile(data / "val.bin")

    def train(self, config: str, **flags: Any) -> str:
        """Run its train.py, and return what it prints."""
        command = [sys.executable, "train.py", f"config/{config}.py", *(f"--{k}={v}" for k, v in flags.items())]
        environment = machine.environment_of_peers()
        process = subprocess.run(command, cwd=self.folder, check=True, capture_output=True, text=True, env=environment)
        return process.stdout

    def load_model(self, out_dir: str) -> GPT:
        """The checkpoint that it saved (the best by its own estimate), as Octavo's model."""
        saved = torch.load(self.folder / out_dir / "ckpt.pt", weights_only=True, map_location="cpu")
        names = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "bias")
        model = GPT(resolve(**{name: saved["model_args"][name] for name in names}, activation="gelu"))
        model.load_state_dict({name.removeprefix("_orig_mod."): value for name, value in saved["model"].items()})
        return model


def step_milliseconds(output: str) -> list[float]:
    """The time of each step in the output of train.py with `log_interval=1`."""
    return [float(ms) for ms in re.findall(r"iter \d+: loss [\d.]+, time ([\d.]+)ms", output)]
