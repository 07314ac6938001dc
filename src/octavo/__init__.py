"""Octavo: a GPT that you can read, train, look inside and serve.

    import octavo

    run = octavo.train("pydocs")                       # a minute on a laptop
    print(octavo.generate(run.folder, "The ")[0].text)

The names below are the public ones. They are loaded when first used, so `import octavo` is quick.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from octavo.checkpoint import Checkpoint
    from octavo.data.prepare import prepare
    from octavo.errors import OctavoError
    from octavo.evaluation import evaluate
    from octavo.generation.generate import generate
    from octavo.generation.stream import Sample
    from octavo.interop.convert import convert
    from octavo.interop.lm_eval import evaluate_tasks
    from octavo.lens import inspect
    from octavo.lens.plots import plot_loss
    from octavo.model import GPT
    from octavo.runs import Run, load
    from octavo.server import serve
    from octavo.settings import ModelSettings, Settings
    from octavo.training import train

_MODULES = {
    "Checkpoint": "octavo.checkpoint",
    "GPT": "octavo.model",
    "ModelSettings": "octavo.settings",
    "OctavoError": "octavo.errors",
    "Run": "octavo.runs",
    "Sample": "octavo.generation.stream",
    "Settings": "octavo.settings",
    "convert": "octavo.interop.convert",
    "evaluate": "octavo.evaluation",
    "evaluate_tasks": "octavo.interop.lm_eval",
    "generate": "octavo.generation.generate",
    "inspect": "octavo.lens",
    "load": "octavo.runs",
    "plot_loss": "octavo.lens.plots",
    "prepare": "octavo.data.prepare",
    "serve": "octavo.server",
    "train": "octavo.training",
}

# PyTorch reads THP_MEM_ALLOC_ENABLE when it first allocates memory. With pages of 2 MB instead of 4 KB, large tensors
# need far fewer address translations, which are slow in virtual machines: docs/speed.md has the measurements.
if os.path.exists("/sys/kernel/mm/transparent_hugepage"):
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"
__all__ = [
    "GPT",
    "Checkpoint",
    "ModelSettings",
    "OctavoError",
    "Run",
    "Sample",
    "Settings",
    "convert",
    "evaluate",
    "evaluate_tasks",
    "generate",
    "inspect",
    "load",
    "plot_loss",
    "prepare",
    "serve",
    "train",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    if name == "training":
        return importlib.import_module("octavo.training")
    raise AttributeError(f"module 'octavo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
