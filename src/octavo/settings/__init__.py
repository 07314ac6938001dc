"""Every setting of a run: frozen dataclasses, named presets, and how the two become one `Settings`.

    fields.py    the settings, each with its type, default, bounds and help text
    presets.py   named sets of values
    nanogpt.py   nanoGPT's settings and config files, for its users
    resolve.py   defaults < preset < TOML file < command line; reading and writing TOML

Settings are validated when they are built, so code that receives them does not check them again. They are saved whole
in `settings.toml` and in every checkpoint. Nothing here imports torch or reads a text.
"""

from octavo.settings.fields import (
    LOGGERS,
    SAMPLE_TOKENS,
    SECTIONS,
    DataSettings,
    ModelSettings,
    Settings,
    Source,
    SourceLike,
    TrainingSettings,
    as_source,
    expand_home,
    list_sources,
    name_source,
    unknown_name_error,
)
from octavo.settings.nanogpt import NANOGPT_NAMES
from octavo.settings.presets import PRESETS
from octavo.settings.resolve import from_toml, given_names, resolve, to_toml

__all__ = [
    "LOGGERS",
    "NANOGPT_NAMES",
    "PRESETS",
    "SAMPLE_TOKENS",
    "SECTIONS",
    "DataSettings",
    "ModelSettings",
    "Settings",
    "Source",
    "SourceLike",
    "TrainingSettings",
    "as_source",
    "expand_home",
    "from_toml",
    "given_names",
    "list_sources",
    "name_source",
    "resolve",
    "to_toml",
    "unknown_name_error",
]
