"""Every setting of a run, in three small dataclasses, and how they are resolved.

A value comes from the dataclass's default, the preset, a TOML file, the command line or a keyword, each
over the one before. Settings are frozen and checked when built, so whoever holds some holds good ones,
and they travel whole into `settings.toml` and the checkpoint. Nothing here knows of torch, disks or text.
"""

import dataclasses
import difflib
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import tomli_w

from octavo.errors import OctavoError


def setting(default: Any, help: str, *, low: float = -math.inf, high: float = math.inf,
            choices: tuple[str, ...] = ()) -> Any:  # fmt: skip
    """A dataclass field with its help text (unit in brackets) and the values it may take."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, "choices": choices})


LOGGERS = ("tensorboard", "wandb", "trackio")  # beside metrics.jsonl, see octavo.training.loggers


class _Checked:
    """What is built has the types and bounds of its fields."""

    def __post_init__(self) -> None:
        for each in fields(self):  # type: ignore[arg-type]
            object.__setattr__(self, each.name, _checked(each, getattr(self, each.name)))


@dataclass(frozen=True, kw_only=True)
class ModelSettings(_Checked):
    """What the model computes, and how its weights start. GPT-2's names."""

    block_size: int = setting(64, "longest context (tokens)", low=1, high=1 << 20)
    vocab_size: int = setting(0, "vocabulary (tokens); 0: the tokenizer's", low=0, high=1 << 24)
    n_layer: int = setting(4, "transformer blocks", low=1, high=1024)
    n_head: int = setting(4, "attention heads per block", low=1, high=1024)
    n_embd: int = setting(128, "width of the residual stream", low=1, high=1 << 16)
    dropout: float = setting(0.0, "dropout after the embedding and on both branches", low=0, high=0.99)
    attention_dropout: float = setting(
        0.0, "dropout on attention weights; above 0 it turns fused attention off on CPU", low=0, high=0.99
    )
    bias: bool = setting(True, "biases in linear layers and layer norms, as GPT-2 has them")
    activation: str = setting(
        "gelu_new", "the MLP's GELU: gelu_new is GPT-2's (tanh), gelu is exact", choices=("gelu_new", "gelu")
    )
    embedding_init: str = setting(
        "normal", "wte and wpe start from N(0, 0.02) or from ±1/sqrt(n_embd)", choices=("normal", "uniform")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_embd % self.n_head:
            fitting = min((h for h in range(1, min(self.n_embd, 1024) + 1) if self.n_embd % h == 0),
                          key=lambda h: (abs(h - self.n_head), -h))  # fmt: skip
            raise OctavoError(
                f"n_embd={self.n_embd} does not divide into n_head={self.n_head} heads", f"--n-head {fitting}"
            )

    @property
    def head_size(self) -> int:
        """Width of one attention head, D."""
        return self.n_embd // self.n_head


@dataclass(frozen=True, kw_only=True)
class DataSettings(_Checked):
    """Which text, and how it becomes tokens."""

    source: str = setting("pydocs", "a named corpus, a file, a folder, a glob, hf:NAME, a prepared folder, or -")
    tokenizer: str = setting("auto", "auto, char, byte, word[:N], bpe:N or gpt2")
    val_fraction: float = setting(
        0.1, "share for validation: a text's end, or of 100 documents and more some, by lot", low=0.0001, high=0.9
    )
    text_field: str = setting("text", "the field of JSON lines, Parquet tables and datasets that holds the text")
    deduplicate: bool = setting(False, "leave out documents that are there already, to the letter")
    encoding: str = setting("utf-8", "encoding of the text")
    errors: str = setting("strict", "what to do with undecodable bytes", choices=("strict", "replace", "ignore"))


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(_Checked):
    """How the weights are fitted, watched and kept."""

    max_steps: int = setting(1000, "optimizer steps", low=0, high=10**9)
    max_epochs: float = setting(
        8.0, "at most so many passes over the text, be it fewer steps; 0, or max_steps given: any", low=0, high=1e9
    )
    batch_size: int = setting(32, "sequences a step", low=1, high=1 << 20)
    micro_batch: int = setting(0, "sequences at once; 0: as many as fit", low=0, high=1 << 20)
    curriculum_splits: int = setting(
        1, "curriculum: begin with sequences of block_size / N (must divide block_size)", low=1, high=1 << 20
    )
    curriculum_fraction: float = setting(0.6, "fraction of the steps that curriculum_splits applies to", low=0, high=1)
    optimizer: str = setting(
        "muon", "muon: orthogonal updates for the blocks' matrices, AdamW for the rest", choices=("muon", "adamw")
    )
    learning_rate: float = setting(4e-3, "highest learning rate, AdamW's", low=0, high=100)
    min_learning_rate: float = setting(0.0, "learning rate at the end", low=0, high=100)
    warmup_steps: int = setting(20, "steps over which the learning rate rises", low=0, high=10**9)
    schedule: str = setting(
        "linear",
        "from learning_rate to min_learning_rate; wsd: constant, then linear",
        choices=("linear", "cosine", "wsd", "constant"),
    )
    decay_fraction: float = setting(0.2, "share of the steps in which wsd decays", low=0, high=1)
    weight_decay: float = setting(0.1, "decoupled decay, on matrices only", low=0, high=100)
    muon_learning_rate: float = setting(0.05, "Muon's highest learning rate; it follows the schedule", low=0, high=100)
    muon_weight_decay: float = setting(0.0, "Muon's decoupled decay", low=0, high=100)
    momentum: float = setting(0.95, "Muon's momentum", low=0, high=0.99999)
    weight_init: str = setting(
        "lookback",
        "layer 0's heads look 1, 2, 3 ... tokens back, and wpe is small sinusoids; the latter alone; GPT-2's noise",
        choices=("lookback", "sinusoids", "noise"),
    )
    beta1: float = setting(0.9, "AdamW's first decay", low=0, high=0.99999)
    beta2: float = setting(0.99, "AdamW's second decay", low=0, high=0.99999)
    grad_clip: float = setting(1.0, "largest gradient norm; 0: no clipping", low=0, high=1e9)
    eval_every: int = setting(250, "steps between evaluations", low=1, high=10**9)
    sample_every: int = setting(500, "steps between samples; 0: none", low=0, high=10**9)
    save_every: int = setting(0, "steps between checkpoints; 0: at each evaluation", low=0, high=10**9)
    log_every: int = setting(10, "steps between lines of metrics", low=1, high=10**9)
    keep: int = setting(10, "log-spaced weight-only checkpoints kept along the way", low=0, high=10**4)
    patience: int = setting(0, "evaluations without a better loss before stopping; 0: never", low=0, high=10**9)
    seed: int = setting(1337, "of the weights, the data order, dropout and samples", low=0, high=2**63 - 1)
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: str = setting("auto", "arithmetic of the model", choices=("auto", "fp32", "bf16", "fp16"))
    compile: str = setting(
        "auto", "torch.compile; auto: on CUDA, where it pays for a cold start", choices=("auto", "on", "off")
    )
    log: str = setting("none", f"where else to log: {', '.join(LOGGERS)}, or several with commas")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.loggers:
            if name not in LOGGERS:
                raise unknown("logger", name, LOGGERS)

    @property
    def loggers(self) -> list[str]:
        """The names in `log`, each once."""
        names = dict.fromkeys(each.strip() for each in self.log.split(","))
        return [name for name in names if name not in ("none", "")]


@dataclass(frozen=True, kw_only=True)
class Settings(ModelSettings, DataSettings, TrainingSettings):
    """All settings of a run. `GPT` and the others take it where they want their own part of it."""

    preset: str = setting("tiny", "the preset these settings started from")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preset not in PRESETS:
            raise unknown("preset", self.preset, PRESETS)
        if self.block_size % self.curriculum_splits:
            raise OctavoError(
                f"block_size={self.block_size} is not divisible by curriculum_splits={self.curriculum_splits}",
                f"--curriculum-splits {math.gcd(self.block_size, self.curriculum_splits)}",
            )
        if self.min_learning_rate > self.learning_rate:
            raise OctavoError(
                f"min_learning_rate={self.min_learning_rate:g} is above learning_rate={self.learning_rate:g}",
                f"--min-learning-rate {self.learning_rate / 10:g}",
            )


SECTIONS: dict[str, type] = {"model": ModelSettings, "data": DataSettings, "training": TrainingSettings}

# A GPT-2 of some size, on text of some size: GPT-3's table 2.1 and nanoGPT's recipe for 124M.
_GPT2 = dict(
    optimizer="adamw", weight_init="noise", schedule="cosine",
    block_size=1024, n_layer=12, n_head=12, n_embd=768, tokenizer="gpt2", batch_size=480, max_steps=20_000,
    learning_rate=6e-4, min_learning_rate=6e-5, warmup_steps=700, beta2=0.95, eval_every=500, sample_every=1000,
    val_fraction=0.01,
)  # fmt: skip
# nanoGPT's published recipes, to the letter: config/train_shakespeare_char.py and its README.
_NANOGPT = dict(
    optimizer="adamw", weight_init="noise", schedule="cosine", tokenizer="char", bias=False, activation="gelu",
    learning_rate=1e-3, min_learning_rate=1e-4, warmup_steps=100, beta2=0.99, weight_decay=0.1, grad_clip=1.0,
    eval_every=250, precision="fp32",
)  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {},  # the defaults: a laptop, about a minute on two cores
    "quick": dict(n_layer=2, batch_size=48, max_steps=120, max_epochs=8.0, warmup_steps=10, momentum=0.9),
    "baby": dict(
        block_size=256, n_layer=6, n_head=4, n_embd=256, dropout=0.15, batch_size=16, max_steps=2400, max_epochs=10.0,
        curriculum_splits=2, curriculum_fraction=0.5, muon_learning_rate=0.03, muon_weight_decay=0.1, eval_every=600,
        sample_every=600,
    ),
    "words": dict(tokenizer="word", n_layer=2, max_steps=1500, max_epochs=8.0, eval_every=250),
    "gpt2-512": _GPT2 | dict(block_size=512),
    "gpt2": _GPT2,
    "gpt2-medium": _GPT2 | dict(n_layer=24, n_head=16, n_embd=1024, learning_rate=3e-4, min_learning_rate=3e-5),
    "gpt2-large": _GPT2 | dict(n_layer=36, n_head=20, n_embd=1280, learning_rate=2.5e-4, min_learning_rate=2.5e-5),
    "gpt2-xl": _GPT2 | dict(n_layer=48, n_head=25, n_embd=1600, learning_rate=2e-4, min_learning_rate=2e-5),
    "finetune": _GPT2 | dict(
        batch_size=32, max_steps=200, learning_rate=3e-5, min_learning_rate=3e-6, schedule="linear", warmup_steps=10,
        dropout=0.1, eval_every=20, sample_every=50, val_fraction=0.1,
    ),
    "nanogpt-tiny": _NANOGPT | dict(
        block_size=64, n_layer=4, n_head=4, n_embd=128, batch_size=12, max_steps=2000, sample_every=500,
    ),
    "nanogpt-baby": _NANOGPT | dict(
        block_size=256, n_layer=6, n_head=6, n_embd=384, batch_size=64, max_steps=5000, dropout=0.2,
        attention_dropout=0.2, sample_every=1000,
    ),
}  # fmt: skip

