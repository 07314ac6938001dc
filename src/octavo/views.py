"""The table of views: what `octavo.lens` shows of a model, with one name for each view. Pure data, without PyTorch.

A view's name is at once its function (`octavo.lens.attention`), its module (`octavo/lens/attention.py`), the word on
the command line (`octavo inspect RUN attention`) and its path in the API (`POST /lens/attention`). The command line's
help and flags, `octavo.lens.FUNCTIONS`, the served views and the plots derive from this table. Tests check that the
guide, the fields of the API and the tabs of the web page agree with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Option:
    """An option of views. `kind` is the type of one value; `flag` is its name on the command line."""

    name: str
    kind: type
    metavar: str
    help: str
    flag: str = ""  # default: the name
    count: int = 1  # values that the flag takes
    is_list: bool = False  # a list in Python and the API; the flag gives a list of one item: --position 3 is [3]
    takes_ids: bool = False  # a token's text, or its id: the command line has --FLAG-id too
    choices: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "flag", self.flag or self.name)


@dataclass(frozen=True)
class ViewSpec:
    """A view: its name, what it shows, the options that it takes, and where it can be seen."""

    name: str
    summary: str
    options: tuple[str, ...] = ()
    tab: str = ""  # the tab of the web page that shows the view; empty: none does
    is_served: bool = True  # at POST /lens/NAME
    is_plotted: bool = False  # by `octavo.lens.plots`
    takes_preset: bool = False  # works on settings alone, without a trained model


OPTIONS = {
    option.name: option
    for option in (
        Option("text", str, "TEXT", "the text to look at; default: a text that the model generates"),
        Option("layer", int, "N", "a layer, from 0; negative: from the last"),
        Option("head", int, "N", "a head, from 0; negative: from the last"),
        Option("position", int, "N", "a position, from 0; negative: from the last; default: -1"),
        Option("positions", int, "N", "a position, from 0; negative: from the last", "position", is_list=True),
        Option("token", str, "TEXT", "the token whose logit to explain; default: the most likely", takes_ids=True),
        Option("word", str, "TEXT", "a word; default: cat in the view position, king in neighbors", takes_ids=True),
        Option(
            "words",
            str,
            "TEXT",
            "a word to show besides the most frequent tokens",
            "word",
            is_list=True,
            takes_ids=True,
        ),
        Option("against", str, "TEXT", "another token to compare with", takes_ids=True),
        Option("at", int, "N", "the two positions; default: 1 10", count=2),
        Option("top", int, "N", "how many tokens to show"),
        Option("seed", int, "N", "seed of the random token ids (0)"),
        Option(
            "unknown",
            str,
            "WHAT",
            "how to handle characters that are not in the tokenizer's vocabulary (error)",
            choices=("error", "skip", "replace"),
        ),
    )
}

VIEWS = {  # in the order in which a learner meets them
    view.name: view
    for view in (
        ViewSpec(
            "shapes",
            "the shape, parameters and FLOPs of every stage of the forward pass",
            ("text", "layer", "head", "unknown"),
            "walk",
            takes_preset=True,
        ),
        ViewSpec(
            "tokens",
            "the tokens of a text; tokens that together make one character are a group",
            ("text", "unknown"),
            "walk",
        ),
        ViewSpec(
            "position",
            "a word at two positions: token embedding plus position embedding",
            ("word", "at"),
            "positions_and_words",
            is_plotted=True,
        ),
        ViewSpec(
            "neighbors",
            "the tokens with the most similar embeddings, and how that changed during training",
            ("word", "top", "against"),
            "positions_and_words",
            is_plotted=True,
        ),
        ViewSpec(
            "projection",
            "the token embeddings on their two principal axes",
            ("words",),
            "positions_and_words",
            is_plotted=True,
        ),
        ViewSpec(
            "attention",
            "the attention pattern of one head, and statistics of all heads",
            ("text", "layer", "head", "unknown"),
            "attention",
            is_plotted=True,
        ),
        ViewSpec("flow", "all layers at once: residual stream, patterns and predictions", ("text", "unknown"), "model"),
        ViewSpec("next_token", "the logits of the next token", ("text", "unknown"), "playground"),
        ViewSpec(
            "logit_lens",
            "the most likely next tokens after every layer",
            ("text", "top", "positions", "unknown"),
            "playground",
            is_plotted=True,
        ),
        ViewSpec(
            "contributions",
            "how much every head and MLP contributed to a logit",
            ("text", "position", "token", "against", "unknown"),
            "playground",
            is_plotted=True,
        ),
        ViewSpec(
            "ablation",
            "the loss and the next token without one head, attention, MLP or layer, for each in turn",
            ("text", "layer", "unknown"),
            is_plotted=True,
        ),
        ViewSpec(
            "surprisal",
            "the negative log-probability of every token, and the text's loss",
            ("text", "unknown"),
            "playground",
            is_plotted=True,
        ),
        ViewSpec("losses", "the losses of a run during training", (), "training", is_served=False, is_plotted=True),
        ViewSpec("verify", "check the lens and the model against a float64 reference", ("seed",), is_served=False),
    )
}


def options_from_flags(view: str, flags: Mapping[str, Any]) -> dict[str, Any]:
    """A view's options from values by flag: `--position 3` is `positions=[3]` for a view that takes several.

    A flag that the view does not take keeps its name; `octavo.lens.inspect` reports it as an error.
    """
    options_by_flag = {OPTIONS[name].flag: OPTIONS[name] for name in VIEWS[view].options}
    options = {}
    for flag, value in flags.items():
        option = options_by_flag.get(flag)
        options[option.name if option else flag] = [value] if option and option.is_list else value
    return options


def command_line_flags() -> dict[str, list[tuple[Option, list[str]]]]:
    """The command line's flags, in the order of `OPTIONS`: the options behind each, with the views that take them."""
    flags: dict[str, list[tuple[Option, list[str]]]] = {}
    for option in OPTIONS.values():
        view_names = [view.name for view in VIEWS.values() if option.name in view.options]
        flags.setdefault(option.flag, []).append((option, view_names))
    return flags
