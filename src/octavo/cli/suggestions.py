"""What to suggest for a flag, a verb or a word that does not exist: first by its meaning, then by its spelling."""

import argparse
import difflib
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from octavo import views
from octavo.errors import OctavoError
from octavo.run_layout import find_runs, is_run

# Flags of other programs, each with what means the same here. Of several, the first one that the verb has is suggested.
_FLAGS: dict[str, tuple[str, ...]] = {
    name: tuple(meanings)
    for names, *meanings in (
        ("lr", "--learning-rate"),
        ("lr-scheduler lr-scheduler-type scheduler", "--schedule"),
        ("gpu cuda", "--device cuda"),
        ("cpu", "--device cpu"),
        ("mps", "--device mps"),
        ("epochs num-epochs num-train-epochs n-epochs", "--max-epochs"),
        ("steps iters iterations num-steps max-iter train-steps", "--max-steps"),
        ("bs batch train-batch-size per-device-train-batch-size", "--batch-size"),
        ("fp16 amp mixed-precision", "--precision fp16", "no option: the model runs in float32"),
        ("bf16", "--precision bf16", "no option: the model runs in float32"),
        ("fp32 float32", "--precision fp32", "no option: the model runs in float32"),
        ("dtype", "--precision", "no option: the model runs in float32"),
        ("layers num-layers depth num-hidden-layers", "--n-layer"),
        ("heads num-heads num-attention-heads", "--n-head"),
        ("dim width hidden-size d-model embedding-dim embed", "--n-embd"),
        ("context context-length ctx ctx-size seq-len seq-length max-seq-len max-seq-length", "--block-size"),
        ("wd", "--weight-decay"),
        ("warmup", "--warmup-steps"),
        ("clip gradient-clip max-grad-norm", "--grad-clip"),
        ("early-stopping early-stop", "--patience"),
        ("accumulate grad-accum accumulation-steps", "--micro-batch"),
        ("gradient-checkpointing", "--checkpoint-activations"),
        ("vocab vocabulary", "--tokenizer bpe:4096"),
        ("val-split test-size validation-split val-ratio", "--val-fraction"),
        ("dedup", "--deduplicate"),
        ("field column text-column", "--text-field"),
        ("save-interval save-steps checkpoint-every", "--save-every"),
        ("eval-steps validate-every", "--eval-every"),
        ("log-steps logging-steps", "--log-every"),
        ("wandb", "--log wandb"),
        ("tensorboard", "--log tensorboard"),
        ("gpus nproc nproc-per-node num-processes world-size", "--processes"),
        ("output output-dir save-dir out-dir o outdir", "--out"),
        ("resume-from resume-from-checkpoint", "--resume RUN"),
        ("pretrained from-pretrained finetune base-model", "--init RUN"),
        ("random-seed", "--seed"),
        ("temp t", "--temperature"),
        ("max-tokens max-length length num-tokens n-predict n", "--max-new-tokens"),
        ("samples num count", "--num-samples"),
        ("text input-text p", "--prompt", "--text"),
        ("prompt-file input-file file", "--prompt-file", "--text-file", "the file as SOURCE, without a flag"),
        ("stop-string stop-sequence", "--stop"),
        ("int8 8bit load-in-8bit quantization q", "--quantize int8"),
        ("format type", "--to"),
        ("tasks", "--task"),
        ("model checkpoint ckpt run model-path m", "the run as RUN, without a flag"),
        ("data dataset source input train-file i", "the text as SOURCE, without a flag"),
        ("force overwrite f", "another --out", "another --name"),
        ("plot-file png svg", "--plot F.png"),
        ("key keys api-key auth token password", "--api-key-file"),
        ("prefix base-path base-url root", "--root-path"),
        ("served-model-name", "the run as RUN, without a flag"),
        ("max-num-seqs max-batch-size parallel batch-slots", "--slots"),
        ("max-model-len", "no option: a context is as long as the model's block_size"),
        ("ssl ssl-keyfile ssl-certfile tls cert https", "no option: a proxy adds TLS (deploy/ has examples)"),
        ("cors allow-origins origins", "--allow-origin"),
        ("reload watch", "--follow"),
        ("bind listen address hostname", "--host"),
        ("verbose v debug", "--log-level debug"),
        ("quiet silent", "--log-level warning"),
        ("rpm requests-per-minute", "--rate-limit"),
        ("tpm tokens-per-minute", "--token-limit"),
        ("workers num-workers", "--slots", "no option: texts are read and encoded on all cores"),
        ("threads num-threads", "OMP_NUM_THREADS=N before the command"),
    )
    for name in names.split()
}
_VERBS = {
    name: command
    for names, command in (
        ("resume continue", "octavo train --resume RUN"),
        ("finetune fine-tune", "octavo train SOURCE --init RUN"),
        ("generate gen complete chat prompt infer predict", "octavo sample RUN --prompt TEXT"),
        ("ls runs ps status history compare", "octavo list"),
        ("show describe config summary", "octavo info RUN"),
        ("view visualize explain look attention", "octavo inspect RUN attention"),
        ("export save", "octavo convert RUN OUT --to gguf"),
        ("import load", "octavo train SOURCE --init CHECKPOINT"),
        ("tokenize encode", "octavo prepare SOURCE --out DIR"),
        ("evaluate test validate score perplexity", "octavo eval RUN"),
        ("web ui page server api start", "octavo serve RUN"),
        ("benchmark", "octavo bench train"),
        ("rm remove delete", "no verb: delete the folder of the run"),
        ("help", "octavo --help"),
        ("version", "octavo --version"),
    )
    for name in names.split()
}


