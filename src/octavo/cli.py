"""The verbs. Each parses its words, calls one function of the package, and prints what came back.

No logic lives here, and nothing heavy is imported before a verb needs it, so `octavo --help` is quick.
argparse rather than a library that builds a command line out of a dataclass: only what was really given may
lie over a preset, `--bias=False` and `--n_layer=6` must work as nanoGPT's users type them, and every mistake
gets the one form of answer that all of Octavo gives.
"""

import argparse
import dataclasses
import difflib
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import octavo
from octavo import views
from octavo.errors import OctavoError
from octavo.settings import NANOGPT_NAMES, PRESETS, SECTIONS, DataSettings, Settings, resolve, unknown_name_error

# What nanoGPT's sample.py calls them.
_NANOGPT_SAMPLES = {"start": "--prompt", "out_dir": "the run itself: octavo sample runs/my-1", "init_from": "the RUN",
                    "dtype": "nothing: sampling runs in float32"}  # fmt: skip
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
_WRITING = ("max_new_tokens", "num_samples", "best_of", "seed", "stop", "unknown", "overflow", "quantize")
SOURCE = "a named corpus, a file, folder or glob (text, .jsonl, .parquet; .gz, .zst), hf:NAME or -"
VERBS = ("train", "sample", "eval", "inspect", "serve", "prepare", "stats", "estimate", "bench")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; give the exit code: 0, 2 for what the user got wrong, 130 for Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a pipe on Windows, a terminal in the C locale
            stream.reconfigure(errors="replace")
    try:
        try:
            arguments = _parse(list(sys.argv[1:] if argv is None else argv))
            return int(arguments.verb(arguments) or 0)
        finally:
            sys.stdout.flush()  # here a closed pipe can still be told from an error
    except OctavoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader has read enough, as in `octavo sample ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def train(arguments: argparse.Namespace) -> int:
    """octavo train"""
    from octavo import training
    from octavo.terminal import Progress

    planned = training.plan(
        arguments.source,
        preset=arguments.preset,
        config=arguments.config,
        resume=arguments.resume,
        init=arguments.init,
        out=arguments.out,
        name=arguments.name,
        **_given(arguments),
    )
    progress = Progress(sys.stderr if arguments.json else sys.stdout)
    with training.interruptible() as stop, progress:
        for event in training.events(planned, stop=stop):
            progress.show(event)
    ended = progress.finished
    assert ended is not None
    if arguments.json:
        values = dataclasses.asdict(ended) | {"run": str(ended.run), "checkpoint": str(ended.checkpoint)}
        del values["reason"]
        print(json.dumps(values))
    return 130 if ended.reason == "stopped" else 0


def sample(arguments: argparse.Namespace) -> int:
    """octavo sample"""
    from octavo import runs
    from octavo.device import find_device
    from octavo.generation.sampling import Sampling
    from octavo.generation.stream import continuations, likeliest

    sampling = Sampling(**{name: getattr(arguments, name) for name in _SAMPLING})
    prompt = _prompt(arguments)
    loaded = runs.load(arguments.run, find_device(arguments.device))
    how = {name: getattr(arguments, name) for name in _WRITING}
    notice = lambda text: print(f"note: {text}", file=sys.stderr)  # noqa: E731
    texts = continuations(loaded, prompt, sampling=sampling, notice=notice, **how)
    if arguments.best_of:
        texts = list(likeliest(texts, arguments.num_samples))
    for number, text in enumerate(texts):
        if not arguments.json:
            print(("\n---------------\n" if number else "") + prompt, end="", flush=True)
        for piece in [text.sample.text] if arguments.best_of else text:  # of the best all is written by now
            if not arguments.json:
                print(piece, end="", flush=True)
    if arguments.json:
        print(json.dumps({"prompt": prompt, "samples": [dataclasses.asdict(t.sample) for t in texts]}))
    else:
        print()
    return 0


def evaluate(arguments: argparse.Namespace) -> int:
    """octavo eval"""
    from octavo import evaluation
    from octavo.device import find_device

    result = evaluation.evaluate(
        arguments.run,
        arguments.source,
        block_size=arguments.block_size,
        unknown=arguments.unknown,
        encoding=arguments.encoding,
        errors=arguments.errors,
        text_field=arguments.text_field,
        device=find_device(arguments.device),
    )
    return _report(
        arguments,
        result,
        f"loss           {result.loss:.4f} nats per token\n"
        f"perplexity     {result.perplexity:.3f}\n"
        f"bits per byte  {result.bits_per_byte:.4f}\n"
        f"over {result.tokens:,} tokens, {result.bytes:,} bytes, in windows of {result.block_size}",
    )


def inspect(arguments: argparse.Namespace) -> int:
    """octavo inspect"""
    from octavo import lens, runs

    given = {flag: getattr(arguments, flag) for flag in views.views_by_flag() if getattr(arguments, flag) is not None}
    if arguments.text_file is not None:
        given["text"] = _file_or_stdin(arguments.text_file, "text")
    if arguments.html is not None:
        _write_page(arguments, given)
        if len(arguments.words) == 1:
            return 0
    *run, view = arguments.words
    if len(run) + bool(arguments.preset) != 1:
        raise OctavoError("inspect takes a RUN, or --preset, and one VIEW", "octavo inspect runs/my-1 attention")
    view = view.replace("-", "_")
    if view not in views.VIEWS:
        raise unknown_name_error("view", view, views.VIEWS)
    options = views.options_from_flags(view, given)
    seen = lens.inspect(runs.load(run[0]) if run else _with_vocabulary(resolve(arguments.preset)), view, **options)
    if getattr(seen, "left_out", 0):
        print(f"note: {seen.left_out:,} tokens at the end of the text are left out: too many for this view",  # type: ignore[attr-defined]
              file=sys.stderr)  # fmt: skip
    if arguments.plot is not None:
        from octavo.lens import plots

        plots.save(seen, arguments.plot)
        print(f"drawn: {arguments.plot}", file=sys.stderr)
    print(json.dumps(seen.plain(), ensure_ascii=False) if arguments.json else seen)
    return 0 if getattr(seen, "ok", True) else 1


def _write_page(arguments: argparse.Namespace, given: dict[str, Any]) -> None:
    """`octavo inspect RUN [VIEW] --html F`"""
    from octavo import files, runs
    from octavo.server import static_page

    if arguments.preset:
        raise OctavoError("--html shows a trained model, and a preset has only settings", "a RUN")
    taken = {name: value for name, value in given.items() if name in ("text", "layer", "head", "unknown")}
    if len(arguments.words) == 1 and (extra := sorted(given.keys() - taken.keys())):
        raise OctavoError(f"--html takes no {extra[0]}", "--text, --layer or --head")
    path = Path(arguments.html)
    content = static_page.static(runs.load(arguments.words[0]), **taken)
    with files.translate_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise OctavoError(f"{path} is a folder", f"--html {path / 'walk.html'}")
    files.write_atomic(path, content)
    print(f"written: {path}, {len(content.encode()) / 1e6:.1f} MB", file=sys.stderr)


def _with_vocabulary(settings: Settings) -> Settings:
    """Settings with the vocabulary that their tokenizer has, where that is one and the same for all texts."""
    from octavo.tokenizers import FIXED

    if not settings.vocab_size and settings.tokenizer not in FIXED:
        raise OctavoError(f"the preset {settings.preset} takes its vocabulary from the text",
                          "--preset gpt2-512, or a RUN")  # fmt: skip
    return dataclasses.replace(settings, vocab_size=settings.vocab_size or FIXED[settings.tokenizer])


def serve(arguments: argparse.Namespace) -> int:
    """octavo serve"""
    from octavo.server import serve as serve_runs

    def ready(models: list[str], url: str) -> None:
        page = url.removesuffix("v1")
        said = f"serving {', '.join(models)}: {page} (page), {url} (API) (Ctrl-C ends)"
        print(json.dumps({"models": models, "url": url, "page": page}) if arguments.json else said, flush=True)

    serve_runs(
        arguments.runs, ready, host=arguments.host, port=arguments.port, api_key_file=arguments.api_key_file,
        quantize=arguments.quantize, slots=arguments.slots, overflow=arguments.overflow, queue=arguments.queue,
        prefix_cache=arguments.prefix_cache,
        allow_hosts=arguments.allow_host, allow_origins=arguments.allow_origin, device=arguments.device,
        notice=lambda text: print(f"note: {text}", file=sys.stderr),
    )  # fmt: skip
    return 0


def prepare(arguments: argparse.Namespace) -> int:
    """octavo prepare"""
    from octavo.data.prepare import preparing_into
    from octavo.terminal import followed

    settings = resolve(source=arguments.source, **_given(arguments))
    made = followed(preparing_into(settings, arguments.out), sys.stderr)
    if arguments.json:
        print(json.dumps(made.info))
    else:
        counts, text, split = made.info["tokens"], made.info["text"], made.info["split"]
        documents = f", {text['documents']:,} documents" if text["documents"] > 1 else ""
        left_out = f", {text['left_out']:,} copies left out" if text["left_out"] else ""
        print(
            f"{made.folder}: {made.name}, {text['bytes']:,} bytes{documents}{left_out}, tokenizer "
            f"{made.info['tokenizer']} ({made.info['vocab_size']:,} tokens)\n"
            f"  train {counts['train']:,} tokens, val {counts['val']:,}, split by {split['by']}\n"
            f"next: octavo train {made.folder}"
        )
    return 0


def stats(arguments: argparse.Namespace) -> int:
    """octavo stats"""
    from octavo.data.statistics import statistics
    from octavo.terminal import followed

    found = followed(statistics(resolve(source=arguments.source, **_given(arguments))), sys.stderr)

    def listed(pairs: list[tuple[str, int]]) -> str:
        return ", ".join(f"{text!r} {count:,}" for text, count in pairs) or "none"

    copies = f", {found.duplicates:,} of them copies" if found.duplicates else ""
    return _report(
        arguments,
        found,
        f"{found.name}\n"
        f"  characters    {found.characters:,} ({found.bytes:,} bytes), {found.different_characters:,} different\n"
        f"  documents     {found.documents:,}{copies}\n"
        f"  lines         {found.lines:,}, the longest of {found.longest_line:,} characters; "
        f"{found.repeated_lines:,} long ones came before\n"
        f"  tokens        {sum(found.tokens.values()):,} by {found.tokenizer}: train {found.tokens['train']:,}, "
        f"val {found.tokens['val']:,}\n"
        f"                {found.characters_per_token:.2f} characters each; of {found.vocab_size:,} in the vocabulary "
        f"{found.unused_tokens:,} unused\n"
        f"  frequent      {listed(found.frequent_tokens)}\n"
        f"  rare          {listed(found.rare_characters)}\n"
        f"  only in val   {listed(found.unseen_characters)}",
    )


def estimate(arguments: argparse.Namespace) -> int:
    """octavo estimate"""
    from octavo import training
    from octavo.estimate import FLOPS_FORMULA
    from octavo.terminal import clock, followed
    from octavo.training.run_estimate import estimate_run_steps
    from octavo.units import format_bytes

    planned = training.plan(arguments.source, preset=arguments.preset, config=arguments.config, **_given(arguments))
    settings = planned.settings
    named = arguments.source is not None or settings.source != DataSettings().source
    found = followed(estimate_run_steps(planned, arguments.price, prepare_text=named), sys.stderr)

    def listed(parts: dict[str, Any], shown: Callable[[Any], str]) -> str:
        return ", ".join(f"{what.replace('_', ' ')} {shown(each)}" for what, each in parts.items() if each)

    count, parts, flops = found.parameters, found.parameters_by_part, found.flops_by_part
    text = "" if found.epochs is None else f", {found.epochs:,.1f} passes over {found.train_tokens:,} tokens of text"
    lines = [
        f"parameters  {count:,}: {listed(parts, '{:,}'.format)}",
        f"            wte is the head too, and counted once; {count - parts['wpe']:,} without wpe, as nanoGPT counts, "
        f"{count - parts['wpe'] - parts['wte']:,} without both",
        f"FLOPs       {found.flops_per_token:,} a token: forward {flops['forward']:,}, backward {flops['backward']:,}; "
        f"attention's {flops['attention']:,} are in both",
        f"            {FLOPS_FORMULA}",
        f"memory      {format_bytes(found.memory_bytes)} at the peak, on {found.device} in {found.precision}, with "
        f"{found.micro_batch} sequences at once",
        f"            {listed(found.memory_by_part, format_bytes)}",
        f"run         {found.steps:,} steps of {settings.batch_size * settings.block_size:,} tokens{text}",
    ]
    if found.seconds is not None:
        lines.append(f"time        {clock(found.seconds)}: {listed(found.seconds_by_part, clock)}")
        lines.append(f"            at {found.tokens_per_second or 0:,.0f} tokens a second, tried for two seconds")
    if found.price is not None:
        lines.append(f"price       {found.price:,.2f}, at {arguments.price:,.2f} an hour")
    return _report(arguments, found, "\n".join([*lines, *(f"warning: {each}" for each in found.warnings)]))


def bench(arguments: argparse.Namespace) -> int:
    """octavo bench"""
    settings = resolve(arguments.preset, **_given(arguments))
    told = lambda line: print(line, file=sys.stderr)  # noqa: E731
    if arguments.what == "train":
        if arguments.run:
            raise OctavoError("bench train times a preset, not a run", "octavo bench train --preset tiny")
        return _bench_train(arguments, settings, told)
    return (_bench_generate if arguments.what == "generate" else _bench_serve)(arguments, settings, told)


def _bench_train(arguments: argparse.Namespace, settings: Settings, told: Callable[[str], None]) -> int:
    from octavo.benchmark import training

    result = training.benchmark_training(settings, arguments.rounds, told)
    return _report(
        arguments,
        result,
        f"step             {1000 * result.step_seconds:,.1f} ms, median of {arguments.rounds}\n"
        f"tokens           {result.tokens_per_second:,.0f} a second\n"
        f"model            {result.flops_per_second / 1e9:,.0f} GFLOP/s\n"
        f"products alone   {1000 * result.matmul_seconds:,.1f} ms, "
        f"{result.matmul_flops_per_second / 1e9:,.0f} GFLOP/s\n"
        f"products' share  {result.matmul_share:.0%}\n"
        f"{training.FORMULA}",
    )


def _bench_generate(arguments: argparse.Namespace, settings: Settings, told: Callable[[str], None]) -> int:
    from octavo import runs
    from octavo.benchmark import generation
    from octavo.device import find_device

    device = find_device(settings.device)
    model = runs.load(arguments.run, device).model if arguments.run else generation.untrained_model(settings, device)
    result = generation.benchmark_generation(model, arguments.quantize, arguments.rounds, told)
    return _report(
        arguments,
        result,
        f"first token      {1000 * result.prefill_seconds:,.1f} ms, after {result.prompt_tokens} tokens\n"
        f"one text         {result.tokens_per_second:,.1f} tokens a second\n"
        f"{result.streams} texts          {result.streams_tokens_per_second:,.1f} tokens a second, "
        f"their prompts' reading included\n"
        f"this reads       {result.bytes_per_token / 1e6:,.1f} MB a token, of weights, keys and values\n"
        f"the memory gives {result.memory_bandwidth / 1e9:,.1f} GB/s, of which one text has "
        f"{result.bandwidth_share:.0%}",
    )


def _bench_serve(arguments: argparse.Namespace, settings: Settings, told: Callable[[str], None]) -> int:
    from octavo.benchmark import serving

    result = serving.serve(arguments.run, settings, arguments.quantize, arguments.rounds, told)
    refused = ", ".join(f"{what} {1000 * seconds:.1f}" for what, seconds in result.refused_seconds.items())
    answers = ", ".join(f"{count} times {status}" for status, count in sorted(result.overload.items()))
    return _report(
        arguments,
        result,
        f"ready after      {result.ready_seconds:.2f} s\n"
        f"{serving.CLIENTS} streams        first token after {1000 * result.first_token_seconds:.1f} ms, "
        f"{result.tokens_per_second:,.0f} tokens a second\n"
        f"between tokens   {1000 * result.gap_seconds:.2f} ms, 95th percentile {1000 * result.gap_p95_seconds:.2f} "
        f"({result.gap_ratio:.2f} times)\n"
        f"refused, in ms   {refused}\n"
        f"short request    95th percentile {1000 * result.honest_p95_seconds:.1f} ms, beside {serving.TRICKLING} "
        f"trickling clients {1000 * result.honest_p95_trickling_seconds:.1f}\n"
        f"ten times more   than it holds: {answers}\n"
        f"SIGTERM          ends after {result.drain_seconds:.2f} s, what was under way finished",
    )


def _report(arguments: argparse.Namespace, result: Any, text: str) -> int:
    """Print a dataclass as `--json` has it, or as text."""
    print(json.dumps(dataclasses.asdict(result)) if arguments.json else text)
    return 0


class _Parser(argparse.ArgumentParser):
    """argparse, with our form of error and no guessing at abbreviations."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        raise OctavoError(message[0].lower() + message[1:], f"{self.prog} --help")


def _parse(argv: list[str]) -> argparse.Namespace:
    """The verb and its words. `--n_layer=6` is `--n-layer=6`; an unknown flag is answered with the nearest."""
    argv = [_hyphened(word) for word in argv] or ["--help"]
    parser = _parser(_defaults(argv))
    if argv[0] not in VERBS and not argv[0].startswith("-"):
        raise unknown_name_error("verb", argv[0], VERBS)
    arguments, extra = parser.parse_known_args(argv)
    if arguments.verb is inspect and not any(word.startswith("-") for word in extra):
        arguments.words, extra = [*arguments.words, *extra], []  # argparse takes only those before the first option
    if extra:
        flags = [flag for flag in arguments.flags if flag.startswith("--")]
        word = extra[0].partition("=")[0]
        names = NANOGPT_NAMES if arguments.verb in (train, estimate) else _NANOGPT_SAMPLES
        theirs = names.get(word.removeprefix("--").replace("-", "_"))
        if theirs is not None:
            raise OctavoError(f"{word} is nanoGPT's name", theirs)
        near = difflib.get_close_matches(word, flags, n=1, cutoff=0.6)
        what = f"there is no option {word}" if word.startswith("-") else f"one word too many: {word!r}"
        raise OctavoError(what, near[0] if near else f"{arguments.prog} --help")
    return arguments


def _hyphened(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def _defaults(argv: list[str]) -> Settings:
    """The settings that `--help` shows as defaults: those of the preset that is named."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--preset")
    early.add_argument("--init")
    try:
        given = early.parse_known_args(argv)[0]
        preset = given.preset or ("finetune" if given.init else None)
    except argparse.ArgumentError:
        preset = None
    return resolve(preset if preset in PRESETS else None)


def _parser(defaults: Settings) -> _Parser:
    parser = _Parser(prog="octavo", description=(octavo.__doc__ or "").partition("\n")[0])
    parser.add_argument("--version", action="version", version=f"octavo {octavo.__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    verb = _verb(verbs, "train", "[SOURCE]", train, "train a GPT on a text", "octavo train my.txt --n-layer 6")
    verb.add_argument(
        "source",
        nargs="?",
        metavar="SOURCE",
        help="pydocs, shakespeare, a file, folder, glob, hf:NAME, prepared folder or -",
    )
    verb.add_argument("--preset", metavar="P", help=f"where the settings start: {', '.join(PRESETS)}")
    verb.add_argument("--config", metavar="F.toml", help="settings from a TOML file, over the preset")
    verb.add_argument("--out", metavar="DIR", help="the run's folder; default: runs/NAME")
    verb.add_argument("--name", help="the run's name; default: the corpus's and the next number")
    verb.add_argument("--resume", metavar="RUN", help="go on with a run")
    verb.add_argument(
        "--init",
        metavar="RUN",
        help="start from the weights of a RUN or a Hugging Face GPT-2 folder, with the preset finetune",
    )
    for title, part in SECTIONS.items():
        _add_settings(verb.add_argument_group(f"{title} settings"), part, defaults, leave_out=("source",))
    _finish(verb)

    verb = _verb(verbs, "sample", "RUN", sample, "write text with a RUN", 'octavo sample runs/pydocs-1 --prompt "The "')
    verb.add_argument("run", metavar="RUN", help="a run, one of its checkpoints, or a Hugging Face GPT-2 folder")
    prompt = verb.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", default="", metavar="TEXT", help="what to continue")
    prompt.add_argument("--prompt-file", metavar="F", help="a file whose text to continue; -: stdin")
    verb.add_argument("--max-new-tokens", type=_whole, default=500, metavar="N", help="tokens to write (500)")
    verb.add_argument("--temperature", type=_number, default=0.8, metavar="T", help="0: always the likeliest (0.8)")
    verb.add_argument("--top-k", type=_whole, default=200, metavar="K", help="of the K likeliest; 0: of all (200)")
    verb.add_argument("--top-p", type=_number, default=1.0, metavar="P", help="of the likeliest that make up P (1.0)")
    verb.add_argument("--min-p", type=_number, default=0.0, metavar="P", help="of those with P of the likeliest (0.0)")
    verb.add_argument("--repetition-penalty", type=_number, default=1.0, metavar="X",
                      help="above 1: less of what was seen (1.0)")  # fmt: skip
    verb.add_argument("--presence-penalty", type=_number, default=0.0, metavar="X",
                      help="taken from the logits of what was written (0.0)")  # fmt: skip
    verb.add_argument("--frequency-penalty", type=_number, default=0.0, metavar="X",
                      help="the same, for each time that it was (0.0)")  # fmt: skip
    verb.add_argument("--seed", type=_whole, default=1337, metavar="S", help="same seed, same text (1337)")
    verb.add_argument("--num-samples", type=_whole, default=1, metavar="N", help="texts to write (1)")
    verb.add_argument("--best-of", type=_whole, default=0, metavar="N",
                      help="write N and show the likeliest; 0: show all (0)")  # fmt: skip
    verb.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be repeated"
    )
    verb.add_argument("--overflow", choices=("slide", "rechunk", "stop"), default="slide",
                      help="past the block: exact and slow, by halves, or not at all (slide)")  # fmt: skip
    verb.add_argument("--quantize", choices=("none", "int8"), default="none",
                      help="weights of 8 bits: on a CPU nearly twice as fast (none)")  # fmt: skip
    _add_reading(verb)
    _finish(verb)

    verb = _verb(
        verbs,
        "eval",
        "RUN [SOURCE]",
        evaluate,
        "how well a RUN knows a text, exactly",
        "octavo eval runs/pydocs-1 my.txt",
    )
    verb.add_argument("run", metavar="RUN", help="a run, one of its checkpoints, or a Hugging Face GPT-2 folder")
    verb.add_argument("source", nargs="?", metavar="SOURCE", help="a text; default: the run's validation split")
    verb.add_argument("--block-size", type=_whole, metavar="N", help="window (tokens); default: the model's")
    verb.add_argument("--encoding", default="utf-8", metavar="NAME", help="encoding of the text (utf-8)")
    verb.add_argument("--errors", choices=("strict", "replace", "ignore"), default="strict",
                      help="what to do with undecodable bytes (strict)")  # fmt: skip
    verb.add_argument(
        "--text-field", default="text", metavar="NAME", help="of rows, the field that holds the text (text)"
    )
    _add_reading(verb)
    _finish(verb)

    verb = _verb(verbs, "inspect", "RUN|--preset P VIEW", inspect, "see what a model does with a text",
                 'octavo inspect runs/pydocs-1 attention --text "The import statement" --layer 1')  # fmt: skip
    verb.add_argument("words", nargs="+", metavar="RUN VIEW", help="a run, one of its checkpoints, or a Hugging Face "
                      "GPT-2 folder; and a view, see below")  # fmt: skip
    verb.add_argument("--preset", metavar="P", help="shapes of a preset instead of a RUN's")
    verb.epilog = "views:\n" + "\n".join(f"  {name:<14} {view.summary}" for name, view in views.VIEWS.items())
    for flag, (options, names) in views.views_by_flag().items():
        _add_view_option(verb, flag, options, names)
    verb.add_argument("--html", metavar="F", help="write the page into a file that needs no server; then without VIEW")
    verb.add_argument("--plot", metavar="F.png|svg", help="draw it into a file (the extra: plot)")
    _finish(verb)

    verb = _verb(verbs, "serve", "RUN ...", serve, "show RUNs on a page, and answer OpenAI's clients",
                 "octavo serve runs/pydocs-1")  # fmt: skip
    verb.add_argument("runs", nargs="+", metavar="RUN", help="a run, one of its checkpoints, or a Hugging Face folder")
    verb.add_argument("--host", default="127.0.0.1", metavar="H",
                      help="address to listen at; one that others can reach needs API keys (127.0.0.1)")  # fmt: skip
    verb.add_argument("--port", type=_whole, default=8000, metavar="P", help="0: any that is free (8000)")
    verb.add_argument("--api-key-file", metavar="F", help="keys, one a line; or one in OCTAVO_API_KEY")
    verb.add_argument("--slots", type=_whole, default=8, metavar="N", help="texts written side by side (8)")
    verb.add_argument("--queue", type=_whole, default=64, metavar="N", help="texts that may wait for a slot (64)")
    verb.add_argument("--prefix-cache", type=_whole, default=256, metavar="MIB",
                      help="memory for prompts that were read, for the next that begins alike (256)")  # fmt: skip
    verb.add_argument("--overflow", choices=("stop", "slide", "rechunk"), default="stop",
                      help="past the block: not at all, exact and slow, or by halves (stop)")  # fmt: skip
    verb.add_argument("--quantize", choices=("none", "int8"), default="none",
                      help="weights of 8 bits: on a CPU nearly twice as fast (none)")  # fmt: skip
    verb.add_argument("--allow-host", action="append", default=[], metavar="NAME",
                      help="another name that clients call this machine by; may be repeated")  # fmt: skip
    verb.add_argument("--allow-origin", action="append", default=[], metavar="URL",
                      help="a site whose pages may use this server, https://example.org; may be repeated")  # fmt: skip
    _add_device(verb)
    _finish(verb)

    verb = _verb(
        verbs,
        "prepare",
        "SOURCE --out DIR",
        prepare,
        "text to token files",
        "octavo prepare my.txt --out tokens --tokenizer bpe:4096",
    )
    verb.add_argument("source", metavar="SOURCE", help=SOURCE)
    verb.add_argument("--out", required=True, metavar="DIR", help="a folder that does not exist yet")
    _add_settings(verb, DataSettings, defaults, leave_out=("source",))
    _finish(verb)

    verb = _verb(verbs, "stats", "SOURCE", stats, "look at a text: how much, what is frequent, rare, repeated",
                 "octavo stats my.txt")  # fmt: skip
    verb.add_argument("source", metavar="SOURCE", help=SOURCE)
    _add_settings(verb, DataSettings, defaults, leave_out=("source",))
    _finish(verb)

    verb = _verb(verbs, "estimate", "[SOURCE]", estimate, "what training costs, before it is run",
                 "octavo estimate my.txt --n-layer 6 --price 2.50")  # fmt: skip
    verb.add_argument("source", nargs="?", metavar="SOURCE", help=f"{SOURCE}; default: none, or the preset's")
    verb.add_argument("--preset", metavar="P", help=f"where the settings start: {', '.join(PRESETS)}")
    verb.add_argument("--config", metavar="F.toml", help="settings from a TOML file, over the preset")
    verb.add_argument("--price", type=_number, metavar="PER_HOUR", help="of this machine, to tell the run's")
    for title, part in SECTIONS.items():
        _add_settings(verb.add_argument_group(f"{title} settings"), part, defaults, leave_out=("source",))
    _finish(verb)

    verb = _verb(
        verbs, "bench", "train|generate|serve [RUN]", bench, "how fast this machine trains, writes and serves",
        "octavo bench generate runs/pydocs-1 --quantize int8"
    )  # fmt: skip
    verb.add_argument("what", choices=("train", "generate", "serve"), help="what to time")
    verb.add_argument(
        "run", nargs="?", metavar="RUN", help="a model to write with, or serve; default: the preset's, untrained"
    )
    verb.add_argument("--quantize", choices=("none", "int8"), default="none", help="weights to write with (none)")
    verb.add_argument("--preset", metavar="P", help=f"where the settings start: {', '.join(PRESETS)}")
    verb.add_argument("--rounds", type=_whole, default=10, metavar="N", help="steps or texts to time (10)")
    for title, part in SECTIONS.items():
        if part is not DataSettings:
            _add_settings(verb.add_argument_group(f"{title} settings"), part, defaults, leave_out=())
    _finish(verb)
    return parser


def _add_view_option(verb: _Parser, flag: str, options: list[views.Option], names: list[str]) -> None:
    """A flag of `inspect`: its help names the views that take it. A token can be given by its id instead."""
    option, every = options[0], "text" in (each.name for each in options) or options[0].name == "unknown"
    group = verb.add_mutually_exclusive_group()
    metavar: Any = option.metavar
    kind = _whole if option.kind is int else str
    group.add_argument(
        f"--{flag}",
        type=kind,
        nargs=option.count if option.count > 1 else None,
        metavar=None if option.choices else metavar,
        choices=option.choices,
        help=option.help if every else f"{', '.join(names)}: {option.help}",
    )
    if option.takes_ids:
        group.add_argument(f"--{flag}-id", dest=flag, type=_whole, metavar="ID", help="the same, by its token id")
    if flag == "text":
        group.add_argument("--text-file", metavar="F", help="a file whose text to look at; -: stdin")


def _verb(verbs: Any, name: str, words: str, function: Any, help: str, example: str) -> _Parser:
    verb: _Parser = verbs.add_parser(
        name, help=help, description=f"{help}\n\n    {example}", usage=f"octavo {name} {words} [options]"
    )
    verb.set_defaults(verb=function)
    return verb


def _finish(verb: _Parser) -> None:
    verb.add_argument("--json", action="store_true", help="one JSON object on stdout")
    flags = [flag for action in verb._actions for flag in action.option_strings]
    verb.set_defaults(flags=flags, prog=verb.prog)


def _add_reading(verb: _Parser) -> None:
    verb.add_argument("--unknown", choices=("error", "skip", "replace"), default="error",
                      help="characters that the tokenizer doesn't know (error)")  # fmt: skip
    _add_device(verb)


def _add_device(verb: _Parser) -> None:
    verb.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:N or mps (auto)")


def _add_settings(group: Any, part: type, defaults: Settings, leave_out: tuple[str, ...]) -> None:
    """A flag for each setting of a part. What isn't given stays out of the namespace."""
    for each in dataclasses.fields(part):
        if each.name in leave_out:
            continue
        flag, help = "--" + each.name.replace("_", "-"), each.metadata["help"]
        default = getattr(defaults, each.name)
        help = f"{help} ({str(default).lower() if isinstance(default, bool) else default})".replace("%", "%%")
        choices = each.metadata["choices"]
        if choices:
            help = f"{'|'.join(choices)}: {help}"
        options: dict[str, Any] = {"dest": f"setting_{each.name}", "default": argparse.SUPPRESS}
        if each.type is bool:
            group.add_argument(flag, type=_boolean, nargs="?", const=True, metavar="BOOL", help=help, **options)
            group.add_argument(f"--no-{flag[2:]}", action="store_const", const=False, help=argparse.SUPPRESS, **options)
        else:
            kind = {int: _whole, float: _number, str: str}[each.type]  # type: ignore[index]
            metavar = {int: "N", float: "X", str: "NAME"}[each.type]  # type: ignore[index]
            group.add_argument(flag, type=kind, metavar=metavar, help=help, **options)


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    given = {k.removeprefix("setting_"): v for k, v in vars(arguments).items() if k.startswith("setting_")}
    if isinstance(given.get("compile"), str):  # nanoGPT's --compile=False
        given["compile"] = {"true": "on", "false": "off"}.get(given["compile"].lower(), given["compile"])
    return given


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def _boolean(text: str) -> bool:
    try:
        return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false") from None


def _prompt(arguments: argparse.Namespace) -> str:
    return str(arguments.prompt) if arguments.prompt_file is None else _file_or_stdin(arguments.prompt_file, "prompt")


def _file_or_stdin(path: str, what: str) -> str:
    try:
        return (sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()).decode("utf-8-sig")
    except OSError as error:
        raise OctavoError(f"the {what} file {path} can't be read: {error.strerror}",
                          f"its path, or --{what} TEXT") from None  # fmt: skip
    except UnicodeDecodeError as error:
        raise OctavoError(f"the {what} file {path} is not UTF-8 at byte {error.start}", "save it as UTF-8") from None


if __name__ == "__main__":
    sys.exit(main())
