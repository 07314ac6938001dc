"""Model weights in files: safetensors, and PyTorch's pickled state dicts, of which only tensors are read."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from octavo.errors import OctavoError, first_line
from octavo.model import GPT
from octavo.settings import ModelSettings

_ANOTHER_COPY = "another copy of the file, or another checkpoint"  # a hint


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file with the permissions of a new file."""
    # safetensors writes a file that only its owner can read. An empty file shows the mode that a new file should have.
    path.touch()
    mode = path.stat().st_mode
    try:
        safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    except safetensors.SafetensorError as error:
        # The exception has no errno: a full disk is reported only in the message. Translate it, or raise it unchanged.
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), str(error), str(path), int(code[1])) from error
    path.chmod(mode)


def read_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Read a safetensors file, or a pickled state dict if the name ends in .bin. Raises `OctavoError`."""
    if path.suffix == ".bin":
        return move_state_dict(path, read_pickle(path), device)
    try:
        mapped = safetensors.torch.load_file(path, device=str(device))
        # Copies, because a memory-mapped file can't be removed on Windows, and overwriting it changes the model.
        return {name: value.clone() for name, value in mapped.items()}
    except (safetensors.SafetensorError, OSError) as error:
        raise OctavoError(f"{path} is damaged: {error}", _ANOTHER_COPY) from None


def read_pickle(path: Path) -> Any:
    """Read a file of `torch.save` that has only tensors and plain data. No code in it runs. Raises `OctavoError`."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise nearly any exception
        message = f"{path} can't be read as tensors and plain data: {first_line(error)}"
        raise OctavoError(message, _ANOTHER_COPY) from None


def move_state_dict(path: Path, content: Any, device: torch.device | str) -> dict[str, Tensor]:
    """Move a state dict to a device. Raises `OctavoError`, which names `path`, if it is not a dict of tensors."""
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise OctavoError(f"{path} does not hold a dict of tensors", _ANOTHER_COPY)
    return {str(name): value.detach().to(device) for name, value in content.items()}


def check_types(
    path: Path, tensors: dict[str, Tensor], hint: str = "a copy of the model that is not quantized"
) -> None:
    """Raise `OctavoError` for tensors that are not floats of 16 bits or more."""
    for name, value in tensors.items():
        if value.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            raise OctavoError(
                f"{path} has {name} in {str(value.dtype).removeprefix('torch.')}, expected float32, float16, bfloat16 "
                "or float64",
                hint,
            )


def build_model(settings: ModelSettings, weights: dict[str, Tensor], path: Path, config_name: str) -> GPT:
    """A model in evaluation mode with these weights, converted to float32. Their names are those of `GPT`.

    The output head may be left out, since it is tied to the token embedding. Raises `OctavoError` if a weight is
    missing, has another shape, or does not belong to the model, and if the head is not tied. The error names `path`,
    where the weights are from, and `config_name`, the source of the settings.
    """
    check_types(path, weights)
    wte, head = weights.get("transformer.wte.weight"), weights.get("lm_head.weight")
    if wte is not None and head is not None and not _are_equal(wte, head):
        raise OctavoError(
            f"{path} has an output head, lm_head.weight, that differs from the token embedding; GPT-2's are tied",
            "a model with GPT-2's architecture",
        )
    weights = {name: value for name, value in weights.items() if name != "lm_head.weight"}
    expected = {name: tuple(value.shape) for name, value in meta_model(settings).named_parameters()}
    actual = {name: tuple(value.shape) for name, value in weights.items()}
    for name in sorted(expected.keys() | actual.keys()):
        if expected.get(name) != actual.get(name):
            raise OctavoError(
                f"{path} does not match its {config_name}: {name} is {actual.get(name, 'missing')}, "
                f"expected {expected.get(name, 'no such name')}",
                "another copy of the folder"
                if name.startswith("transformer.")
                else "a GPT-2 with a language modeling head: GPT2LMHeadModel of transformers",
            )
    return assemble_model(settings, {name: value.float().contiguous() for name, value in weights.items()}).eval()


def _are_equal(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.allclose(first.float(), second.float(), rtol=0, atol=0, equal_nan=True)


def assemble_model(settings: ModelSettings, parameters: Mapping[str, Tensor]) -> GPT:
    """A model whose parameters are these tensors, not copies of them. `lm_head.weight` need not be among them."""
    model = meta_model(settings)
    model.load_state_dict({**parameters, "lm_head.weight": parameters["transformer.wte.weight"]}, assign=True)
    model.tie()
    return model.requires_grad_()


def meta_model(settings: ModelSettings) -> GPT:
    """A model on the meta device: shapes without values, for counting or before its weights are loaded."""
    with torch.device("meta"), _SkipInitialization():
        return GPT(settings)


class _SkipInitialization(TorchFunctionMode):
    """Skips weight initialization, which on the meta device imports PyTorch's compiler and takes 0.5 s."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init" and func.__name__.endswith("_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))