def unknown_verb_error(argv: Sequence[str], verbs: Sequence[str]) -> OctavoError:
    """The error for a command whose first word is no verb. The hint of a misspelled verb is the whole command."""
    verb, *rest = argv
    hint = _VERBS.get(verb.lower())
    if hint is None:
        is_script = verb in ("python", "python3") and bool(rest)  # `python train.py ...`, as with nanoGPT
        word, rest = (rest[0], rest[1:]) if is_script else (verb, rest)
        nearest = difflib.get_close_matches(word.removesuffix(".py"), verbs, n=1, cutoff=0.6)
        hint = shlex.join(["octavo", nearest[0], *rest]) if nearest else f"one of: {', '.join(verbs)}"
    return OctavoError(f"there is no verb {verb!r}", hint)


def unknown_word_error(word: str, arguments: argparse.Namespace, argv: Sequence[str]) -> OctavoError:
    """The error for the first word of a command that the parser cannot place."""
    if not word.startswith("-"):
        return _stray_word_error(word, arguments, argv)
    flag = word.partition("=")[0]
    flags = [name for name in arguments.flags if name.startswith("--")]
    meanings = _FLAGS.get(flag.lstrip("-").replace("_", "-").lower(), ())
    suggestions = [meaning for meaning in meanings if set(re.findall(r"--[a-z-]+", meaning)) <= set(flags)]
    suggestions += difflib.get_close_matches(flag.replace("_", "-"), flags, n=1, cutoff=0.7)
    return OctavoError(f"there is no option {flag}", suggestions[0] if suggestions else f"{arguments.prog} --help")


def _stray_word_error(word: str, arguments: argparse.Namespace, argv: Sequence[str]) -> OctavoError:
    """The error for a word that is not an option. If the verb takes a prompt or a text, the word is likely to be it."""
    flag = next((flag for flag in ("--prompt", "--text") if flag in arguments.flags), None)
    if flag is None:
        return OctavoError(f"unexpected argument {word!r}", f"{arguments.prog} --help")
    rest = [other for other in argv if other != word]
    message = f"unexpected argument {word!r}: text is given with {flag}"
    return OctavoError(message, shlex.join(["octavo", *rest, flag, word]))


def name_the_run(hint: str, words: Sequence[str]) -> str:
    """The hint of an error, with a run in place of RUN: the run or checkpoint that the command names, or the newest."""
    if not re.search(r"\bRUN\b", hint):
        return hint
    values = [word.partition("=")[2] if word.startswith("-") and "=" in word else word for word in words[1:]]
    run = next((value for value in values if _is_model(value)), None) or newest_run()
    return hint if run is None else re.sub(r"\bRUN\b", lambda _: shlex.quote(run), hint)


def _is_model(path: str) -> bool:
    """Whether a path, or a name in runs/, is a run or a checkpoint."""
    places = (os.path.expanduser(path), os.path.join("runs", path)) if path else ()
    return any(is_run(place) or os.path.isfile(os.path.join(place, "config.json")) for place in places)


def missing_argument_hint(message: str, prog: str) -> str:
    """What to try if an argument is missing. For the argument RUN, the newest run."""
    run = newest_run()
    if run is not None and re.search(r"required: RUN\b", message):
        return f"{prog} {shlex.quote(run)}, the newest run, or {prog} --help"
    return f"{prog} --help"


def newest_run() -> str | None:
    """The run in runs/ whose settings are the newest."""
    return next(map(str, find_runs(Path("runs"))), None)


def view_error(words: Sequence[str], preset: str | None) -> OctavoError:
    """The error for `octavo inspect` without a RUN and a VIEW, or with more."""
    names = ", ".join(views.VIEWS)
    given = [word for word in words if word.replace("-", "_") not in views.VIEWS]
    run = shlex.quote(given[0]) if given else "--preset P" if preset else newest_run() or "RUN"
    view = next((word for word in words if word not in given), "attention")
    return OctavoError(f"inspect takes a RUN or --preset, and one of the views {names}", f"octavo inspect {run} {view}")
