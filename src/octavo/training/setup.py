"""What a run begins from: settings, tokens, weights. New, or from a run to go on with, or another's weights.

Nothing is written here but the prepared text in the cache, so a mistake leaves nothing behind.
"""

import dataclasses
import math
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from octavo import checkpoint, estimate, runs
from octavo.checkpoint import Checkpoint, TrainerState
from octavo.data.build import Preparing
from octavo.data.dataset import Dataset
from octavo.data.prepare import preparing, preparing_again
from octavo.device import check_fits, find_device
from octavo.errors import OctavoError
from octavo.model import GPT
from octavo.runs import Run
from octavo.settings import DataSettings, ModelSettings, Settings, resolve
from octavo.training import init_weights

# What may differ between a run and the same run resumed, or a model and the one it starts from.
_FREE = {"dropout", "attention_dropout"}


@dataclass(frozen=True)
class TrainingSetup:
    """All that training starts with; `run` and `state` where it goes on with a run."""

    settings: Settings
    data: Dataset
    model: GPT
    run: Run | None = None
    state: TrainerState | None = None
    notices: list[str] = field(default_factory=list)


def plan(source: str | Path | None = None, *, preset: str | None = None, config: str | Path | None = None,
         resume: str | Path | None = None, init: str | Path | None = None, **given: Any) -> Settings:  # fmt: skip
    """The settings of a run: from a preset, a file and what was given; or from the run that is resumed.

    Raises `OctavoError` for a name or value that isn't one, and for what can't change in a resumed run.
    """
    if source is not None:
        given["source"] = str(source)
    shape = {each.name for each in dataclasses.fields(ModelSettings)} - _FREE - {"block_size"}
    if init is not None and (fixed := sorted(shape & given.keys())):
        raise OctavoError(f"{fixed[0]} comes with the weights of {init} and can't be set",
                          "leave out " + ", ".join("--" + name.replace("_", "-") for name in fixed))  # fmt: skip
    if resume is None:
        return resolve(preset or ("finetune" if init is not None and config is None else None), config, **given)
    if preset is not None or config is not None or init is not None:
        raise OctavoError("a resumed run has its settings", "--resume RUN with only the settings that change")
    before = resumable(resume)[0].settings
    changed = resolve(**{**dataclasses.asdict(before), **given})
    for part in (ModelSettings, DataSettings):
        for each in dataclasses.fields(part):
            old, new = getattr(before, each.name), getattr(changed, each.name)
            if old != new and each.name not in _FREE | {"source"}:
                raise OctavoError(f"{each.name} is {old!r} in this run and can't become {new!r} on the way",
                                  f"--init {resume}, which starts a new run")  # fmt: skip
    return changed


def resumable(resume: str | Path) -> tuple[Run, Path]:
    """The run, and its checkpoint, that `resume` names: a run folder means its last."""
    folder = Path(resume)
    if (folder / "config.json").is_file() and folder.parent.name == "checkpoints":
        return Run(folder.parents[1]), folder
    if not folder.exists() and (Path("runs") / folder / "settings.toml").is_file():
        folder = Path("runs") / folder
    run = Run(folder)
    if run.last is None:
        raise OctavoError(f"{folder} has no checkpoint to go on from", "octavo train, which begins anew")
    return run, run.last


Steps = Generator[Preparing, None, TrainingSetup]


def begin(settings: Settings, resume: str | Path | None = None, init: str | Path | None = None) -> Steps:
    """Read the text, build or load the model, and resolve what the settings leave open. Tells how far the text is."""
    if resume is not None:
        return (yield from _resumed(settings, *resumable(resume)))
    if init is not None:
        return (yield from _initialised(settings, runs.load(init)))
    data = yield from preparing(settings)
    settings, notices = suited(settings, data)
    check_fits(estimate.parameters(settings), find_device(settings.device))
    model = GPT(settings, torch.Generator().manual_seed(settings.seed))
    if settings.weight_init != "noise":
        init_weights.sinusoids(model)
    if settings.weight_init == "lookback":
        init_weights.lookback(model)
    return TrainingSetup(settings, data, model, notices=notices)


