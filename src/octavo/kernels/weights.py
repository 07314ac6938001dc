"""What C code needs of a model's weights: to it, every pointer is an array of floats."""

import torch
from torch import nn

from octavo.native_library import UnavailableError


def check_weights(model: nn.Module) -> None:
    """Raise `UnavailableError` unless all weights are contiguous float32 tensors on the CPU, and not sharded."""
    for name, weight in model.named_parameters():
        if hasattr(weight, "device_mesh"):  # a DTensor
            raise UnavailableError(f"the C code needs whole weights, and {name} is sharded")
        if weight.dtype != torch.float32 or weight.device.type != "cpu" or not weight.is_contiguous():
            form = "" if weight.is_contiguous() else "not contiguous, "
            raise UnavailableError(
                f"the C code needs contiguous float32 weights on the CPU, and {name} is {form}{weight.dtype} "
                f"on {weight.device}"
            )
