"""Hugging Face's GPT-2 folders: config.json, and the names and layout of the weights.

Octavo's checkpoints are such folders. Those of other programs may have sharded weights, or pickled ones in
pytorch_model.bin.
"""

import json
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from octavo import weights
from octavo.errors import OctavoError, translate_setting_errors
from octavo.interop.formats import MAX_FILE_BYTES
from octavo.model import GPT
from octavo.schema import FileName, read_json
from octavo.settings import ModelSettings
from octavo.tokenizers import Tokenizer

# Hugging Face's GPT-2 stores these as (in, out); torch.nn.Linear has (out, in).
_TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
_MODULES = ("wte.", "wpe.", "h.", "ln_f.")  # a file of GPT2Model, which has no head, leaves out "transformer."
_BUFFERS = (".attn.bias", ".attn.masked_bias")  # the causal mask, stored in old folders
_COMPLETE = "a complete copy of the folder"  # a hint
INDEX = "model.safetensors.index.json"  # which file has which weight, if there are several


def write_model(folder: Path, model: GPT, tokenizer: Tokenizer, max_file_bytes: int = MAX_FILE_BYTES) -> None:
    """Write all that transformers reads into an existing folder. Weights of more than `max_file_bytes` are sharded."""
    write_weights(folder, model, max_file_bytes)
    write_config_and_tokenizer(folder, model.settings, tokenizer)


def write_weights(folder: Path, model: GPT, max_file_bytes: int = MAX_FILE_BYTES) -> None:
    """Write model.safetensors; or model-00001-of-0000N.safetensors, ... and an index, each with whole tensors.

    Only the tensors of one file are copied at a time.
    """
    parameters = _stored_parameters(model)
    files: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, parameter in parameters.items():
        if files[-1] and size + 4 * parameter.numel() > max_file_bytes:
            files.append({})
            size = 0
        files[-1][name] = parameter
        size += 4 * parameter.numel()
    names = ["model.safetensors"]
    if len(files) > 1:
        names = [f"model-{number:05}-of-{len(files):05}.safetensors" for number in range(1, len(files) + 1)]
    for file_name, tensors in zip(names, files, strict=True):
        weights.write_tensors(folder / file_name, {name: _to_stored(name, value) for name, value in tensors.items()})
    if len(files) > 1:
        total = sum(4 * parameter.numel() for parameter in parameters.values())
        files_by_weight = {name: file_name for file_name, file in zip(names, files, strict=True) for name in file}
        index = {"metadata": {"total_size": total}, "weight_map": files_by_weight}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _stored_parameters(model: GPT) -> dict[str, Tensor]:
    """The parameters by their names in Hugging Face's folders, in the order in which they are stored.

    A model without biases gets biases of zero, which compute the same.
    """
    stored: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():  # the tied output head is listed once, as wte
        stored[name] = parameter.detach()
        if not model.settings.bias and name.endswith(".weight") and not name.endswith(("wte.weight", "wpe.weight")):
            stored[name.removesuffix("weight") + "bias"] = torch.zeros(parameter.shape[0])
    return stored


def _to_stored(name: str, parameter: Tensor) -> Tensor:
    """A parameter in Hugging Face's layout, float32, in main memory."""
    value = parameter.float().cpu()
    return value.t().contiguous() if name.endswith(_TRANSPOSED) else value.contiguous()


def write_config_and_tokenizer(folder: Path, settings: ModelSettings, tokenizer: Tokenizer) -> None:
    """Write the tokenizer, config.json and generation_config.json."""
    tokenizer.save(folder, max_length=settings.block_size)
    # A `max_length` would make `generate` warn.
    sampling: dict[str, Any] = {"do_sample": True, "temperature": 0.8, "top_k": 200}
    if tokenizer.untrained_ids:
        sampling["suppress_tokens"] = tokenizer.untrained_ids
    for name, content in (
        ("config.json", config(settings, tokenizer)),
        ("generation_config.json", sampling | special_token_ids(tokenizer)),
    ):
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_model(folder: Path, settings: ModelSettings, device: torch.device | str) -> GPT:
    """The model of a folder, in float32 and evaluation mode. Raises `OctavoError` if the weights do not fit."""
    paths = _weight_files(folder)
    loaded: dict[str, Tensor] = {}
    for path in paths:
        for name, value in weights.read_tensors(path, device).items():
            name = f"transformer.{name}" if name.startswith(_MODULES) else name
            if not name.endswith(_BUFFERS) and (settings.bias or not name.endswith("bias")):
                loaded[name] = value.t().contiguous() if name.endswith(_TRANSPOSED) else value
    source = paths[0] if len(paths) == 1 else folder
    return weights.build_model(settings, loaded, source, "config.json")


