"""The settings that are fixed by what training starts from: the weights of --init, a prepared folder, or a resumed run.

A setting that the user gives, on the command line, in Python or in a TOML file, is used or rejected, never ignored. The
settings of a preset are defaults, so what training starts from may replace them. `FIXED_BY` and `FREE` classify every
setting; `tests/test_fixed_settings.py` checks that none is missing.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from octavo.checkpoint import Checkpoint
from octavo.data.dataset import Dataset
from octavo.errors import OctavoError
from octavo.settings import DataSettings, Settings

ARCHITECTURE = {"vocab_size", "n_layer", "n_head", "n_embd", "bias", "activation"}
_INITIALIZATION = {"embedding_init", "weight_init"}
_READING = {"val_fraction", "text_field", "deduplicate", "special_tokens", "encoding", "errors"}

FIXED_BY = {
    "weights": ARCHITECTURE | _INITIALIZATION | {"tokenizer"},  # and a block_size at most as large
    "dataset": _READING | {"tokenizer"},
    "run": ARCHITECTURE | _INITIALIZATION | _READING | {"tokenizer", "block_size", "optimizer"},
}
FREE = {
    *("source", "dropout", "attention_dropout", "preset"),
    *("max_steps", "max_epochs", "batch_size", "micro_batch", "checkpoint_activations"),
    *("curriculum_splits", "curriculum_fraction"),
    *("learning_rate", "min_learning_rate", "warmup_steps", "schedule", "weight_decay", "grad_clip", "beta1", "beta2"),
    *("muon_learning_rate", "muon_weight_decay", "momentum", "on_divergence", "skip_spikes", "patience", "seed"),
    *("eval_every", "sample_every", "save_every", "log_every", "keep_checkpoints"),
    *("device", "precision", "compile", "log"),
}
# These values leave the choice to training, so they agree with any fixed value.
_AUTOMATIC = {"tokenizer": "auto", "vocab_size": 0}


def check_given(given: Mapping[str, Any], fixed: Mapping[str, Any], owner: str) -> None:
    """Raise `OctavoError` if a setting that the user gave differs from its fixed value. `owner` is what fixes it."""
    for name, value in given.items():
        if name in fixed and value not in (fixed[name], _AUTOMATIC.get(name, fixed[name])):
            raise OctavoError(
                f"{name} is {fixed[name]!r} in {owner} and can't be {value!r}",
                f"leave out --{name.replace('_', '-')}, or {name} in the --config file",
            )


def settings_of_weights(base: Checkpoint) -> dict[str, Any]:
    """The settings that the weights of a model fix, with the initialization that they had."""
    # An imported checkpoint has only `ModelSettings`, which do not say how its weights were initialized.
    settings = base.settings if isinstance(base.settings, Settings) else Settings(weight_init="noise")
    fixed = dataclasses.asdict(settings) | dataclasses.asdict(base.settings)
    # For word and BPE tokenizers, the fixed value states the vocabulary size: "word:5000". An imported checkpoint has
    # no setting `tokenizer`, and the setting "word" does not state the size.
    kind = base.tokenizer.kind
    if settings is not base.settings or fixed["tokenizer"] == kind:
        fixed["tokenizer"] = f"{kind}:{base.tokenizer.vocab_size}" if kind in ("word", "bpe") else kind
    return {name: fixed[name] for name in FIXED_BY["weights"]}


def settings_of_dataset(dataset: Dataset) -> dict[str, Any]:
    """The settings with which a folder was prepared. Those that it does not record have their default."""
    recorded = {"val_fraction": dataset.info["split"].get("val_fraction"), "tokenizer": dataset.info["tokenizer"]}
    recorded |= {"special_tokens": dataset.info.get("special_tokens")}
    defaults = DataSettings()
    return {
        name: getattr(defaults, name) if recorded.get(name) is None else recorded[name] for name in FIXED_BY["dataset"]
    }


def settings_of_run(settings: Settings) -> dict[str, Any]:
    """The settings of a run that must stay when it is resumed: weights, data order and optimizer state need them."""
    return {name: getattr(settings, name) for name in FIXED_BY["run"]}
