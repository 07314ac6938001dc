"""Fitting a GPT to text, as a stream of events.

for event in octavo.training.events(octavo.training.plan("my.txt", max_steps=100)):
    print(event)
"""

from octavo.data.build import Preparing
from octavo.training.event import Evaluated, Event, Expected, Finished, Notice, Sampled, Saved, Started, Step
from octavo.training.loop import events, interruptible, train
from octavo.training.run_estimate import RunEstimate, predict
from octavo.training.setup import plan

__all__ = [
    "Evaluated",
    "Event",
    "Expected",
    "Finished",
    "Notice",
    "Preparing",
    "RunEstimate",
    "Sampled",
    "Saved",
    "Started",
    "Step",
    "events",
    "interruptible",
    "plan",
    "predict",
    "train",
]
