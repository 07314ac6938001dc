"""Fitting a GPT to text, as a stream of events.

for event in octavo.training.events(octavo.training.plan("my.txt", max_steps=100)):
    print(event)
"""

from octavo.data.making import Preparing
from octavo.training.beginning import plan
from octavo.training.event import Evaluated, Event, Expected, Finished, Notice, Sampled, Saved, Started, Step
from octavo.training.forecast import Forecast, predict
from octavo.training.loop import events, interruptible, train

__all__ = [
    "Evaluated",
    "Event",
    "Expected",
    "Finished",
    "Forecast",
    "Notice",
    "Preparing",
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
