"""`octavo prepare`: convert a text to a folder of token shards; `--verify` checks such a folder."""

import argparse
import json
import sys
from typing import Any

from octavo.cli.parser import add_settings, add_sources, add_verb, explicit_settings, finish_verb
from octavo.errors import OctavoError
from octavo.settings import DataSettings, Settings, expand_home, resolve


def add_parser(verbs: Any, defaults: Settings) -> None:
    verb = add_verb(
        verbs,
        "prepare",
        "SOURCE... (--out DIR [--together] | --verify)",
        run,
        help="convert text to token shards",
        example="octavo prepare my.txt --out tokens --tokenizer bpe:4096",
    )
    add_sources(verb, "+")
    action = verb.add_mutually_exclusive_group(required=True)
    action.add_argument(
        "--out", type=expand_home, metavar="DIR", help="the folder to write; it must be empty or missing"
    )
    action.add_argument("--verify", action="store_true", help="read the prepared folder SOURCE and check every sha256")
    verb.add_argument(
        "--together",
        action="store_true",
        help="share the work with other processes that run the same command, on this machine or others",
    )
    add_settings(verb, DataSettings, defaults)
    finish_verb(verb)


def run(arguments: argparse.Namespace) -> int:
    from octavo.data.dataset import open_dataset
    from octavo.data.prepare import prepare_into_folder
    from octavo.data.together import prepare_together
    from octavo.terminal.progress import Progress

    if arguments.verify:
        if arguments.together:
            raise OctavoError("--together is for writing a folder", "--out DIR")
        dataset = open_dataset(_only_source(arguments.source), verify=True)
        print(
            json.dumps(dataset.info, ensure_ascii=False)
            if arguments.json
            else f"{dataset.folder}: all files match their sha256"
        )
        return 0
    settings = resolve(source=arguments.source, **explicit_settings(arguments))
    with Progress(sys.stderr):
        if arguments.together:
            info = prepare_together(settings, arguments.out).result
        else:
            info = prepare_into_folder(settings, arguments.out).result.info
    print(json.dumps(info, ensure_ascii=False) if arguments.json else _summarize(info, arguments.out))
    return 0


def _only_source(sources: list[str]) -> str:
    if len(sources) > 1:
        raise OctavoError("--verify reads one prepared folder", f"octavo prepare {sources[0]} --verify")
    return sources[0]


def _summarize(info: dict[str, Any], out: str) -> str:
    """What has been written, and how to train on it."""
    tokens, text = info["tokens"], info["text"]
    documents = f", {text['documents']:,} documents" if text["documents"] > 1 else ""
    duplicates = f", {text['left_out']:,} duplicates dropped" if text["left_out"] else ""
    return (
        f"{out}: {info['name']}, {text['bytes']:,} bytes{documents}{duplicates}, tokenizer "
        f"{info['tokenizer']} ({info['vocab_size']:,} tokens)\n"
        f"  train {tokens['train']:,} tokens, val {tokens['val']:,}, split by {info['split']['by']}\n"
        f"next: octavo train {out}"
    )