# What nanoGPT calls them, for people who come with its habits.
NANOGPT_NAMES = {
    "max_iters": "--max-steps",
    "lr_decay_iters": "--max-steps: the schedule ends with the run",
    "warmup_iters": "--warmup-steps",
    "min_lr": "--min-learning-rate",
    "eval_interval": "--eval-every",
    "log_interval": "--log-every",
    "gradient_accumulation_steps": "--batch-size (sequences a step) and --micro-batch (sequences at once)",
    "dtype": "--precision",
    "decay_lr": "--schedule constant",
    "dataset": "the source itself: octavo train my.txt",
    "out_dir": "--out",
    "init_from": "--resume RUN or --init RUN",
    "eval_iters": "leave it out: evaluation takes the whole validation split",
    "always_save_checkpoint": "leave it out: last and best are always kept",
    "eval_only": "octavo eval RUN",
    "wandb_log": "--log wandb",
    "wandb_project": "WANDB_PROJECT in the environment, with --log wandb",
    "wandb_run_name": "--name",
    "backend": "leave it out: training runs in one process",
}


def resolve(preset: str | None = None, config: str | Path | None = None, **given: Any) -> Settings:
    """Settings from the defaults, a preset, a TOML file and what was given, each over the one before.

    Raises `OctavoError` for a name or value that isn't one, with the nearest that is.
    """
    from_file = _meant(_read_toml(Path(config))) if config is not None else {}
    preset = preset or from_file.pop("preset", None) or "tiny"
    if not isinstance(preset, str) or preset not in PRESETS:
        raise unknown("preset", str(preset), PRESETS)
    values = _meant(PRESETS[preset]) | from_file | _meant(given) | {"preset": preset}
    known = [each.name for each in fields(Settings)]
    try:
        for name in values:
            if name in NANOGPT_NAMES:
                raise OctavoError(f"{name} is nanoGPT's name", NANOGPT_NAMES[name])
            if name not in known:
                raise unknown("setting", name, known)
        return Settings(**values)
    except OctavoError as error:
        if any(name in error.message for name in from_file.keys() - given.keys()):
            raise OctavoError(f"in {config}: {error.message}", error.hint) from None
        raise