class _Index(msgspec.Struct):
    """The contents of model.safetensors.index.json: the file of each weight."""

    weight_map: dict[str, FileName]


def _weight_files(folder: Path) -> list[Path]:
    """The files with the weights: safetensors if there are any, else pickles; one, or several that an index lists.

    A folder with a manifest, which Octavo wrote, has no pickles.
    """
    has_manifest = (folder / "manifest.json").exists()
    if (folder / "model.safetensors").is_file() or (has_manifest and not (folder / INDEX).is_file()):
        return [folder / "model.safetensors"]
    for name in (INDEX, "pytorch_model.bin.index.json"):
        if (folder / name).is_file():
            names = sorted(set(read_json(folder / name, _Index, _COMPLETE).weight_map.values()))
            missing = [each for each in names if not (folder / each).is_file()]
            if missing or not names:
                problem = f"{missing[0]}, which is missing" if missing else "no file"
                raise OctavoError(f"{folder / name} lists {problem}", _COMPLETE)
            return [folder / each for each in names]
    if (folder / "pytorch_model.bin").is_file():
        return [folder / "pytorch_model.bin"]
    raise OctavoError(f"{folder} has no model.safetensors, and no other file with weights", _COMPLETE)


def safetensors_files(folder: Path) -> list[Path]:
    """The safetensors files with the weights of a folder that can be loaded; none if its weights are pickled."""
    try:
        return [path for path in _weight_files(folder) if path.suffix == ".safetensors" and path.is_file()]
    except OctavoError:
        return []


def is_complete(folder: Path) -> bool:
    """Whether a folder has a config.json, all its weights and a tokenizer."""
    try:
        _weight_files(folder)
    except OctavoError:
        return False
    has_tokenizer = (folder / "tokenizer.json").is_file() or (folder / "merges.txt").is_file()
    return has_tokenizer and (folder / "config.json").is_file()


def config(settings: ModelSettings, tokenizer: Tokenizer) -> dict[str, Any]:
    """The contents of config.json."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": settings.vocab_size,
        "n_positions": settings.block_size,
        "n_ctx": settings.block_size,
        "n_embd": settings.n_embd,
        "n_layer": settings.n_layer,
        "n_head": settings.n_head,
        "n_inner": None,
        "activation_function": settings.activation,
        "embd_pdrop": settings.dropout,
        "resid_pdrop": settings.dropout,
        "attn_pdrop": settings.attention_dropout,
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "scale_attn_weights": True,
        "tie_word_embeddings": True,
        "use_cache": True,
        **special_token_ids(tokenizer),
        "dtype": "float32",
    }


def special_token_ids(tokenizer: Tokenizer) -> dict[str, int | None]:
    """The ids of special tokens by which transformers starts, ends and pads texts."""
    ids = {"bos_token_id": tokenizer.beginning_of_text, "eos_token_id": tokenizer.end_of_text}
    pad = tokenizer.special_token_id("pad_token")
    return ids if pad is None else ids | {"pad_token_id": pad}


def parse_config(folder: Path, config: dict[str, Any]) -> ModelSettings:
    """The settings in a Hugging Face GPT-2 config.json. Raises `OctavoError` if `GPT` would compute something else."""
    if config.get("model_type") != "gpt2":
        raise OctavoError(
            f"{folder} holds a {config.get('model_type')!r} model; Octavo loads only GPT-2", "a GPT-2 folder"
        )
    width = config.get("n_embd", 768)
    supported = {  # the first is the default
        "n_inner": (None, 4 * width if isinstance(width, int) else None),
        "layer_norm_epsilon": (1e-5,),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "tie_word_embeddings": (True,),
        "add_cross_attention": (False,),
        "activation_function": ("gelu_new", "gelu", "gelu_pytorch_tanh"),
    }
    for name, values in supported.items():
        if config.get(name, values[0]) not in values:
            raise OctavoError(
                f"{folder} has {name}={config[name]!r}, which is not GPT-2's architecture", "a GPT-2 folder"
            )
    with translate_setting_errors(folder / "config.json"):
        return ModelSettings(
            block_size=config.get("n_positions", 1024),
            vocab_size=config.get("vocab_size", 50257),
            n_layer=config.get("n_layer", 12),
            n_head=config.get("n_head", 12),
            n_embd=width,
            dropout=config.get("resid_pdrop", 0.1),
            attention_dropout=config.get("attn_pdrop", 0.1),
            activation="gelu" if config.get("activation_function") == "gelu" else "gelu_new",
        )
