"""Resolve settings from defaults, preset, TOML file and explicit values; write and read settings.toml."""

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import tomli_w

from octavo.errors import OctavoError, SettingError, translate_setting_errors
from octavo.schema import read_toml
from octavo.settings.fields import SECTIONS, Settings, unknown_name_error
from octavo.settings.nanogpt import NANOGPT_NAMES
from octavo.settings.presets import PRESETS


def resolve(preset: str | None = None, config: str | Path | None = None, **explicit: Any) -> Settings:
    """Settings from the defaults, a preset, a TOML file and explicit values; each overrides the one before.

    Raises `OctavoError` for an unknown name, with the nearest known one, and for a value that is not allowed. If the
    value comes from the TOML file, the message names the file.
    """
    from_file = _read_toml(Path(config)) if config is not None else {}
    try:
        preset = preset or from_file.get("preset") or "tiny"
        if not isinstance(preset, str) or preset not in PRESETS:
            raise unknown_name_error("preset", str(preset), PRESETS, setting_name="preset")
        values: dict[str, Any] = {}
        for overrides in (PRESETS[preset], from_file, explicit):
            if "max_steps" in overrides:  # max_epochs of the defaults, preset or file could lower max_steps
                values["max_epochs"] = 0.0
            values |= overrides
        values["preset"] = preset
        for name in values:
            _check_name(name)
        return Settings(**values)
    except SettingError as error:
        if set(error.names) & (from_file.keys() - explicit.keys()):
            raise SettingError(error.names, f"in {config}: {error.message}", _as_toml(error.hint)) from None
        raise


def _as_toml(hint: str | None) -> str | None:
    """A hint for the command line, as a line of a TOML file: `n_head = 6` for `--n-head 6`."""

    def line(match: re.Match[str]) -> str:
        name, value = match[1].replace("-", "_"), match[2]
        setting = next((field for field in fields(Settings) if field.name == name), None)
        if setting is None:  # another flag, which no file has
            return match[0]
        if value is None or value in ("or", "and"):
            return name + (f" {value}" if value else "")
        return f'{name} = "{value}"' if setting.type is str else f"{name} = {value.lower()}"

    return hint and re.sub(r"--([a-z][a-z0-9-]*)(?: ([\w.:+-]+))?", line, hint)


def given_names(config: str | Path | None = None, **explicit: Any) -> set[str]:
    """The names of the settings that `resolve` takes from a TOML file or explicit values, not from a preset."""
    return ({*_read_toml(Path(config))} if config is not None else set()) | explicit.keys()


def to_toml(settings: Settings) -> str:
    """Settings as TOML, in the sections `model`, `data` and `training`. `from_toml` reads it back."""
    values = dataclasses.asdict(settings)
    sections = {name: {f.name: values[f.name] for f in fields(section)} for name, section in SECTIONS.items()}
    return tomli_w.dumps({"preset": settings.preset, **sections})


def from_toml(path: Path) -> Settings:
    """The settings that `to_toml` wrote to `path`."""
    with translate_setting_errors(path):
        values = _read_toml(path)
        for name in values:
            _check_name(name)  # `config` is a parameter of `resolve`, not a setting
        return resolve(**values)


def _check_name(name: str) -> None:
    known = [field.name for field in fields(Settings)]
    if name in NANOGPT_NAMES:
        raise SettingError((name,), f"{name} is a setting of nanoGPT, not of Octavo", NANOGPT_NAMES[name])
    if name not in known:
        raise unknown_name_error("setting", name, known, setting_name=name)


def _read_toml(path: Path) -> dict[str, Any]:
    """The settings of a TOML file, top-level or in the sections `[model]`, `[data]`, `[training]`."""
    if not os.path.exists(path):
        raise OctavoError(f"there is no settings file {path}", "check the path after --config")
    table = read_toml(path, "lines like: n_layer = 6")
    values: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping) and key not in SECTIONS:
            unknown = unknown_name_error("section", key, SECTIONS)
            raise OctavoError(f"in {path}: {unknown.message}", unknown.hint)
        for name, setting_value in (value if isinstance(value, Mapping) else {key: value}).items():
            if name in values:
                raise OctavoError(f"{path} sets {name} twice", "one line for each setting")
            values[name] = setting_value
    return values
