"""The settings: four frozen dataclasses whose fields carry default, bounds, choices and help text."""

import dataclasses
import difflib
import functools
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from octavo.errors import OctavoError, SettingError
from octavo.settings.presets import PRESETS

# What the setting `source` holds: a source, or several that are read in this order.
Source = str | tuple[str, ...]
SourceLike = str | Path | Sequence[str | Path]  # what functions take as a source

SAMPLE_TOKENS = 200  # length of each sample that a run generates during training
LOGGERS = ("tensorboard", "wandb", "trackio")  # optional, in addition to metrics.jsonl: see octavo.training.loggers


def setting(
    default: Any,
    help: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    choices: tuple[str, ...] = (),
) -> Any:
    """A dataclass field with its help text and the values that it allows."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, "choices": choices})


class _Validated:
    """Checks the type and bounds of every field when an instance is built."""

    def __post_init__(self) -> None:
        for setting_field in fields(self):  # type: ignore[arg-type]
            object.__setattr__(self, setting_field.name, _validate(setting_field, getattr(self, setting_field.name)))


@dataclass(frozen=True, kw_only=True)
class ModelSettings(_Validated):
    """The model's architecture and initialization, with GPT-2's names."""

    block_size: int = setting(64, "context length in tokens", low=1, high=1 << 20)
    vocab_size: int = setting(0, "vocabulary size in tokens; 0: the tokenizer's", low=0, high=1 << 24)
    n_layer: int = setting(4, "transformer blocks", low=1, high=1024)
    n_head: int = setting(4, "attention heads per block", low=1, high=1024)
    n_embd: int = setting(128, "width of the residual stream", low=1, high=1 << 16)
    dropout: float = setting(
        0.0, "dropout after the embedding and on the output of attention and MLP", low=0, high=0.99
    )
    attention_dropout: float = setting(
        0.0, "dropout on attention weights; above 0 disables fused attention on a CPU", low=0, high=0.99
    )
    bias: bool = setting(True, "biases in linear layers and layer norms, as in GPT-2")
    activation: str = setting(
        "gelu_new",
        "GELU in the MLP: gelu_new is GPT-2's tanh approximation, gelu is exact",
        choices=("gelu_new", "gelu"),
    )
    embedding_init: str = setting(
        "normal",
        "initialization of wte, and also of wpe if weight_init is noise; normal: N(0, 0.02); uniform: within "
        "±1/sqrt(n_embd)",
        choices=("normal", "uniform"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_embd % self.n_head:
            divisors = [h for h in range(1, min(self.n_embd, 1024) + 1) if self.n_embd % h == 0]
            nearest = min(divisors, key=lambda h: (abs(h - self.n_head), -h))
            raise SettingError(
                ("n_embd", "n_head"),
                f"n_embd={self.n_embd} is not divisible by n_head={self.n_head}",
                f"--n-head {nearest}",
            )

    @property
    def head_size(self) -> int:
        """Width of one attention head, D."""
        return self.n_embd // self.n_head


@dataclass(frozen=True, kw_only=True)
class DataSettings(_Validated):
    """The text, and how it becomes tokens."""

    source: str | tuple[str, ...] = setting(
        "pydocs", "a named corpus, a file, a folder, a glob, hf:NAME, a prepared folder, or -; or a list of these"
    )
    tokenizer: str = setting("auto", "auto, char, byte, word[:N], bpe:N or gpt2; N is the vocabulary size")
    val_fraction: float = setting(
        0.1,
        "fraction of the text held out for validation: the end of one text, or random documents if there are at least "
        "100",
        low=0.0001,
        high=0.9,
    )
    text_field: str = setting("text", "field with the text in JSON, CSV and Parquet files and Hugging Face datasets")
    deduplicate: bool = setting(False, "drop documents that are exact copies of an earlier one")
    special_tokens: bool = setting(
        False, "encode the text of a special token, such as <|endoftext|>, as that token instead of as ordinary text"
    )
    encoding: str = setting("utf-8", "character encoding of the text")
    errors: str = setting(
        "strict", "how to handle undecodable bytes and NUL characters", choices=("strict", "replace", "ignore")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        sources = tuple(map(expand_home, list_sources(self.source)))
        object.__setattr__(self, "source", sources if len(sources) > 1 else sources[0])

    @property
    def source_name(self) -> str:
        """The source as messages name it."""
        return name_source(self.source)


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(_Validated):
    """Optimization, evaluation, checkpoints and hardware."""

    max_steps: int = setting(1000, "optimizer steps", low=0, high=10**9)
    max_epochs: float = setting(
        8.0,
        "upper limit on passes over the training split, which lowers max_steps if necessary; 0: no limit; if you set "
        "max_steps but not this, it is 0",
        low=0,
        high=1e9,
    )
    batch_size: int = setting(32, "sequences per optimizer step", low=1, high=1 << 20)
    micro_batch: int = setting(
        0,
        "sequences per forward and backward pass, with gradient accumulation; 0: the most that fit in memory",
        low=0,
        high=1 << 20,
    )
    checkpoint_activations: bool = setting(
        False,
        "activation checkpointing: keep only the input of each block and recompute the rest in the backward pass; less "
        "memory, a third more work",
    )
    curriculum_splits: int = setting(
        1,
        "sequence-length curriculum: split each sequence of block_size tokens into N shorter ones at the start of "
        "training; N must divide block_size",
        low=1,
        high=1 << 20,
    )
    curriculum_fraction: float = setting(0.6, "fraction of the steps that use the shorter sequences", low=0, high=1)
    optimizer: str = setting(
        "muon", "muon: Muon for the matrices of the blocks, AdamW for the rest", choices=("muon", "adamw")
    )
    learning_rate: float = setting(4e-3, "peak learning rate of AdamW", low=0, high=100)
    min_learning_rate: float = setting(0.0, "learning rate of AdamW at the last step", low=0, high=100)
    warmup_steps: int = setting(20, "linear learning-rate warm-up in steps", low=0, high=10**9)
    schedule: str = setting(
        "linear",
        "learning-rate decay from learning_rate to min_learning_rate; wsd: constant, then linear over the last 20%",
        choices=("linear", "cosine", "wsd", "constant"),
    )
    weight_decay: float = setting(0.1, "decoupled weight decay of AdamW, on matrices only", low=0, high=100)
    muon_learning_rate: float = setting(
        0.05, "peak learning rate of Muon; its ratio to AdamW's is the same at every step", low=0, high=100
    )
    muon_weight_decay: float = setting(0.0, "decoupled weight decay of Muon", low=0, high=100)
    momentum: float = setting(0.95, "momentum of Muon", low=0, high=0.99999)
    weight_init: str = setting(
        "lookback",
        "noise: all weights are random, as in GPT-2; sinusoids: like noise, but wpe starts as small sinusoids; "
        "lookback: like sinusoids, but the heads of layer 0 start by attending 1, 2, 3 ... tokens back, one distance "
        "per head",
        choices=("lookback", "sinusoids", "noise"),
    )
    beta1: float = setting(0.9, "AdamW's decay rate of the first moment", low=0, high=0.99999)
    beta2: float = setting(0.99, "AdamW's decay rate of the second moment", low=0, high=0.99999)
    grad_clip: float = setting(1.0, "L2 norm at which gradients are clipped; 0: no clipping", low=0, high=1e9)
    on_divergence: str = setting(
        "stop",
        "what to do if a loss, gradient or weight is NaN or infinite; stop: end with an error; skip: don't apply that "
        "update, up to 10 times in a row and 100 times in all; rollback: return to the last checkpoint, leave out the "
        "batches since then and halve the learning rate, up to 5 times",
        choices=("stop", "skip", "rollback"),
    )
    skip_spikes: bool = setting(
        False,
        "don't apply an update whose loss is a spike: above the mean of the last 128 steps by more than 6 standard "
        "deviations",
    )
    eval_every: int = setting(250, "steps between evaluations", low=1, high=10**9)
    sample_every: int = setting(500, "steps between generated samples; 0: none", low=0, high=10**9)
    save_every: int = setting(0, "steps between checkpoints; 0: at every evaluation", low=0, high=10**9)
    log_every: int = setting(10, "steps between lines in metrics.jsonl", low=1, high=10**9)
    keep_checkpoints: int = setting(
        10, "weights-only checkpoints to keep at log-spaced steps, besides the last and the best", low=0, high=10**4
    )
    patience: int = setting(
        0, "early stopping: evaluations without improvement before training stops; 0: never", low=0, high=10**9
    )
    seed: int = setting(1337, "seed of weights, data order, dropout and samples", low=0, high=2**63 - 1)
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: str = setting(
        "auto", "data type of the forward and backward pass (mixed precision)", choices=("auto", "fp32", "bf16", "fp16")
    )
    compile: str = setting(
        "auto", "torch.compile; auto: on for CUDA, off for other devices", choices=("auto", "on", "off")
    )
    log: str = setting("none", f"additional loggers, separated by commas: {', '.join(LOGGERS)}")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.loggers:
            if name not in LOGGERS:
                raise unknown_name_error("logger", name, LOGGERS, setting_name="log")

    @property
    def loggers(self) -> list[str]:
        """The names in `log`, without duplicates."""
        names = dict.fromkeys(name.strip() for name in self.log.split(","))
        return [name for name in names if name not in ("none", "")]

    @property
    def log_spaced_steps(self) -> frozenset[int]:
        """The `keep_checkpoints` steps, evenly spaced in log(step), whose weights are kept for the lens."""
        return _log_spaced_steps(self.keep_checkpoints, self.max_steps)


@functools.lru_cache(maxsize=8)  # training asks at every step
def _log_spaced_steps(count: int, last_step: int) -> frozenset[int]:
    if count == 0 or last_step == 0:
        return frozenset()
    last = max(count - 1, 1)
    return frozenset(round(last_step ** (i / last)) for i in range(count))


@dataclass(frozen=True, kw_only=True)
class Settings(ModelSettings, DataSettings, TrainingSettings):
    """All settings of a run. It can be passed wherever one of its sections is expected."""

    preset: str = setting("tiny", "the preset that the other settings are based on")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preset not in PRESETS:
            raise unknown_name_error("preset", self.preset, PRESETS, setting_name="preset")
        if self.block_size % self.curriculum_splits:
            raise SettingError(
                ("block_size", "curriculum_splits"),
                f"block_size={self.block_size} is not divisible by curriculum_splits={self.curriculum_splits}",
                f"--curriculum-splits {math.gcd(self.block_size, self.curriculum_splits)}",
            )
        if self.min_learning_rate > self.learning_rate:
            raise SettingError(
                ("min_learning_rate", "learning_rate"),
                f"min_learning_rate={self.min_learning_rate:g} is above learning_rate={self.learning_rate:g}",
                f"--min-learning-rate {self.learning_rate / 10:g}",
            )


SECTIONS: dict[str, type] = {"model": ModelSettings, "data": DataSettings, "training": TrainingSettings}


def as_source(source: SourceLike) -> Source:
    """Convert the source or sources that a function takes to the value of the setting `source`."""
    return str(source) if isinstance(source, str | Path) else tuple(map(str, source))


def list_sources(source: str | Sequence[str]) -> list[str]:
    """The sources in a value of the setting `source`."""
    return [source] if isinstance(source, str) else list(source)


def name_source(source: Source) -> str:
    """A source as messages name it: the first three of several."""
    if isinstance(source, str):
        return source
    rest = len(source) - 3
    return ", ".join(source[:3]) + (f" and {rest} more" if rest > 0 else "")


def expand_home(path: str) -> str:
    """A path with the home folder for a leading `~`. A shell leaves `~` in `--out=~/x`, and so does a TOML file."""
    return os.path.expanduser(path) if re.match(r"~($|[/\\])", path) else path


def unknown_name_error(
    kind: str, name: str, known: Iterable[object], *, setting_name: str | None = None, list_hint: str | None = None
) -> OctavoError:
    """The error for an unknown setting, preset, view, ..., with the nearest known name as hint.

    With `setting_name`, a `SettingError` for that setting. `list_hint` says how to list the known names, if they are
    too many for a message.
    """
    names = [str(known_name) for known_name in known]
    nearest = difflib.get_close_matches(name.replace("-", "_"), names, n=1, cutoff=0.5)
    if not nearest:
        hint = list_hint or "one of: " + ", ".join(names)
    elif kind == "setting":
        hint = "--" + nearest[0].replace("_", "-")
    elif kind == "section":
        hint = f"[{nearest[0]}]"
    elif kind == "logger":
        hint = f"--log {nearest[0]}"
    elif kind == "view":
        hint = f"octavo inspect RUN {nearest[0]}"
    else:
        hint = f"--{kind.replace('_', '-')} {nearest[0]}"
    message = f"there is no {kind} {name!r}"
    return OctavoError(message, hint) if setting_name is None else SettingError((setting_name,), message, hint)


def _validate(setting_field: "dataclasses.Field[Any]", value: Any) -> Any:
    """`value`, if it has the field's type and is within its bounds. An int is accepted as a float."""
    name, hint = setting_field.name, f"--{setting_field.name.replace('_', '-')} {setting_field.default}"
    if setting_field.type is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if setting_field.type == Source and isinstance(value, list | tuple) and value:
        if not all(isinstance(item, str) for item in value):
            raise SettingError((name,), f"{name}={value!r} is not a list of strings", hint)
        return tuple(_validate(setting_field, item) for item in value)
    expected_type = str if setting_field.type == Source else setting_field.type
    if type(value) is not expected_type:
        expected = {int: "an integer", float: "a number", bool: "true or false", str: "text"}[expected_type]  # type: ignore[index]
        raise SettingError((name,), f"{name}={value!r} is not {expected}", hint)
    if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
        raise SettingError((name,), f"{name}={value!r} is not valid UTF-8", "a value in UTF-8")
    if isinstance(value, float) and not math.isfinite(value):
        raise SettingError((name,), f"{name}={value} is not a finite number", hint)
    choices = setting_field.metadata["choices"]
    if choices and value not in choices:
        raise unknown_name_error(name, value, choices, setting_name=name)
    low, high = setting_field.metadata["low"], setting_field.metadata["high"]
    if isinstance(value, (int, float)) and not low <= value <= high:
        raise SettingError((name,), f"{name}={value} is not between {low} and {high}", hint)
    return value
