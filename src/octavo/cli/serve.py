"""`octavo serve`: an OpenAI-compatible API, and a page that shows what the models compute."""

import argparse
import json
from typing import Any

from octavo.cli.parser import (
    RUN_HELP,
    add_device,
    add_overflow,
    add_quantize,
    add_verb,
    finish_verb,
    integer,
    print_notice,
    without_garbage_collection,
)
from octavo.settings import Settings, expand_home


def add_parser(verbs: Any, defaults: Settings) -> None:
    verb = add_verb(
        verbs,
        "serve",
        "RUN ...",
        run,
        help="serve models: an OpenAI-compatible API, and a page that shows what they compute",
        example="octavo serve runs/pydocs-1",
    )
    verb.add_argument(
        "runs", type=expand_home, nargs="+", metavar="RUN", help=f"{RUN_HELP}; NAME=RUN gives it another name"
    )
    verb.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="H",
        help="address to listen on; one that other machines can reach needs API keys (127.0.0.1)",
    )
    verb.add_argument(
        "--port", type=integer, default=8000, metavar="P", help="port to listen on; 0: any free port (8000)"
    )
    verb.add_argument(
        "--follow",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="serve newer checkpoints of a run while it trains; --no-follow: only the one of the start (on)",
    )
    verb.add_argument(
        "--api-key-file",
        type=expand_home,
        metavar="F",
        help="file with API keys, one per line, each after an optional name; OCTAVO_API_KEY can hold a single one",
    )
    verb.add_argument(
        "--rate-limit", type=integer, default=0, metavar="N", help="requests per minute of each key; 0: unlimited (0)"
    )
    verb.add_argument(
        "--token-limit", type=integer, default=0, metavar="N", help="tokens per minute of each key; 0: unlimited (0)"
    )
    verb.add_argument(
        "--root-path", default="", metavar="PREFIX", help="path prefix behind a reverse proxy, such as /octavo"
    )
    verb.add_argument(
        "--log-format", default="text", metavar="FORMAT", help="text, or json: an object on each line (text)"
    )
    verb.add_argument(
        "--log-level", default="info", metavar="LEVEL", help="debug, info, warning or error; debug: all requests (info)"
    )
    verb.add_argument(
        "--slots", type=integer, default=8, metavar="N", help="texts generated concurrently (continuous batching) (8)"
    )
    verb.add_argument("--queue", type=integer, default=64, metavar="N", help="texts that may wait for a slot (64)")
    verb.add_argument(
        "--prefix-cache", type=integer, default=256, metavar="MIB", help="prefix cache size in MiB; 0: off (256)"
    )
    add_overflow(verb, "stop")
    add_quantize(verb)
    verb.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="additional Host header to accept; may be repeated",
    )
    verb.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="URL",
        help="origin whose pages may call this server (CORS), such as https://example.org; may be repeated",
    )
    verb.add_argument(
        "--chat-template",
        type=expand_home,
        metavar="F",
        help="file with a Jinja2 template for chats; default: the model's own, else a plain transcript",
    )
    verb.add_argument("--docs", action="store_true", help="describe the API at /docs")
    add_device(verb)
    finish_verb(verb)


def run(arguments: argparse.Namespace) -> int:
    with without_garbage_collection():
        from octavo.server import serve

    def print_urls(models: list[str], url: str) -> None:
        page = url.removesuffix("v1")
        text = f"serving {', '.join(models)}: {page} (page), {url} (API); Ctrl-C stops"
        print(json.dumps({"models": models, "url": url, "page": page}) if arguments.json else text, flush=True)

    serve(
        arguments.runs,
        on_ready=print_urls,
        host=arguments.host,
        port=arguments.port,
        follow=arguments.follow,
        api_key_file=arguments.api_key_file,
        rate_limit=arguments.rate_limit,
        token_limit=arguments.token_limit,
        root_path=arguments.root_path,
        log_format=arguments.log_format,
        log_level=arguments.log_level,
        quantize=arguments.quantize,
        slots=arguments.slots,
        overflow=arguments.overflow,
        queue=arguments.queue,
        prefix_cache=arguments.prefix_cache,
        allow_hosts=arguments.allow_host,
        allow_origins=arguments.allow_origin,
        chat_template=arguments.chat_template,
        docs=arguments.docs,
        device=arguments.device,
        **({} if arguments.log_format == "json" else {"on_notice": print_notice}),
    )
    return 0
