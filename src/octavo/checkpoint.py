"""The checkpoint folder: a Hugging Face GPT-2 folder with a few files beside it.

    config.json model.safetensors tokenizer.json tokenizer_config.json generation_config.json
    octavo.json                    settings, the data's fingerprint, step, losses
    trainer.safetensors .json      where training may go on: optimizer, counters, resolved device, ...
    manifest.json                  size and sha256 of all of them; written last

`AutoModelForCausalLM.from_pretrained(folder)` works on it as it lies. The folder appears whole or not at
all, and is held against its manifest when loaded. No pickle is written or read. Any Hugging Face GPT-2
folder loads too; it has no `octavo.json` and no manifest.
"""

import json
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from octavo import files, tokenizers
from octavo.errors import OctavoError
from octavo.model import GPT
from octavo.settings import ModelSettings, Settings
from octavo.tokenizers import Tokenizer

FORMAT = 1
TRAINER_FILES = ("trainer.safetensors", "trainer.json")

# GPT-2's released weights hold these as (in, out), where a linear layer has (out, in).
_TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
_BUFFERS = (".attn.bias", ".attn.masked_bias")  # old folders carry the causal mask along


@dataclass(frozen=True)
class Checkpoint:
    """A model with its tokenizer and settings, in evaluation mode, and what `octavo.json` says of it."""

    model: GPT
    tokenizer: Tokenizer
    settings: ModelSettings  # `Settings`, where Octavo trained it
    info: dict[str, Any]
    folder: Path


@dataclass(frozen=True)
class TrainerState:
    """What training needs to go on: tensors by name, and values that are JSON."""

    tensors: dict[str, Tensor]
    values: dict[str, Any] = field(default_factory=dict)


def save(folder: Path, model: GPT, tokenizer: Tokenizer, settings: Settings, info: dict[str, Any],
         trainer: TrainerState | None = None) -> None:  # fmt: skip
    """Write a checkpoint to `folder`, whole or not at all."""
    with files.atomic_folder(folder) as partial:
        _write_tensors(partial / "model.safetensors", _to_hf(model))
        tokenizer.save(partial)
        _write_json(partial / "config.json", _hf_config(model.settings, tokenizer))
        _write_json(partial / "generation_config.json", {
            "do_sample": True, "temperature": 0.8, "top_k": 200, "max_length": model.settings.block_size,
            "bos_token_id": tokenizer.end_of_text, "eos_token_id": tokenizer.end_of_text,
        })  # fmt: skip
        _write_json(partial / "octavo.json", {"format": FORMAT, "settings": asdict(settings), **info})
        if trainer is not None:
            _write_tensors(partial / "trainer.safetensors", trainer.tensors)
            _write_json(partial / "trainer.json", trainer.values)
        _write_json(partial / "manifest.json", _manifest(partial))


