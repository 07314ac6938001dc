"""Write what nanoGPT's sample.py loads: a folder with ckpt.pt, and meta.pkl if the tokens are characters.

These are the only pickles that Octavo writes. They hold tensors, numbers, strings and dicts, so nanoGPT's own
`torch.load` accepts them with `weights_only=True`.
"""

import pickle
from pathlib import Path

import torch

from octavo import files
from octavo.checkpoint import Checkpoint


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
        torch.save(content, partial / "ckpt.pt")
        if tokenizer.kind == "char":
            characters = [token.decode() for token in tokenizer.token_bytes]
            ids = {character: id for id, character in enumerate(characters)}
            meta = {"vocab_size": len(ids), "stoi": ids, "itos": {id: character for character, id in ids.items()}}
            (partial / "meta.pkl").write_bytes(pickle.dumps(meta))
    return _notices(checkpoint, out)


def _notices(checkpoint: Checkpoint, out: Path) -> list[str]:
    notices, kind = [], checkpoint.tokenizer.kind
    if checkpoint.settings.activation != "gelu":
        notices.append("nanoGPT computes the exact GELU, this model its tanh approximation: logits differ slightly")
    if kind == "char":
        notices.append(f"copy {out / 'meta.pkl'} to data/{out.name}/ of nanoGPT; sample.py reads the characters there")
    elif kind != "gpt2":
        notices.append(f"nanoGPT has no {kind} tokenizer: its sample.py would decode the ids as GPT-2's")
    return notices
