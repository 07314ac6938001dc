"""The settings of nanoGPT, for its users: their names, its config files, and what both mean in Octavo.

A config file of nanoGPT is Python code that assigns settings. It is parsed and never executed: an assignment counts if
its value is a literal, or arithmetic with numbers such as `5 * 8`.
"""

import ast
import operator
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from octavo.errors import OctavoError
from octavo.settings.fields import Settings
from octavo.settings.presets import PRESETS

# Settings of nanoGPT that Octavo does not have, each with what to use instead.
NANOGPT_NAMES = {
    "max_iters": "--max-steps",
    "lr_decay_iters": "--max-steps: the schedule ends with the run",
    "warmup_iters": "--warmup-steps",
    "min_lr": "--min-learning-rate",
    "eval_interval": "--eval-every",
    "log_interval": "--log-every",
    "gradient_accumulation_steps": "--batch-size (sequences per step) and --micro-batch (sequences per forward pass)",
    "dtype": "--precision",
    "decay_lr": "--schedule constant",
    "dataset": "the source itself: octavo train my.txt",
    "out_dir": "--out",
    "init_from": "--resume RUN or --init RUN",
    "eval_iters": "no setting: every evaluation covers the whole validation split",
    "always_save_checkpoint": "no setting: the last and the best checkpoint are always kept",
    "eval_only": "octavo eval RUN",
    "wandb_log": "--log wandb",
    "wandb_project": "WANDB_PROJECT in the environment, with --log wandb",
    "wandb_run_name": "--name",
    "backend": "no setting: gloo on a CPU, NCCL on GPUs (--processes N)",
}
# Settings that both have, with the same name and meaning.
_SHARED = (
    *("block_size", "n_layer", "n_head", "n_embd", "dropout", "bias", "device", "compile"),
    *("batch_size", "learning_rate", "weight_decay", "beta1", "beta2", "grad_clip"),
)
_RENAMED = {
    "max_iters": "max_steps",
    "warmup_iters": "warmup_steps",
    "min_lr": "min_learning_rate",
    "eval_interval": "eval_every",
    "log_interval": "log_every",
}
_PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
# What nanoGPT's data/NAME/prepare.py downloads, and its tokenizer.
_DATASETS = {
    "shakespeare_char": ("shakespeare", "char"),
    "shakespeare": ("shakespeare", "gpt2"),
    "openwebtext": ("hf:Skylion007/openwebtext", "gpt2"),
}
# The values in nanoGPT's train.py, which a config file overrides.
_DEFAULTS: dict[str, Any] = dict(
    eval_interval=2000,
    log_interval=1,
    init_from="scratch",
    dataset="openwebtext",
    gradient_accumulation_steps=40,
    batch_size=12,
    block_size=1024,
    n_layer=12,
    n_head=12,
    n_embd=768,
    dropout=0.0,
    bias=False,
    learning_rate=6e-4,
    max_iters=600_000,
    weight_decay=0.1,
    beta1=0.9,
    beta2=0.95,
    grad_clip=1.0,
    decay_lr=True,
    warmup_iters=2000,
    min_lr=6e-5,
)
_ARCHITECTURE = ("n_layer", "n_head", "n_embd", "bias", "vocab_size")


@dataclass(frozen=True)
class Recipe:
    """What a command of nanoGPT would train, in Octavo's words: a preset, the settings that differ from it, a model."""

    preset: str
    settings: dict[str, Any]
    init: str | None = None

    def command(self, *more: str) -> str:
        """The command of Octavo, with `more` words at its end."""
        settings = dict(self.settings)
        words = ["octavo", "train", *filter(None, [settings.pop("source", None)])]
        words += ["--init", self.init] if self.init else ["--preset", self.preset] if self.preset else []
        for name, value in settings.items():
            words += [f"--{name.replace('_', '-')}", str(value).lower() if isinstance(value, bool) else str(value)]
        return shlex.join([*words, *more])


def is_config(path: str | Path) -> bool:
    """Whether a file is a config of nanoGPT: Python code that assigns settings which only nanoGPT has."""
    if not str(path).endswith(".py") or not os.path.isfile(path):
        return False
    try:
        return bool(read_config(path).keys() & (NANOGPT_NAMES.keys() - {"dtype", "backend"}))
    except OctavoError:
        return False


