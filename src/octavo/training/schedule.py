"""The learning rate of a step."""

import math

from octavo.settings import TrainingSettings

_WSD_DECAY = 0.2  # the last fraction of the steps, in which `wsd` decays


def learning_rate(step: int, settings: TrainingSettings) -> float:
    """The rate of the update that follows `step` completed ones: warm-up, then the schedule, down to the minimum."""
    high, low = settings.learning_rate, settings.min_learning_rate
    if step < settings.warmup_steps:
        return high * (step + 1) / (settings.warmup_steps + 1)
    # 0 at the end of warm-up, 1 at the end of the run
    done = min(1.0, (step - settings.warmup_steps) / max(1, settings.max_steps - settings.warmup_steps))
    match settings.schedule:
        case "cosine":
            left = 0.5 * (1 + math.cos(math.pi * done))
        case "linear":
            left = 1 - done
        case "wsd":  # warm-up, stable, decay (Hu et al., MiniCPM, 2024)
            left = min(1.0, (1 - done) / _WSD_DECAY)
        case _:
            left = 1.0
    return low + (high - low) * left
