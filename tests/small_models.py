"""Small models with random weights, whose next token depends on all tokens before it, and small tokenizers."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from octavo import tokenizers
from octavo.checkpoint import Checkpoint
from octavo.generation.sampling import Sampling
from octavo.model import GPT
from octavo.settings import ModelSettings
from octavo.tokenizers import Tokenizer

GREEDY = Sampling(temperature=0)
ALL = Sampling(temperature=1, top_k=0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


VARIED = (9, 5, 18)  # seeds of models whose greedy text does not soon repeat


def spread_model(seed: int = 9, **shape: Any) -> GPT:
    """A small model with large random weights, so that every token of the context matters."""
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 8, "vocab_size": 11} | shape
    model = GPT(ModelSettings(**shape)).eval()
    generator = seeded(seed)
    for name, parameter in model.named_parameters():
        mean = 1.0 if ".ln_" in name and name.endswith("weight") else 0.0
        std = 1.0 if parameter.dim() == 2 and "wte" not in name else 0.2
        nn.init.normal_(parameter, mean, std, generator=generator)
    return model


def small_checkpoint(tokenizer: Tokenizer, **shape: Any) -> Checkpoint:
    """A checkpoint of such a model, as `octavo.load` returns it, but without a folder."""
    model = spread_model(**{"vocab_size": tokenizer.vocab_size} | shape)
    return Checkpoint(model, tokenizer, model.settings, {}, Path("nowhere"))


def without_end_of_text(tokenizer: Tokenizer) -> Tokenizer:
    """A `char`, `byte` or `word` tokenizer as earlier versions built it, and as nanoGPT's data has it."""
    description = json.loads(tokenizer.backend.to_str())
    return Tokenizer(tokenizer.backend.from_str(json.dumps(description | {"added_tokens": []})))


# Without an end-of-text token, a random model generates as many tokens as it is asked for.
CHARS = without_end_of_text(tokenizers.build("char", "abcdefg \n"))
BYTES = without_end_of_text(tokenizers.build("byte", ""))
BPE = tokenizers.build("bpe:300", "the cat sat on the mat, किताब 🦉 किताब 🦉, the cat sat on the mat")
