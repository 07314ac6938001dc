"""`octavo stats`: statistics of a text."""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from octavo.cli.parser import add_settings, add_sources, add_verb, explicit_settings, finish_verb, print_report
from octavo.settings import DataSettings, Settings, resolve

if TYPE_CHECKING:
    from octavo.data.statistics import Statistics


def add_parser(verbs: Any, defaults: Settings) -> None:
    verb = add_verb(
        verbs,
        "stats",
        "SOURCE...",
        run,
        help="show statistics of a text: sizes, frequent tokens, rare characters, repeated lines",
        example="octavo stats my.txt",
    )
    add_sources(verb, "+")
    add_settings(verb, DataSettings, defaults)
    finish_verb(verb)


def run(arguments: argparse.Namespace) -> int:
    from octavo.data.statistics import compute_statistics
    from octavo.terminal.progress import Progress

    settings = resolve(source=arguments.source, **explicit_settings(arguments))
    with Progress(sys.stderr):
        result = compute_statistics(settings).result
    return print_report(arguments, result, _format_report(result))


def _format_report(s: "Statistics") -> str:
    duplicates = f", {s.duplicates:,} of them duplicates" if s.duplicates else ""
    return (
        f"{s.name}\n"
        f"  characters           {s.characters:,} ({s.bytes:,} bytes), {s.distinct_characters:,} distinct\n"
        f"  documents            {s.documents:,}{duplicates}\n"
        f"  lines                {s.lines:,}, the longest with {s.longest_line:,} characters; "
        f"{s.repeated_lines:,} of 20 characters or more repeat an earlier one\n"
        f"  tokens               {sum(s.tokens.values()):,} with tokenizer {s.tokenizer}: train {s.tokens['train']:,}, "
        f"val {s.tokens['val']:,}\n"
        f"                       {s.characters_per_token:.2f} characters per token; "
        f"{s.unused_tokens:,} of {s.vocab_size:,} in the vocabulary are unused\n"
        f"  frequent tokens      {_format_counts(s.frequent_tokens)}\n"
        f"  rare characters      {_format_counts(s.rare_characters)}\n"
        f"  only in validation   {_format_counts(s.unseen_characters)}"
    )


def _format_counts(counts: list[tuple[str, int]]) -> str:
    return ", ".join(f"{text!r} {count:,}" for text, count in counts) or "none"
