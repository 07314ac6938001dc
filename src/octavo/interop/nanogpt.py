"""Read and write nanoGPT's checkpoints: ckpt.pt, with the characters in meta.pkl if the tokens are characters.

The files written here are the only pickles that Octavo writes. They hold tensors, numbers, strings, lists and dicts.
"""

import os
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from octavo import files, tokenizers, weights
from octavo.checkpoint import Checkpoint
from octavo.errors import OctavoError, translate_setting_errors
from octavo.interop import meta_pkl
from octavo.model import GPT
from octavo.schema import Count, FileName, check
from octavo.settings import ModelSettings
from octavo.tokenizers import Tokenizer

_PADDED_VOCAB_SIZE = 50_304  # nanoGPT's, for GPT-2's 50,257 tokens
_ANOTHER_FILE = "a ckpt.pt that nanoGPT's train.py wrote"  # a hint


class _ModelArguments(msgspec.Struct):
    """nanoGPT's `GPTConfig`."""

    n_layer: Count
    n_head: Count
    n_embd: Count
    block_size: Count
    vocab_size: Count
    bias: bool
    dropout: float


class _TrainingConfig(msgspec.Struct):
    """What is read of the settings of nanoGPT's train.py."""

    dataset: FileName | None = None


class _OptimizerContent(msgspec.Struct):
    """The state of PyTorch's AdamW, by the numbers of the parameters."""

    state: dict[int, dict[str, Any]]


class _Content(msgspec.Struct):
    """What is read of a ckpt.pt."""

    model: dict[str, Any]
    model_args: _ModelArguments
    optimizer: _OptimizerContent | None = None
    config: _TrainingConfig = msgspec.field(default_factory=_TrainingConfig)


def find_file(path: Path) -> Path | None:
    """The ckpt.pt that `path` means: the file itself, or the one in an output folder of nanoGPT."""
    # os.path: False, not an OSError, if the name is too long
    if path.suffix == ".pt" and os.path.isfile(path):
        return path
    return path / "ckpt.pt" if os.path.isfile(path / "ckpt.pt") else None


def load(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Load a ckpt.pt onto a device, in float32.

    The characters come from meta.pkl beside the file, or from data/NAME/meta.pkl of the nanoGPT folder, where NAME is
    the dataset that the file names. Without either, the tokenizer is GPT-2's, if the vocabulary has its size.
    """
    content = check(weights.read_pickle(path), _Content, str(path), _ANOTHER_FILE)
    arguments = content.model_args
    with translate_setting_errors(path):
        settings = ModelSettings(
            block_size=arguments.block_size,
            vocab_size=arguments.vocab_size,
            n_layer=arguments.n_layer,
            n_head=arguments.n_head,
            n_embd=arguments.n_embd,
            bias=arguments.bias,
            dropout=arguments.dropout,
            attention_dropout=arguments.dropout,
            activation="gelu",
        )
    named = {name.removeprefix("_orig_mod."): value for name, value in content.model.items()}  # of torch.compile
    kept = {name: value for name, value in named.items() if not name.endswith(".attn.bias")}  # the causal mask
    model = weights.build_model(settings, weights.move_state_dict(path, kept, device), path, "model_args")
    return Checkpoint(model, _find_tokenizer(path, arguments.vocab_size, content.config.dataset), settings, {}, path)


def load_optimizer_state(path: Path, model: GPT) -> dict[str, Tensor]:
    """AdamW's state in a ckpt.pt, named as a checkpoint of Octavo names it: `exp_avg.transformer.wte.weight`.

    nanoGPT numbers the parameters: first matrices and tables, then biases and norms, each in the order of the model.
    Returns nothing if the file has no state.
    """
    content = check(weights.read_pickle(path), _Content, str(path), _ANOTHER_FILE)
    if content.optimizer is None or not content.optimizer.state:
        return {}
    named = sorted(model.named_parameters(), key=lambda item: item[1].dim() < 2)
    expected = {
        f"{key}.{name}": torch.Size() if key == "step" else parameter.shape
        for name, parameter in named
        for key in ("step", "exp_avg", "exp_avg_sq")
    }
    state = {
        f"{key}.{named[number][0]}": torch.as_tensor(value, dtype=torch.float32)
        for number, values in content.optimizer.state.items()
        for key, value in values.items()
        if number < len(named) and isinstance(value, int | float | Tensor)
    }
    if {name: value.shape for name, value in state.items()} != expected:
        raise OctavoError(f"{path} has the optimizer's state of another model", _ANOTHER_FILE)
    return state


def _find_tokenizer(path: Path, vocab_size: int, dataset: str | None) -> Tokenizer:
    candidates = [path.parent / "meta.pkl"]
    if dataset is not None:
        candidates.append(path.parent.parent / "data" / dataset / "meta.pkl")
    for meta in candidates:
        if meta.is_file():
            tokenizer = meta_pkl.load_tokenizer(meta)
            if tokenizer.vocab_size != vocab_size:
                raise OctavoError(
                    f"{meta} has {tokenizer.vocab_size} tokens, but {path} a vocabulary of {vocab_size}",
                    f"the meta.pkl of the dataset that the model was trained on, beside {path.name}",
                )
            return tokenizer
    if vocab_size in (tokenizers.FIXED_VOCAB_SIZES["gpt2"], _PADDED_VOCAB_SIZE):
        return tokenizers.build("gpt2", "")
    raise OctavoError(
        f"{path} has a vocabulary of {vocab_size}, whose characters are not in the file",
        f"copy the meta.pkl of its dataset to {path.parent}",
    )


def write(checkpoint: Checkpoint, out: Path, precision: str) -> list[str]:
    """Write a folder for `python sample.py --out_dir=OUT`."""
    settings, tokenizer, info = checkpoint.settings, checkpoint.tokenizer, checkpoint.info
    name = out.name
    names = ("n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size", "dropout")
    content = {
        "model": {key: value.clone() for key, value in checkpoint.model.state_dict().items()},
        "model_args": {key: getattr(settings, key) for key in names},
        "iter_num": info.get("step", 0),
        "best_val_loss": info.get("val_loss") or 1e9,  # nanoGPT starts with 1e9
        "config": {"dataset": name},
    }
    with files.atomic_folder(out) as partial:
        _save(content, partial / "ckpt.pt")
        if tokenizer.kind == "char":
            meta_pkl.write(partial / "meta.pkl", tokenizer)
    return _notices(checkpoint, out)


def _save(content: dict[str, Any], path: Path) -> None:
    """`torch.save`, but a failure of the disk is an `OSError`."""
    try:
        with open(path, "wb") as file:
            torch.save(content, file)
    except RuntimeError as error:
        # After the `OSError` of a write, PyTorch raises another error while it closes the archive.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _notices(checkpoint: Checkpoint, out: Path) -> list[str]:
    notices, kind = [], checkpoint.tokenizer.kind
    if checkpoint.settings.activation != "gelu":
        notices.append("nanoGPT computes the exact GELU, this model its tanh approximation: logits differ slightly")
    if kind == "char":
        notices.append(f"copy {out / 'meta.pkl'} to data/{out.name}/ of nanoGPT; sample.py reads the characters there")
    elif kind != "gpt2":
        notices.append(f"nanoGPT has no {kind} tokenizer: its sample.py would decode the ids as GPT-2's")
    return notices
