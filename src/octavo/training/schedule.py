"""The learning-rate schedule."""

import math

from octavo.settings import TrainingSettings

_WSD_DECAY = 0.2  # `wsd` decays in this last fraction of the steps after warm-up


def learning_rate(step: int, settings: TrainingSettings) -> float:
    """The learning rate of update `step`, counted from 0: linear warm-up to the peak, then a decay to the minimum.

    With the schedule `constant` it stays at the peak.
    """
    peak, minimum = settings.learning_rate, settings.min_learning_rate
    if step < settings.warmup_steps:
        return peak * (step + 1) / (settings.warmup_steps + 1)
    # 0 at the end of warm-up, 1 at the end of the run
    progress = min(1.0, (step - settings.warmup_steps) / max(1, settings.max_steps - settings.warmup_steps))
    match settings.schedule:
        case "cosine":
            factor = 0.5 * (1 + math.cos(math.pi * progress))
        case "linear":
            factor = 1 - progress
        case "wsd":  # warm-up, stable, decay (Hu et al., MiniCPM, 2024)
            factor = min(1.0, (1 - progress) / _WSD_DECAY)
        case _:  # constant
            factor = 1.0
    return minimum + (peak - minimum) * factor