def suited(settings: Settings, data: Dataset) -> tuple[Settings, list[str]]:
    """The settings of a new model for a text: its vocabulary, and no more steps than it bears; what to tell of it."""
    known = data.tokenizer.vocab_size
    settings = dataclasses.replace(settings, vocab_size=settings.vocab_size or known)
    if settings.vocab_size < known:
        raise OctavoError(f"vocab_size={settings.vocab_size}, but the tokenizer has {known} tokens",
                          f"--vocab-size {known}")  # fmt: skip
    return _fitted(settings, data)


def _fitted(settings: Settings, data: Dataset) -> tuple[Settings, list[str]]:
    """The steps of at most `max_epochs` passes over the text, but a hundred, for fewer teach no model anything.

    Measured on texts of 20, 60 and 200 KB with the preset tiny: after 7 to 11 passes the validation loss rises.
    """
    passes = settings.batch_size * settings.block_size / data.info["tokens"]["train"]  # of one step
    enough = max(100, math.ceil(settings.max_epochs / passes))
    if not settings.max_epochs or settings.max_steps <= enough:
        return settings, []
    notice = (f"{enough} steps suffice for a text of this size, {enough * passes:,.1f} passes over it "
              f"(--max-steps {settings.max_steps} for more)")  # fmt: skip
    # Learnt by heart or not, the best of four checkpoints is kept.
    return dataclasses.replace(settings, max_steps=enough, eval_every=min(settings.eval_every, enough // 4)), [notice]


def _resumed(settings: Settings, run: Run, folder: Path) -> Steps:
    origin, state = checkpoint.load(folder), checkpoint.load_trainer(folder)  # in this order: the first verifies
    notices = []
    resolved = {key: state.values[key] for key in ("device", "precision", "compile")}
    settings = dataclasses.replace(settings, **{k: v for k, v in resolved.items() if getattr(settings, k) == "auto"})
    if state.values["threads"] != torch.get_num_threads():
        notices.append(f"{torch.get_num_threads()} threads, not {state.values['threads']} as before: "
                       "losses may differ in the last digits")  # fmt: skip
    data = yield from preparing_again(settings, origin.info["data"], origin.tokenizer)
    return TrainingSetup(settings, data, _reshaped(origin.model, settings), run, state, notices)


def _initialised(settings: Settings, origin: Checkpoint) -> Steps:
    """A new run with another's weights, and so with its shape and tokenizer; its block may be shorter."""
    theirs = origin.settings
    notices = []
    shape = {f.name: getattr(theirs, f.name) for f in dataclasses.fields(ModelSettings) if f.name not in _FREE}
    shape["block_size"] = min(settings.block_size, theirs.block_size)
    if shape["block_size"] < theirs.block_size:
        notices.append(f"the position table is cropped from {theirs.block_size} to {shape['block_size']} positions")
    began = theirs.weight_init if isinstance(theirs, Settings) else "noise"
    settings = dataclasses.replace(settings, **shape, weight_init=began)
    data = yield from preparing(settings, origin.tokenizer)
    settings, fewer = _fitted(settings, data)
    return TrainingSetup(settings, data, _reshaped(origin.model, settings), notices=notices + fewer)


def _reshaped(model: GPT, settings: Settings) -> GPT:
    """The same weights in a model with these settings: other dropout, perhaps fewer positions."""
    with torch.device("meta"):
        reshaped = GPT(settings)
    weights = model.state_dict()
    weights["transformer.wpe.weight"] = weights["transformer.wpe.weight"][: settings.block_size].clone()
    reshaped.load_state_dict(weights, assign=True)
    reshaped.tie()
    return reshaped.requires_grad_()