def read_config(path: str | Path) -> dict[str, Any]:
    """The settings that a config file of nanoGPT assigns. Those whose value must be computed are left out.

    Raises `OctavoError` if the file is more than a list of assignments.
    """
    hint = "a TOML file for --config: n_layer = 6"
    try:
        tree = ast.parse(Path(path).read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise OctavoError(f"{path} is not a config file: {error}", hint) from None
    values: dict[str, Any] = {}
    for statement in tree.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                evaluated = _evaluate(value)
                if evaluated is not None:
                    values[name] = evaluated
            case ast.Import() | ast.ImportFrom() | ast.Expr(value=ast.Constant()):
                pass
            case _:
                raise OctavoError(f"{path}, line {statement.lineno}, is not an assignment of a setting", hint)
    return values


_OPERATORS = {ast.Mult: operator.mul, ast.Add: operator.add, ast.Sub: operator.sub, ast.Div: operator.truediv}


def _evaluate(node: ast.expr) -> Any:
    """The value of a literal, or of arithmetic with numbers. None for anything else."""
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _evaluate(node.left), _evaluate(node.right)
        if all(isinstance(side, int | float) and abs(side) < 1e18 for side in (left, right)) and right != 0:
            return _OPERATORS[type(node.op)](left, right)
        return None
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None


def translate(values: Mapping[str, Any], *, with_defaults: bool = True) -> Recipe:
    """What nanoGPT would train with these settings, and `with_defaults` for the others: those of its train.py.

    Raises `OctavoError` if it would not train, the settings name a run that is to be resumed, or a value is of a type
    that no setting has.
    """
    _check_types(values)
    if values.get("eval_only"):
        model = hub_name(values.get("init_from", "")) or "RUN"
        raise OctavoError("eval_only of nanoGPT evaluates a model and trains none", f"octavo eval {model} SOURCE")
    init_from = str(values.get("init_from", "scratch"))
    if init_from == "resume":
        checkpoint = f"{values.get('out_dir', 'out')}/ckpt.pt"
        hint = f"octavo train --resume RUN, or --init {checkpoint} for nanoGPT's own checkpoint"
        raise OctavoError("init_from='resume' of nanoGPT continues a run", hint)
    init = hub_name(init_from)
    if with_defaults and init is None:
        values = _DEFAULTS | dict(values)
    settings = {_RENAMED.get(name, name): value for name, value in values.items() if name in (*_SHARED, *_RENAMED)}
    if (accumulation := values.get("gradient_accumulation_steps", 1)) != 1 and "batch_size" in values:
        settings |= {"batch_size": accumulation * values["batch_size"], "micro_batch": values["batch_size"]}
    if "dropout" in settings:
        settings["attention_dropout"] = settings["dropout"]
    if "decay_lr" in values:
        settings["schedule"] = "cosine" if values["decay_lr"] else "constant"
    if values.get("dtype") in _PRECISIONS:
        settings["precision"] = _PRECISIONS[values["dtype"]]
    if isinstance(settings.get("compile"), bool):
        settings["compile"] = "on" if settings["compile"] else "off"
    if values.get("wandb_log"):
        settings["log"] = "wandb"
    if "dataset" in values:
        settings |= _source_of(str(values["dataset"]))
    if init is not None:  # the architecture is that of the model
        return Recipe("finetune", {name: value for name, value in settings.items() if name not in _ARCHITECTURE}, init)
    if not with_defaults:
        return Recipe("", settings)
    settings |= {"optimizer": "adamw", "weight_init": "noise", "activation": "gelu"}
    settings = {field.name: settings[field.name] for field in fields(Settings) if field.name in settings}
    presets = {name: _differences(settings, PRESETS[name]) for name in ("nanogpt-baby", "nanogpt-tiny", "gpt2")}
    preset = min(presets, key=lambda name: len(presets[name]))
    return Recipe(preset, presets[preset])


def _check_types(values: Mapping[str, Any]) -> None:
    types: tuple[type, ...]
    for name, value in values.items():
        if name in ("batch_size", "gradient_accumulation_steps"):  # they are multiplied
            types, kinds = (int, float), "a number"
        elif name in NANOGPT_NAMES or name in _SHARED:
            types, kinds = (str, int, float), "a number, a text, True or False"  # a bool is an int
        else:
            continue
        if not isinstance(value, types):
            raise OctavoError(f"{name}={str(value)[:40]} of nanoGPT is not {kinds}", f"{kinds} for {name}")


def _differences(settings: dict[str, Any], preset: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the preset does not have already."""
    defaults = {field.name: field.default for field in fields(Settings)}
    return {name: value for name, value in settings.items() if (defaults | dict(preset))[name] != value}


def _source_of(dataset: str) -> dict[str, str]:
    """The source and the tokenizer for a dataset of nanoGPT.

    The source is the dataset's folder if it is prepared, else the text in it, else what `prepare.py` downloads.
    """
    folder = os.path.join("data", dataset)
    if os.path.isfile(os.path.join(folder, "train.bin")):
        return {"source": folder, "tokenizer": "auto"}
    source, tokenizer = _DATASETS.get(dataset, (folder, "gpt2"))
    if os.path.isfile(text := os.path.join(folder, "input.txt")):
        source = text
    return {"source": source, "tokenizer": tokenizer}


def is_shared(name: str) -> bool:
    """Whether a setting of nanoGPT has the same name and meaning in Octavo."""
    return name in _SHARED


def hub_name(init_from: Any) -> str | None:
    """GPT-2's model on the hub for `gpt2`, `gpt2-medium`, ...; None for anything else."""
    is_gpt2 = isinstance(init_from, str) and re.fullmatch(r"gpt2(-medium|-large|-xl)?", init_from)
    return f"hf:openai-community/{init_from}" if is_gpt2 else None
