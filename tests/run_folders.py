"""Run folders with small checkpoints."""

from pathlib import Path

import hypothesis
import torch

from octavo import tokenizers
from octavo.checkpoint import TrainerState
from octavo.model import GPT
from octavo.runs import Run
from octavo.settings import Settings

TOKENIZER = tokenizers.build("char", "ab\n")
SETTINGS = Settings(n_layer=1, n_head=1, n_embd=4, block_size=4, vocab_size=4, max_steps=100, keep_checkpoints=0)
law = hypothesis.settings(derandomize=True, deadline=None, max_examples=40)


def model_of(step: int) -> GPT:
    """Different weights for every step."""
    return GPT(SETTINGS, torch.Generator().manual_seed(step)).eval()


def save(run: Run, step: int, best: bool = False, weights_only: bool = False, settings: Settings = SETTINGS) -> Path:
    """Save the checkpoint of a step."""
    state = None if weights_only else TrainerState({"x": torch.zeros(1)}, {"step": step})
    return run.save(step, model_of(step), TOKENIZER, settings, {"step": step}, state, best)