def _meant(values: dict[str, Any]) -> dict[str, Any]:
    """Whoever names the steps and not the epochs wants those steps."""
    return ({"max_epochs": 0.0} if "max_steps" in values else {}) | values


def to_toml(settings: Settings) -> str:
    """Settings as TOML, in the sections `model`, `data` and `training`; `from_toml` reads it back."""
    values = dataclasses.asdict(settings)
    sections = {name: {f.name: values[f.name] for f in fields(part)} for name, part in SECTIONS.items()}
    return tomli_w.dumps({"preset": settings.preset, **sections})


def from_toml(path: Path) -> Settings:
    """The settings that `to_toml` wrote to `path`."""
    return resolve(**_read_toml(path))


def unknown(kind: str, name: str, known: Any) -> OctavoError:
    """The error for a name that isn't one, with the nearest that is."""
    near = difflib.get_close_matches(name.replace("-", "_"), [str(k) for k in known], n=1, cutoff=0.5)
    if not near:
        hint = "one of: " + ", ".join(str(k) for k in known)
    elif kind == "setting":
        hint = "--" + near[0].replace("_", "-")
    elif kind == "section":
        hint = f"[{near[0]}]"
    elif kind == "logger":
        hint = f"--log {near[0]}"
    elif kind == "verb":
        hint = f"octavo {near[0]}"
    elif kind == "view":
        hint = f"octavo inspect RUN {near[0]}"
    else:
        hint = f"--{kind.replace('_', '-')} {near[0]}"
    return OctavoError(f"there is no {kind} {name!r}", hint)


