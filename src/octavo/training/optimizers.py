"""The update rule, and its state as named tensors that a checkpoint can hold."""

import torch
from torch import Tensor

from octavo.model import GPT
from octavo.settings import TrainingSettings


def build(model: GPT, settings: TrainingSettings) -> torch.optim.Optimizer:
    """AdamW with decoupled decay (Loshchilov and Hutter, 2019) on matrices, none on biases and norms."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    # Fused also on CPU: one pass over each tensor instead of a dozen.
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(settings.beta1, settings.beta2), fused=True)


def state_tensors(optimizer: torch.optim.Optimizer, model: GPT) -> dict[str, Tensor]:
    """The optimizer's state, each tensor named after its parameter: `exp_avg.transformer.wte.weight`."""
    return {
        f"{key}.{name}": value.detach().contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def load_state_tensors(optimizer: torch.optim.Optimizer, model: GPT, tensors: dict[str, Tensor]) -> None:
    """Put back what `state_tensors` gave."""
    for full_name, value in tensors.items():
        key, _, name = full_name.partition(".")
        parameter = model.get_parameter(name)
        # AdamW counts its steps on the CPU unless fused on a GPU; there it follows the parameter.
        optimizer.state[parameter][key] = value.to(parameter.device)
