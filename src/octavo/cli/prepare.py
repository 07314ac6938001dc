"""`octavo prepare`: text to a folder of token shards."""

import argparse
import json
import sys
from typing import Any

from octavo.cli.parser import SOURCE_HELP, add_settings, add_verb, explicit_settings, finish_verb
from octavo.settings import DataSettings, Settings, resolve


def add_parser(verbs: Any, defaults: Settings) -> None:
    verb = add_verb(
        verbs,
        "prepare",
        "SOURCE --out DIR",
        run,
        help="convert text to token shards",
        example="octavo prepare my.txt --out tokens --tokenizer bpe:4096",
    )
    verb.add_argument("source", metavar="SOURCE", help=SOURCE_HELP)
    verb.add_argument("--out", required=True, metavar="DIR", help="a folder that does not exist yet")
    add_settings(verb, DataSettings, defaults)
    finish_verb(verb)


def run(arguments: argparse.Namespace) -> int:
    from octavo.data.prepare import prepare_folder
    from octavo.terminal import run_preparation

    settings = resolve(source=arguments.source, **explicit_settings(arguments))
    dataset = run_preparation(prepare_folder(settings, arguments.out), sys.stderr)
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
