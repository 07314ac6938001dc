"""Chooses the implementation of `Decoder` for a model and a machine."""

import torch

from octavo.errors import OctavoError
from octavo.generation.decoder import Decoder
from octavo.generation.int8 import round_to_int8
from octavo.generation.native import NativeDecoder
from octavo.generation.torch_decoder import TorchDecoder
from octavo.model import GPT
from octavo.native_library import UnavailableError

QUANTIZE = ("none", "int8")


def create_decoder(
    model: GPT, slots: int, quantize: str = "none", use_native: bool = True
) -> tuple[Decoder, list[str]]:
    """The fastest decoder available, and notices for the user if it is a fallback."""
    if quantize not in QUANTIZE:
        raise OctavoError(f"quantize={quantize!r} is not one of {', '.join(QUANTIZE)}", "--quantize int8")
    on_cpu = model.lm_head.weight.device.type == "cpu"
    if quantize == "int8" and not on_cpu:
        raise OctavoError("int8 weights are supported on a CPU only", "--device cpu, or no --quantize")
    if quantize == "int8" and model.lm_head.weight.dtype != torch.float32:
        message = f"int8 needs float32 weights; these are {model.lm_head.weight.dtype}"
        raise OctavoError(message, "model.float(), or no --quantize")
    notices = []
    if use_native and on_cpu:
        try:
            native = NativeDecoder(model, slots, quantize == "int8")
            return native, native.notices
        except UnavailableError as error:
            notices.append(f"{error}; generation falls back to PyTorch, at about half the speed")
            if quantize == "int8":
                notices.append("without the C code, int8 weights need the memory and time of float32 weights")
    return TorchDecoder(round_to_int8(model) if quantize == "int8" else model, slots), notices
