"""`octavo sample`: generate text with a model."""

import argparse
import dataclasses
import json
import shlex
import sys
from typing import Any

from octavo.cli.parser import (
    RUN_HELP,
    add_device,
    add_overflow,
    add_quantize,
    add_special_tokens,
    add_unknown,
    add_verb,
    finish_verb,
    integer,
    number,
    print_notice,
    read_text_file,
    without_garbage_collection,
)
from octavo.errors import OctavoError
from octavo.settings import Settings, expand_home
from octavo.units import escape_control_characters

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


def add_parser(verbs: Any, defaults: Settings) -> None:
    verb = add_verb(
        verbs,
        "sample",
        "RUN",
        run,
        help="generate text with a model",
        example='octavo sample runs/pydocs-1 --prompt "The "',
    )
    verb.add_argument("run", type=expand_home, metavar="RUN", help=RUN_HELP)
    prompt = verb.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", default="", metavar="TEXT", help="the prompt")
    prompt.add_argument("--prompt-file", type=expand_home, metavar="F", help="a file with the prompt; -: stdin")
    verb.add_argument("--max-new-tokens", type=integer, default=500, metavar="N", help="tokens to generate (500)")
    verb.add_argument("--temperature", type=number, default=0.8, metavar="T", help="temperature; 0: greedy (0.8)")
    verb.add_argument(
        "--top-k", type=integer, default=200, metavar="K", help="sample among the K most likely tokens; 0: all (200)"
    )
    verb.add_argument(
        "--top-p",
        type=number,
        default=1.0,
        metavar="P",
        help="nucleus sampling: smallest set of tokens with total probability P (1.0)",
    )
    verb.add_argument(
        "--min-p",
        type=number,
        default=0.0,
        metavar="P",
        help="drop tokens less likely than P times the most likely one (0.0)",
    )
    verb.add_argument(
        "--repetition-penalty",
        type=number,
        default=1.0,
        metavar="X",
        help="above 1: lower the logits of tokens in the prompt and the generated text (1.0)",
    )
    verb.add_argument(
        "--presence-penalty",
        type=number,
        default=0.0,
        metavar="X",
        help="subtracted from the logits of tokens that were generated (0.0)",
    )
    verb.add_argument(
        "--frequency-penalty",
        type=number,
        default=0.0,
        metavar="X",
        help="subtracted from the logit of a token once for each time it was generated (0.0)",
    )
    verb.add_argument("--seed", type=integer, default=1337, metavar="S", help="random seed (1337)")
    verb.add_argument("--num-samples", type=integer, default=1, metavar="N", help="texts to generate (1)")
    verb.add_argument(
        "--best-of",
        type=integer,
        default=0,
        metavar="N",
        help="generate N texts and print only those with the highest mean log-probability, as many as --num-samples; "
        "0: off (0)",
    )
    verb.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="stop before this text; may be repeated"
    )
    add_overflow(verb, "slide")
    verb.add_argument("--raw", action="store_true", help="print control characters to a terminal as they are")
    add_quantize(verb)
    add_unknown(verb)
    add_special_tokens(verb, "prompt")
    add_device(verb)
    finish_verb(verb)


def run(arguments: argparse.Namespace) -> int:
    with without_garbage_collection():
        from octavo import runs
        from octavo.device import find_device
        from octavo.generation.generate import most_likely, start_streams
        from octavo.generation.prompt import encode_prompt
        from octavo.generation.sampling import Sampling
        from octavo.generation.stream import TextRequest
        from octavo.terminal.progress import Progress

    sampling = Sampling(**{name: getattr(arguments, name) for name in _SAMPLING})
    prompt = arguments.prompt
    if prompt.startswith("FILE:"):
        raise OctavoError(
            f"the prompt is {prompt!r}, nanoGPT's way to name a file",
            f"--prompt-file {shlex.quote(prompt[5:])}; a prompt that really begins with FILE: must be in a file too",
        )
    if arguments.prompt_file is not None:
        prompt = read_text_file(arguments.prompt_file, "--prompt")
    with Progress(sys.stderr):  # of a download
        loaded = runs.load(arguments.run, find_device(arguments.device))
    request = TextRequest(
        prompt=encode_prompt(loaded.tokenizer, prompt, arguments.unknown, arguments.special_tokens),
        max_new_tokens=arguments.max_new_tokens,
        num_samples=arguments.num_samples,
        best_of=arguments.best_of,
        seed=arguments.seed,
        stop=tuple(arguments.stop),
        sampling=sampling,
        overflow=arguments.overflow,
    )
    streams = start_streams(loaded, request, quantize=arguments.quantize, on_notice=print_notice)
    if request.best_of or arguments.json:  # nothing can be printed before all are complete
        for stream in streams:
            stream.run()
    if request.best_of:
        streams = most_likely(streams, request.num_samples)
    if arguments.json:
        samples = [dataclasses.asdict(stream.sample) for stream in streams]
        print(json.dumps({"prompt": request.prompt.text, "samples": samples}, ensure_ascii=False))
        return 0
    show = escape_control_characters if sys.stdout.isatty() and not arguments.raw else str
    for i, stream in enumerate(streams):
        print(("\n---------------\n" if i else "") + show(request.prompt.text), end="", flush=True)
        for piece in [stream.text] if request.best_of else stream:
            print(show(piece), end="", flush=True)
    print()
    return 0
