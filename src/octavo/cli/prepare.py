"""`octavo prepare`: convert a text to a folder of token shards; `--verify` checks such a folder."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from octavo.cli.parser import SOURCE_HELP, add_settings, add_verb, explicit_settings, finish_verb
from octavo.settings import DataSettings, Settings, expand_home, resolve


def add_parser(verbs: Any, defaults: Settings) -> None:
    verb = add_verb(
        verbs,
        "prepare",
        "SOURCE (--out DIR | --verify)",
        run,
        help="convert text to token shards",
        example="octavo prepare my.txt --out tokens --tokenizer bpe:4096",
    )
    verb.add_argument("source", type=expand_home, metavar="SOURCE", help=SOURCE_HELP)
    action = verb.add_mutually_exclusive_group(required=True)
    action.add_argument(
        "--out", type=expand_home, metavar="DIR", help="the folder to write; it must be empty or missing"
    )
    action.add_argument("--verify", action="store_true", help="read the prepared folder SOURCE and check every sha256")
    add_settings(verb, DataSettings, defaults)
    finish_verb(verb)


def run(arguments: argparse.Namespace) -> int:
    from octavo.data.dataset import open_dataset
    from octavo.data.prepare import prepare_into_folder
    from octavo.terminal import run_preparation

    if arguments.verify:
        dataset = open_dataset(Path(arguments.source), verify=True)
        print(json.dumps(dataset.info) if arguments.json else f"{dataset.folder}: all files match their sha256")
        return 0
    settings = resolve(source=arguments.source, **explicit_settings(arguments))
    dataset = run_preparation(prepare_into_folder(settings, arguments.out), sys.stderr)
    if arguments.json:
        print(json.dumps(dataset.info))
        return 0
    info, tokens, text = dataset.info, dataset.info["tokens"], dataset.info["text"]
    documents = f", {text['documents']:,} documents" if text["documents"] > 1 else ""
    duplicates = f", {text['left_out']:,} duplicates dropped" if text["left_out"] else ""
    print(
        f"{dataset.folder}: {dataset.name}, {text['bytes']:,} bytes{documents}{duplicates}, tokenizer "
        f"{info['tokenizer']} ({info['vocab_size']:,} tokens)\n"
        f"  train {tokens['train']:,} tokens, val {tokens['val']:,}, split by {info['split']['by']}\n"
        f"next: octavo train {dataset.folder}"
    )
    return 0
