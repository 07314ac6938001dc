"""Everything that training starts with: settings, tokens and weights, of a new, a resumed or a fine-tuned run.

`set_up` writes to the cache only, so an error there leaves no run folder behind. `create_run` creates the folder.
"""

import dataclasses
import math
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from octavo import checkpoint, runs
from octavo.checkpoint import Checkpoint, TrainerState
from octavo.data.dataset import Dataset, is_prepared
from octavo.data.prepare import prepare_dataset, reopen_dataset
from octavo.device import Runtime, check_model_fits, find_device, has_device, resident_memory, resolve_runtime
from octavo.distributed import World
from octavo.errors import OctavoError
from octavo.estimate import MAX_EPOCHS
from octavo.interop import nanogpt
from octavo.model import GPT
from octavo.native_library import load_in_background
from octavo.progress import PreparationProgress, preparation
from octavo.run_layout import is_run
from octavo.runs import Run
from octavo.settings import Settings
from octavo.tokenizers import Tokenizer
from octavo.training import init_weights
from octavo.training.fixed_settings import ARCHITECTURE, check_given, settings_of_dataset, settings_of_weights
from octavo.training.plan import Plan
from octavo.training.trainer_values import TrainerValues, check_trainer_values
from octavo.units import format_count
from octavo.weights import assemble_model, meta_model

# How long a network file system may take to show a new folder to another machine.
_VISIBLE_SECONDS = 5.0

# `cap_steps` never goes below this: fewer steps teach a model nothing.
_MIN_STEPS = 100
# Early stopping for a text so small that a model overfits: the number of evaluations, and the patience.
_EVALUATIONS, _PATIENCE = 10, 2


@dataclass(frozen=True)
class TrainingSetup:
    """What training starts with. `run` and `resumed_from` are None unless a run is resumed."""

    settings: Settings  # final: no setting is `auto`
    runtime: Runtime
    data: Dataset
    model: GPT
    run: Run | None = None  # the run that is resumed
    resumed_from: "ResumePoint | None" = None
    init: Path | None = None  # the checkpoint whose weights a new run starts from
    notices: list[str] = field(default_factory=list)
    optimizer_state: dict[str, Tensor] = field(default_factory=dict)  # of nanoGPT's AdamW, if training starts with it
    memory_before: int | None = None  # bytes that the process used before the model was built


@dataclass(frozen=True)
class ResumePoint:
    """A checkpoint that training resumes from: its folder, and the trainer's state with its checked values."""

    folder: Path
    state: TrainerState
    values: TrainerValues

    @property
    def is_best(self) -> bool:
        """Whether its validation loss was the lowest up to its step."""
        evaluation = self.values.newest_evaluation
        return evaluation is not None and evaluation.best and evaluation.step == self.values.step


_SetupGenerator = Generator[PreparationProgress, None, TrainingSetup]


@preparation
def set_up(plan: Plan, parts: int = 1) -> _SetupGenerator:
    """Prepare the text, build or load the model, and resolve the settings that depend on the text or the machine.

    Meanwhile the C code is loaded or compiled, if the model is trained on a CPU. `parts`: among how many processes the
    model will be divided.
    """
    device = find_device(plan.settings.device)
    memory_before = resident_memory(device)
    loading = load_in_background() if device.type == "cpu" else None
    if plan.resume:
        setup = yield from _set_up_resumed(plan)
    elif plan.init is not None:
        setup = yield from _set_up_finetuned(plan, runs.load(plan.init))
    else:
        setup = yield from _set_up_new(plan, parts)
    if loading:
        loading.join()
    return dataclasses.replace(setup, memory_before=memory_before)


def prepare_data(plan: Plan, tokenizer: Tokenizer | None = None) -> Generator[PreparationProgress, None, Dataset]:
    """Prepare the text of a plan, with the tokenizer of the weights if there are any.

    Raises `OctavoError` if the source is a folder that was prepared with another value of a setting that the user gave.
    """
    data = yield from prepare_dataset(plan.settings, tokenizer)
    if is_prepared(plan.settings.source):
        check_given(plan.given, settings_of_dataset(data), f"the prepared folder {plan.settings.source_name}")
    return data


def check_same_setup(setup: TrainingSetup, world: World) -> None:
    """Raise `OctavoError` if the processes have different text, checkpoints or settings, or can't train together."""
    if world.size == 1:
        return
    settings = setup.settings
    if settings.precision == "fp16":
        raise OctavoError("several processes can't train in fp16", "--precision bf16 or --precision fp32")
    if setup.runtime.device.type == "mps":
        raise OctavoError("several processes can't train on mps", "--device cpu")
    values = {
        "the text and its tokens": setup.data.fingerprint,
        "the checkpoint": setup.resumed_from and setup.resumed_from.values.step,
        "the settings": msgspec.to_builtins(dataclasses.replace(settings, source="", device="")),
    }
    all_values = world.all_gather_object(values)
    for name in values:
        different = [rank for rank, value in enumerate(all_values) if value[name] != all_values[0][name]]
        if different:
            raise OctavoError(
                f"process {different[0]} of {world.size} differs from process 0 in {name}",
                "the same command, text and folder for all",
            )


