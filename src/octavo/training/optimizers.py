"""Which rule updates which parameter, and the rules' state as named tensors that a checkpoint can hold."""

import torch
from torch import Tensor

from octavo.model import GPT
from octavo.settings import TrainingSettings
from octavo.training.adamw import AdamW
from octavo.training.muon import Muon

Optimizer = AdamW | Muon


def build(model: GPT, settings: TrainingSettings, precision: str = "fp32") -> list[Optimizer]:
    """AdamW for all, or Muon for the blocks' matrices and AdamW for the rest.

    AdamW decays (decoupled: Loshchilov and Hutter, 2019) matrices and tables, not biases and norms. A group's
    `scale` is its learning rate beside the schedule's.
    """
    hidden = [p for name, p in model.named_parameters() if ".h." in name and p.dim() == 2]
    by_muon = hidden if settings.optimizer == "muon" else []
    rest = [p for p in model.parameters() if not any(p is each for each in by_muon)]
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": settings.weight_decay, "scale": 1.0},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0, "scale": 1.0},
    ]
    adamw = AdamW(groups, settings.beta1, settings.beta2)
    if not by_muon:
        return [adamw]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    scale = settings.muon_learning_rate / max(settings.learning_rate, 1e-12)
    hidden_group = {"params": by_muon, "weight_decay": settings.muon_weight_decay, "scale": scale}
    return [Muon([hidden_group], settings.momentum, dtype), adamw]


def state_tensors(optimizers: list[Optimizer], model: GPT) -> dict[str, Tensor]:
    """The optimizers' state, each tensor named after its parameter: `exp_avg.transformer.wte.weight`."""
    return {
        f"{key}.{name}": value.detach().contiguous()
        for name, parameter in model.named_parameters()
        for optimizer in optimizers
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_state_tensors(optimizers: list[Optimizer], model: GPT, tensors: dict[str, Tensor]) -> None:
    """Put back what `state_tensors` gave."""
    owner = {id(p): each for each in optimizers for group in each.param_groups for p in group["params"]}
    for full_name, value in tensors.items():
        key, _, name = full_name.partition(".")
        parameter = model.get_parameter(name)
        owner[id(parameter)].state.setdefault(parameter, {})[key] = value.to(parameter.device)
