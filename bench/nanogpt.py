"""nanoGPT, run as it is: a checkout, copied aside, whose own scripts prepare and train. Used by the benchmarks here."""

import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from octavo.model import GPT
from octavo.settings import resolve


class NanoGPT:
    """A copy of a checkout in `folder`."""

    def __init__(self, checkout: Path, folder: Path) -> None:
        self.folder = Path(shutil.copytree(checkout, folder / "nanogpt", ignore=shutil.ignore_patterns(".git")))
        self.characters = self.folder / "data" / "shakespeare_char"

    def prepare_characters(self, text: Path) -> np.ndarray:
        """Let its `data/shakespeare_char/prepare.py` prepare a text; the validation split's ids."""
        shutil.copy(text, self.characters / "input.txt")
        subprocess.run([sys.executable, "prepare.py"], cwd=self.characters, check=True, stdout=subprocess.DEVNULL)
        return np.fromfile(self.characters / "val.bin", dtype=np.uint16)

    def put(self, name: str, train: np.ndarray, val: np.ndarray, vocab_size: int | None = None) -> None:
        """Tokens as its train.py reads them; without a vocabulary's size it takes GPT-2's, rounded up."""
        data = self.folder / "data" / name
        data.mkdir()
        if vocab_size is not None:
            (data / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": vocab_size}))
        train.astype(np.uint16).tofile(data / "train.bin")
        val.astype(np.uint16).tofile(data / "val.bin")

    def train(self, config: str, **flags: Any) -> str:
        """What its train.py prints."""
        words = [sys.executable, "train.py", f"config/{config}.py", *(f"--{k}={v}" for k, v in flags.items())]
        return subprocess.run(words, cwd=self.folder, check=True, capture_output=True, text=True).stdout

    def model(self, out_dir: str) -> GPT:
        """The checkpoint that it kept, the best by its own estimate, as a model that Octavo can score."""
        kept = torch.load(self.folder / out_dir / "ckpt.pt", weights_only=True, map_location="cpu")
        names = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "bias")
        model = GPT(resolve(**{name: kept["model_args"][name] for name in names}, activation="gelu"))
        model.load_state_dict({name.removeprefix("_orig_mod."): value for name, value in kept["model"].items()})
        return model


def step_milliseconds(printed: str) -> list[float]:
    """The time of each step, as train.py prints it with `log_interval=1`."""
    return [float(ms) for ms in re.findall(r"iter \d+: loss [\d.]+, time ([\d.]+)ms", printed)]