def load(folder: str | Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Load a checkpoint, or any Hugging Face GPT-2 folder, onto a device, in float32.

    Raises `OctavoError` if the folder is truncated, changed, of another architecture or not a checkpoint.
    """
    folder = Path(folder)
    check_manifest(folder)
    config = _read_json(folder / "config.json")
    info = _read_json(folder / "octavo.json") if (folder / "octavo.json").exists() else {}
    settings = _stored_settings(folder, info) if info else _settings_of_hf(folder, config)
    model, tokenizer = _load_model(folder, settings, device), tokenizers.load(folder)
    if tokenizer.vocab_size > settings.vocab_size:
        raise OctavoError(f"the tokenizer in {folder} has {tokenizer.vocab_size} tokens, its model only "
                          f"{settings.vocab_size}", "the tokenizer that the model was trained with")  # fmt: skip
    return Checkpoint(model, tokenizer, settings, info, folder)


def load_trainer(folder: Path) -> TrainerState:
    """What training needs to go on from a checkpoint. Raises `OctavoError` if only weights were kept."""
    if not all((folder / name).exists() for name in TRAINER_FILES):
        raise OctavoError(f"{folder} holds only weights, so training can't go on from it",
                          f"--init {folder}, which starts a new run from these weights")  # fmt: skip
    return TrainerState(_read_tensors(folder / "trainer.safetensors"), _read_json(folder / "trainer.json"))


def strip_trainer(folder: Path) -> None:
    """Keep a checkpoint's weights and drop what training needed; the manifest first, so a crash harms nothing."""
    manifest = _read_json(folder / "manifest.json")
    for name in TRAINER_FILES:
        manifest["files"].pop(name, None)
    files.write_atomic(folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")
    with files.translate_disk_errors(folder):
        for name in TRAINER_FILES:
            (folder / name).unlink(missing_ok=True)


def check_manifest(folder: Path) -> None:
    """Hold a folder's files against its manifest. Raises `OctavoError` naming the first that differs."""
    if not (folder / "config.json").is_file():
        raise OctavoError(f"{folder} is not a checkpoint: it has no config.json",
                          "a run folder, one of its checkpoints, or a Hugging Face GPT-2 folder")  # fmt: skip
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        if (folder / "octavo.json").exists():
            raise OctavoError(f"{folder} has no manifest.json, so it was not written to the end", _ANOTHER)
        return  # a folder from elsewhere
    try:
        listed = [(name, entry["bytes"], entry["sha256"]) for name, entry in _read_json(manifest)["files"].items()]
    except (KeyError, TypeError, AttributeError):
        raise OctavoError(f"{manifest} does not list the files with their sizes and sha256", _ANOTHER) from None
    for name, size, digest in listed:
        path = folder / name
        if not path.is_file():
            raise OctavoError(f"{path} is missing", _ANOTHER)
        if path.stat().st_size != size:
            raise OctavoError(f"{path} has {path.stat().st_size} bytes, its manifest says {size}", _ANOTHER)
        if files.sha256(path) != digest:
            raise OctavoError(f"{path} was changed after it was written: its sha256 differs", _ANOTHER)


_ANOTHER = "another checkpoint of the run: its folder checkpoints/ lists them"


def _to_hf(model: GPT) -> dict[str, Tensor]:
    """The weights in Hugging Face's layout. A model without biases gets zeros there, which compute the same."""
    weights = {}
    for name, parameter in model.named_parameters():  # the tied head comes once, as wte
        value = parameter.detach().float().cpu()
        weights[name] = value.t().contiguous() if name.endswith(_TRANSPOSED) else value.contiguous()
        if not model.settings.bias and name.endswith(".weight") and not name.endswith(("wte.weight", "wpe.weight")):
            weights[name.removesuffix("weight") + "bias"] = torch.zeros(parameter.shape[0])
    return weights


def _load_model(folder: Path, settings: ModelSettings, device: torch.device | str) -> GPT:
    path = folder / "model.safetensors"
    if not path.is_file():
        old = (folder / "pytorch_model.bin").exists()
        raise OctavoError(f"{folder} has no model.safetensors", "save it with safetensors: Octavo reads no pickle"
                          if old else "a folder with the weights in one file")  # fmt: skip
    stored = _read_tensors(path, device)
    model = meta_model(settings)
    weights = {}
    for name, value in stored.items():
        name = name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"
        if not name.endswith(_BUFFERS) and (settings.bias or not name.endswith("bias")):
            weights[name] = (value.t().contiguous() if name.endswith(_TRANSPOSED) else value).float()
    weights.pop("lm_head.weight", None)  # tied: it is `wte`, stored twice by some
    expected = {name: tuple(value.shape) for name, value in model.named_parameters()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise OctavoError(f"{path} does not fit its config.json: {name} is {found.get(name, 'missing')}, "
                              f"expected {expected.get(name, 'no such name')}", "another copy of it")  # fmt: skip
    model.load_state_dict(weights | {"lm_head.weight": weights["transformer.wte.weight"]}, assign=True)
    model.tie()
    return model.requires_grad_().eval()


def meta_model(settings: ModelSettings) -> GPT:
    """A model without numbers, on the meta device: shapes alone, or room for weights that are about to be loaded."""
    with torch.device("meta"), _Uninitialized():
        return GPT(settings)


class _Uninitialized(TorchFunctionMode):
    """Modules made here don't initialize their weights. On the meta device that imports PyTorch's compiler: 0.5 s."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init" and func.__name__.endswith("_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def _hf_config(settings: ModelSettings, tokenizer: Tokenizer) -> dict[str, Any]:
    """GPT2Config's fields."""
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
        "bos_token_id": tokenizer.end_of_text,
        "eos_token_id": tokenizer.end_of_text,
        "dtype": "float32",
    }


def _settings_of_hf(folder: Path, config: dict[str, Any]) -> ModelSettings:
    """The settings that a Hugging Face GPT-2's config.json describes, if this model computes the same."""
    if config.get("model_type") != "gpt2":
        raise OctavoError(f"{folder} holds a {config.get('model_type')!r} model; Octavo is a GPT-2", "a GPT-2 folder")
    width = config.get("n_embd", 768)
    differing = {
        "n_inner": (None, 4 * width if isinstance(width, int) else None), "layer_norm_epsilon": (1e-5,),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,), "tie_word_embeddings": (True,), "add_cross_attention": (False,),
        "activation_function": ("gelu_new", "gelu", "gelu_pytorch_tanh"),
    }  # fmt: skip
    for name, same in differing.items():
        if config.get(name, same[0]) not in same:
            raise OctavoError(f"{folder} has {name}={config[name]!r}, which GPT-2's own architecture does not",
                              "a GPT-2 folder")  # fmt: skip
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


def _stored_settings(folder: Path, info: dict[str, Any]) -> Settings:
    if info.get("format") != FORMAT:
        raise OctavoError(f"{folder} has format {info.get('format')!r}; this Octavo knows {FORMAT}", "a newer Octavo")
    unknown = sorted(info["settings"].keys() - {each.name for each in fields(Settings)})
    if unknown:  # ignoring one that changes what the model computes would give wrong results without a warning
        raise OctavoError(
            f"{folder} was trained with the setting {unknown[0]}, which this version of Octavo does not know",
            "the version of Octavo that wrote it",
        )
    return Settings(**info["settings"])


def _manifest(folder: Path) -> dict[str, Any]:
    listed = {p.name: {"bytes": p.stat().st_size, "sha256": files.sha256(p)} for p in sorted(folder.iterdir())}
    return {"format": FORMAT, "files": listed}


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    path.touch()
    mode = path.stat().st_mode  # any new file's; safetensors puts one in its place that only its owner may read
    try:
        safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    except safetensors.SafetensorError as error:  # it tells of a full disk in words only
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), str(error), str(path), int(code[1])) from error
    path.chmod(mode)


def _read_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    try:
        mapped = safetensors.torch.load_file(path, device=str(device))
        # Copies: else the file can't be removed (Windows), or changes the model when it is written over.
        return {name: value.clone() for name, value in mapped.items()}
    except (safetensors.SafetensorError, OSError) as error:
        raise OctavoError(f"{path} is damaged: {error}", "another copy of it, or another checkpoint") from None


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OctavoError(f"{path} is not readable: {error}", _ANOTHER) from None
    if not isinstance(value, dict):
        raise OctavoError(f"{path} does not hold a JSON object", _ANOTHER)
    return value
