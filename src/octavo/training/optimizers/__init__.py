"""Optimizers: which one updates which parameter, and their state as named tensors for a checkpoint.

To add one: write a subclass of `base.Optimizer` in a file here, add a branch to `build_optimizers` and the name to
`octavo.settings`. Add its memory to `octavo.estimate.memory` (a test compares that with the state), its time to
`measure_timing` in `octavo.training.run_estimate` and, if it multiplies matrices, its matmuls to
`octavo.benchmark.training`.
"""

import torch
from torch import Tensor

from octavo.errors import OctavoError
from octavo.settings import TrainingSettings
from octavo.training.layout import Layout
from octavo.training.optimizers.adamw import AdamW
from octavo.training.optimizers.base import Optimizer
from octavo.training.optimizers.muon import Muon

__all__ = ["AdamW", "Muon", "Optimizer", "build_optimizers", "load_state_tensors", "state_tensors"]


def build_optimizers(layout: Layout, settings: TrainingSettings, precision: str = "fp32") -> list[Optimizer]:
    """AdamW for all parameters of a model, or Muon for the matrices of the blocks and AdamW for the rest.

    AdamW decays matrices and embeddings, not biases and norms. A group's learning rate in a step is the schedule's
    times its `lr_scale`.
    """
    in_blocks = [p for name, p in layout.parameters.items() if ".h." in name and p.dim() == 2]
    for_muon = in_blocks if settings.optimizer == "muon" else []
    rest = [p for p in layout.parameters.values() if not any(p is matrix for matrix in for_muon)]
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": settings.weight_decay, "lr_scale": 1.0},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0, "lr_scale": 1.0},
    ]
    adamw = AdamW(groups, lr=settings.learning_rate, betas=(settings.beta1, settings.beta2), fused=True)
    if not for_muon:
        return [adamw]
    muon = Muon(
        [{"params": for_muon, "lr_scale": settings.muon_learning_rate / max(settings.learning_rate, 1e-12)}],
        lr=settings.muon_learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.muon_weight_decay,
        dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
        layout=layout,
    )
    return [muon, adamw]


def state_tensors(optimizers: list[Optimizer], layout: Layout) -> dict[str, Tensor]:
    """The optimizers' state, each tensor named after its parameter: `exp_avg.transformer.wte.weight`.

    If the model is sharded, each is this process's part of the tensor.
    """
    return {
        f"{key}.{name}": value.detach().contiguous()
        for name, parameter in layout.parameters.items()
        for optimizer in optimizers
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_state_tensors(optimizers: list[Optimizer], layout: Layout, tensors: dict[str, Tensor]) -> None:
    """Restore the state that `state_tensors` returned, from whole tensors.

    Raises `OctavoError` if it is of another model or optimizer.
    """
    parameters = layout.parameters
    optimizer_of = {
        parameter: optimizer
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for full_name, value in tensors.items():
        key, _, name = full_name.partition(".")
        parameter = parameters.get(name)
        if (
            parameter is None
            or key not in optimizer_of[parameter].state_names
            or value.shape != (() if key == "step" else layout.shape(parameter))
            or value.dtype != parameter.dtype
        ):
            raise OctavoError(
                f"the optimizer's state in the checkpoint does not fit: {full_name}, {tuple(value.shape)} of "
                f"{value.dtype}",
                _USE_WEIGHTS,
            )
        optimizer_of[parameter].state[parameter][key] = layout.part(parameter, value).to(parameter.device)
    # A checkpoint of step 0 has no tensors: an optimizer creates its state in its first step.
    for name, parameter in parameters.items():
        missing = (
            optimizer_of[parameter].state_names - optimizer_of[parameter].state[parameter].keys() if tensors else ()
        )
        if missing:
            raise OctavoError(f"the optimizer's state in the checkpoint has no {min(missing)} of {name}", _USE_WEIGHTS)


_USE_WEIGHTS = "--init with the checkpoint, which starts a new run from its weights"