def _read_toml(path: Path) -> dict[str, Any]:
    """The settings of a TOML file, flat or under `[model]`, `[data]`, `[training]`."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise OctavoError(f"there is no settings file {path}", "check the path after --config") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise OctavoError(f"{path} is not readable TOML: {error}", "lines like: n_layer = 6") from None
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping) and key not in SECTIONS:
            raise unknown("section", key, SECTIONS)
        for name, each in (value if isinstance(value, Mapping) else {key: value}).items():
            if name in flat:
                raise OctavoError(f"{path} gives {name} twice", "one line for each setting")
            flat[name] = each
    return flat


def _checked(each: "dataclasses.Field[Any]", value: Any) -> Any:
    """`value`, if it has the field's type and lies within its bounds."""
    flag = "--" + each.name.replace("_", "-")
    if each.type is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not each.type:
        wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[each.type]  # type: ignore[index]
        raise OctavoError(f"{each.name}={value!r} is not {wanted}", f"{flag} {each.default}")
    if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
        raise OctavoError(f"{each.name}={value!r} is not UTF-8", "another name for it")
    if isinstance(value, float) and not math.isfinite(value):
        raise OctavoError(f"{each.name}={value} is not a finite number", f"{flag} {each.default}")
    choices = each.metadata["choices"]
    if choices and value not in choices:
        raise unknown(f"{each.name}", value, choices)
    low, high = each.metadata["low"], each.metadata["high"]
    if isinstance(value, (int, float)) and not low <= value <= high:
        raise OctavoError(f"{each.name}={value} is not between {low} and {high}", f"{flag} {each.default}")
    return value
