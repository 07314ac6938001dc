"""Training a GPT on text, as a stream of events.

    for event in octavo.training.events(octavo.training.plan("my.txt", max_steps=100)):
        print(event)

`plan` resolves the settings, `setup` prepares text and model, `loop` runs the steps. A `Trainer` (`step`) makes one
update with its `optimizers`. `evaluator` computes exact losses, `clock` measures times, `recorder` writes metrics,
samples and checkpoints, the checkpoints in a thread (`checkpoint_writer`). `loggers` copies events to TensorBoard, W&B
or trackio.
"""

from octavo.progress import PreparationProgress
from octavo.training.event import Evaluated, Event, Finished, Notice, Sampled, Saved, Started, Step, TimeEstimate
from octavo.training.interrupt import interruptible
from octavo.training.loop import events, train
from octavo.training.plan import Plan, plan
from octavo.training.run_estimate import RunEstimate, estimate_run

__all__ = [
    "Evaluated",
    "Event",
    "Finished",
    "Notice",
    "Plan",
    "PreparationProgress",
    "RunEstimate",
    "Sampled",
    "Saved",
    "Started",
    "Step",
    "TimeEstimate",
    "estimate_run",
    "events",
    "interruptible",
    "plan",
    "train",
]