def create_run(plan: Plan, setup: TrainingSetup, world: World) -> Run:
    """Create the folder of a new run in rank 0; the others open it."""
    run = Run.create(setup.settings, setup.data.name, plan.out, plan.name, setup.init) if world.is_first else None
    folder = Path(world.broadcast_object(run and str(run.folder)))
    deadline = time.monotonic() + _VISIBLE_SECONDS
    while not is_run(folder):
        if time.monotonic() > deadline:
            raise OctavoError(
                f"process {world.rank} can't see the run folder that process 0 has created, {folder.absolute()}",
                "--out on storage that all machines share",
            )
        time.sleep(0.1)
    return Run(folder)


def resolve_vocab_size(settings: Settings, data: Dataset) -> Settings:
    """Take the tokenizer's vocabulary size, unless the settings ask for a larger one."""
    size = data.tokenizer.vocab_size
    if 0 < settings.vocab_size < size:
        raise OctavoError(
            f"vocab_size={settings.vocab_size}, but the tokenizer has {size} tokens", f"--vocab-size {size}"
        )
    return dataclasses.replace(settings, vocab_size=settings.vocab_size or size)


def cap_steps(settings: Settings, data: Dataset, given: Mapping[str, Any]) -> tuple[Settings, list[str]]:
    """Cap max_steps at the steps of max_epochs, to avoid overfitting. Returns the settings, and a notice if it did.

    With the preset tiny on texts of 20, 60 and 200 KB, the validation loss rises after 7 to 11 epochs (measured).

    If the capped steps are still more than `MAX_EPOCHS` epochs, training also stops early, unless the user has set
    `patience` or `eval_every`.
    """
    epochs_per_step = settings.batch_size * settings.block_size / data.info["tokens"]["train"]
    cap = max(_MIN_STEPS, math.ceil(settings.max_epochs / epochs_per_step))
    if not settings.max_epochs or settings.max_steps <= cap:
        return settings, []
    if cap * epochs_per_step > MAX_EPOCHS and not {"patience", "eval_every"} & given.keys():
        notice = (
            f"a small text: at most {cap} steps, {cap * epochs_per_step:,.1f} epochs, and training stops when the "
            "validation loss no longer falls; the best checkpoint is kept (--patience 0: all steps)"
        )
        every = max(1, cap // _EVALUATIONS)
        return dataclasses.replace(settings, max_steps=cap, eval_every=every, patience=_PATIENCE), [notice]
    notice = (
        f"{cap} steps suffice for a text of this size, {cap * epochs_per_step:,.1f} epochs "
        f"(--max-steps {settings.max_steps} for more)"
    )
    # At least four evaluations, so that the best of four checkpoints is kept if the model overfits after all.
    every = settings.eval_every if "eval_every" in given else min(settings.eval_every, cap // 4)
    return dataclasses.replace(settings, max_steps=cap, eval_every=every), [notice]


def _set_up_new(plan: Plan, parts: int) -> _SetupGenerator:
    settings = plan.settings
    runtime = resolve_runtime(settings)
    data = yield from prepare_data(plan)
    settings, notices = cap_steps(resolve_vocab_size(settings, data), data, plan.given)
    settings = _resolve_auto(settings, runtime, data)
    check_model_fits(sum(p.numel() for p in meta_model(settings).parameters()), runtime.device, parts)
    model = GPT(settings, torch.Generator().manual_seed(settings.seed))
    init_weights.initialize(model, settings.weight_init)
    return TrainingSetup(settings, runtime, data, model, notices=notices)


def _set_up_resumed(plan: Plan) -> _SetupGenerator:
    """Load a run's checkpoint. Settings that are `auto` keep the value they had, or the losses would change.

    On a machine without the run's device, they are resolved again.
    """
    settings = plan.settings
    loaded, resumed_from, notices = load_first_intact(plan.resume)
    values = resumed_from.values
    assert isinstance(loaded.settings, Settings)
    if (max_steps := plan.given.get("max_steps", values.step)) < values.step:
        raise OctavoError(
            f"{loaded.folder} is of step {values.step}, and max_steps={max_steps} counts from the first step",
            f"--max-steps {values.step + (more := max(1, max_steps))}, for {format_count(more, 'more step')}",
        )
    for name in sorted(ARCHITECTURE | {"block_size"}):
        if getattr(settings, name) != getattr(loaded.settings, name):
            raise OctavoError(
                f"settings.toml has {name} = {getattr(settings, name)}, and {loaded.folder} has "
                f"{getattr(loaded.settings, name)}",
                "the value of the checkpoint in settings.toml",
            )
    notices += _unrequested_changes(loaded)
    device = values.device if settings.device == "auto" and has_device(values.device) else settings.device
    if (kind := find_device(device).type) == values.device.partition(":")[0]:
        settings = dataclasses.replace(
            settings,
            device=device,
            precision=values.precision if settings.precision == "auto" else settings.precision,
            compile=values.compile if settings.compile == "auto" else settings.compile,
        )
    else:
        notices.append(f"resuming on {kind}, not on {values.device} as before: losses differ a little")
    if values.threads != torch.get_num_threads():
        notices.append(
            f"{format_count(torch.get_num_threads(), 'thread')}, not {values.threads} as before: losses may "
            "differ in the last digits"
        )
    runtime = resolve_runtime(settings)
    data = yield from reopen_dataset(settings, loaded.info.get("data"), loaded.tokenizer)
    if "max_epochs" in plan.given:
        # All settings count as given: the run's own `patience` and `eval_every` must stay.
        settings, capped = cap_steps(settings, data, dataclasses.asdict(settings))
        notices += capped
    settings = _resolve_auto(settings, runtime, data)
    model = _change_settings(loaded.model, settings)
    run = Run.of_checkpoint(loaded.folder)
    return TrainingSetup(settings, runtime, data, model, run, resumed_from, notices=notices)


def _unrequested_changes(loaded: Checkpoint) -> list[str]:
    """A notice for each setting of settings.toml that differs from the one that the checkpoint was saved with.

    The file was edited or damaged, or a resumed run that changed it was killed before its first checkpoint.
    """
    run = Run.of_checkpoint(loaded.folder)
    if run is None:
        return []
    now, saved = dataclasses.asdict(run.settings), dataclasses.asdict(loaded.settings)
    return [
        f"settings.toml has {name} = {value!r}, and {loaded.folder} was saved with {saved[name]!r}"
        for name, value in now.items()
        if value != saved.get(name, value)
    ]


def load_first_intact(folders: tuple[Path, ...]) -> tuple[Checkpoint, ResumePoint, list[str]]:
    """Load the first checkpoint that is not damaged, with a notice for each that was skipped.

    Raises the error of the first if all are damaged.
    """
    errors: list[OctavoError] = []
    for folder in folders:
        try:
            # In this order, since `load` verifies the whole folder.
            loaded, state = checkpoint.load(folder, foreign=False), checkpoint.load_trainer(folder)
            values, expected = check_trainer_values(state.values, folder), loaded.info.get("step")
            if values.step != expected:
                raise OctavoError(
                    f"{folder} is damaged: trainer.json is of step {values.step}, and octavo.json of step {expected}",
                    "another checkpoint of the run",
                )
        except OctavoError as error:
            errors.append(error)
        else:
            notices = [f"skipped a damaged checkpoint: {error.message}" for error in errors]
            resumed_from = ResumePoint(folder, state, values)
            return loaded, resumed_from, notices + ([f"resuming from {folder}"] if notices else [])
    raise errors[0]


def _set_up_finetuned(plan: Plan, base: Checkpoint) -> _SetupGenerator:
    """Take weights, architecture and tokenizer from the base model. The new block_size may be smaller, not larger."""
    fixed, positions = settings_of_weights(base), base.settings.block_size
    check_given(plan.given, fixed, f"the weights of {base.folder}")
    if plan.given.get("block_size", 0) > positions:
        raise OctavoError(
            f"block_size={plan.given['block_size']}, and the weights of {base.folder} have {positions} positions",
            f"--block-size {positions}, or leave it out",
        )
    settings = dataclasses.replace(plan.settings, **fixed, block_size=min(plan.settings.block_size, positions))
    notices = []
    if settings.block_size < positions:
        notices.append(f"the position table is cropped from {positions} to {settings.block_size} positions")
    runtime = resolve_runtime(settings)
    data = yield from prepare_data(dataclasses.replace(plan, settings=settings), base.tokenizer)
    settings, capped = cap_steps(settings, data, plan.given)
    settings = _resolve_auto(settings, runtime, data)
    state = {}
    if settings.optimizer == "adamw" and base.folder.suffix == ".pt":
        state = nanogpt.load_optimizer_state(base.folder, base.model)
        notices += [f"AdamW starts with the moving averages in {base.folder}"] if state else []
        for name in ("exp_avg.transformer.wpe.weight", "exp_avg_sq.transformer.wpe.weight") if state else ():
            state[name] = state[name][: settings.block_size]
    model = _change_settings(base.model, settings)
    return TrainingSetup(
        settings, runtime, data, model, init=base.folder, notices=notices + capped, optimizer_state=state
    )


def _resolve_auto(settings: Settings, runtime: Runtime, data: Dataset) -> Settings:
    """Replace each `auto` by the value that it has on this machine and for this text."""
    return dataclasses.replace(
        settings,
        device=str(runtime.device),
        precision=runtime.precision,
        compile="on" if runtime.compile else "off",
        tokenizer=data.info["tokenizer"],
    )


def _change_settings(model: GPT, settings: Settings) -> GPT:
    """Move the weights into a model with these settings: other dropout, perhaps fewer positions."""
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    weights["transformer.wpe.weight"] = weights["transformer.wpe.weight"][: settings.block_size].clone()
    return assemble_model(settings, weights)
