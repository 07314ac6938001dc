"""Reject the options of nanoGPT's train.py and sample.py with one error, whose hint is the whole command in Octavo."""

import ast
import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from octavo.cli.suggestions import newest_run
from octavo.errors import OctavoError
from octavo.settings import nanogpt

# Options of nanoGPT's sample.py that Octavo does not have, each with what to use instead. They are reported for every
# verb except train and estimate, which report `NANOGPT_NAMES`, the options of nanoGPT's train.py.
SAMPLE_NAMES = {
    "start": "--prompt, or --prompt-file for FILE:",
    "out_dir": "the run itself, without a flag",
    "init_from": "the run itself, without a flag",
    "dtype": "no option: the model runs in float32",
    "compile": "no option: generation runs in C where that is faster",
}


class _Option(NamedTuple):
    flag: str
    name: str  # nanoGPT's
    value: Any  # as nanoGPT evaluates it; None if the command gives none


def reject_options(argv: Sequence[str], names: Mapping[str, str], flags: Sequence[str]) -> None:
    """Raise `OctavoError` if a command has options of nanoGPT that Octavo does not have.

    `names` are those options with what to use instead, `flags` are the flags of the verb.
    """
    options, rest = _split(argv[1:], names, flags)
    if not options:
        return
    answers = "; ".join(f"{option.flag} ({names[option.name]})" for option in options)
    is_one = len(options) == 1
    message = f"{'this is an option' if is_one else 'these are options'} of nanoGPT, not of Octavo: {answers}"
    values = {option.name: option.value for option in options}
    if any(value is None for value in values.values()):
        raise OctavoError(message, f"octavo {argv[0]} --help")
    match argv[0]:
        case "train":
            raise OctavoError(message, _train_command(values, rest))
        case "sample":
            raise OctavoError(message, _sample_command(values, rest))
        case verb:
            raise OctavoError(message, f"octavo {verb} --help")


def _split(words: Sequence[str], names: Mapping[str, str], flags: Sequence[str]) -> tuple[list[_Option], list[str]]:
    """The options of nanoGPT in a command, and its other words."""
    options: list[_Option] = []
    rest: list[str] = []
    position = 0
    while position < len(words):
        word = words[position]
        flag, equals, text = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        position += 1
        if word == "--":
            return options, [*rest, *words[position - 1 :]]
        if not word.startswith("--") or name not in names or flag.replace("_", "-") in flags:
            rest.append(word)
            continue
        if not equals and position < len(words) and not words[position].startswith("--"):
            text, equals = words[position], "="
            position += 1
        options.append(_Option(flag, name, _evaluate(text) if equals else None))
    return options, rest


def _evaluate(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return text


def _train_command(values: dict[str, Any], words: list[str]) -> str:
    """The command of Octavo for `train.py`, with the settings of the config file if the words name one."""
    more = [f"--out={values['out_dir']}"] if "out_dir" in values else []
    more += [f"--name={values['wandb_run_name']}"] if "wandb_run_name" in values else []
    config = next((word for word in words if nanogpt.is_config(word)), None)
    try:
        if config is None:
            return nanogpt.translate(values, with_defaults=False).command(*words, *more)
        shared = {_name(word): _evaluate(word.partition("=")[2]) for word in words if nanogpt.is_shared(_name(word))}
        rest = [word for word in words if word != config and _name(word) not in shared]
        return nanogpt.translate(nanogpt.read_config(config) | shared | values).command(*rest, *more)
    except OctavoError as error:
        return error.hint or error.message


def _name(word: str) -> str:
    """nanoGPT's name for the setting of `--n-layer=6`; another word gives no name."""
    return word[2:].partition("=")[0].replace("-", "_") if word.startswith("--") and "=" in word else ""


def _sample_command(values: dict[str, Any], words: list[str]) -> str:
    """The command of Octavo for `sample.py`."""
    out_dir = values.get("out_dir")
    if out_dir is not None and not os.path.exists(str(out_dir)):  # the run has another name in Octavo
        out_dir = newest_run() or out_dir
    run = nanogpt.hub_name(values.get("init_from")) or out_dir
    if run is None and (not words or words[0].startswith("-")):
        run = "RUN"
    command = ["octavo", "sample", *([str(run)] if run else []), *words]
    start = values.get("start")
    if start is not None:
        is_file = str(start).startswith("FILE:")
        command += ["--prompt-file", str(start)[5:]] if is_file else ["--prompt", str(start)]
    return shlex.join(command)
