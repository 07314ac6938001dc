"""Check conversion to and from nanoGPT: nanoGPT's own model.py and sample.py run a model that `octavo convert` wrote,
and Octavo runs a model that nanoGPT's train.py saved.

    python bench/interop_nanogpt.py --nanogpt PATH

PATH is a checkout of nanoGPT, which is copied. Prints the largest difference of logits, which must be below 1e-5 of the
largest logit, and a sample of nanoGPT. Then both make one update with AdamW's state in train.py's ckpt.pt: the weights
must differ by less than 1e-5 of the largest weight. Takes about a minute.
"""

import argparse
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import octavo
from nanogpt import NanoGPT
from octavo.checkpoint import Checkpoint
from octavo.device import Runtime
from octavo.interop.nanogpt import load_optimizer_state
from octavo.settings import resolve
from octavo.training.step import Trainer

TEXT = "the cat sat on the mat, and the rat sat on the hat.\n" * 400
SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 64}
TOLERANCE = 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, required=True, metavar="PATH")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        nanogpt = NanoGPT(arguments.nanogpt, Path(folder))
        text = Path(folder, "text.txt")
        text.write_text(TEXT, encoding="utf-8")
        differences = {
            f"to nanoGPT, {'' if bias else 'no '}biases": check_export(nanogpt, text, bias) for bias in (True, False)
        }
        differences["from nanoGPT's train.py"] = check_import(nanogpt, text)
        differences["an update with its optimizer's state"] = check_optimizer(nanogpt)
    for name, difference in differences.items():
        print(f"{name}: largest relative difference {difference:.1e}, limit {TOLERANCE:.0e}")
    if max(differences.values()) >= TOLERANCE:
        sys.exit(1)


def check_export(nanogpt: NanoGPT, text: Path, bias: bool) -> float:
    """Train with Octavo, convert, and run nanoGPT's model.py and sample.py on the result."""
    name = f"octavo-bias-{bias}".lower()
    run = octavo.train(
        text,
        out=text.parent / f"{name}-run",
        tokenizer="char",
        activation="gelu",
        bias=bias,
        max_steps=60,
        batch_size=8,
        device="cpu",
        precision="fp32",
        **SHAPE,
    )
    out = octavo.convert(run, "nanogpt", nanogpt.folder / name).out
    (nanogpt.folder / "data" / name).mkdir()
    shutil.copy(out / "meta.pkl", nanogpt.folder / "data" / name)
    command = [sys.executable, "sample.py", f"--out_dir={name}", "--device=cpu", "--compile=False", "--num_samples=1"]
    done = subprocess.run(
        [*command, "--max_new_tokens=60", "--start=the", "--dtype=float32"],
        cwd=nanogpt.folder,
        check=True,
        capture_output=True,
        text=True,
    )
    print(f"{name}: {done.stdout.splitlines()[-2]!r}")
    return logit_difference(octavo.load(run), load_nanogpt_model(nanogpt, out / "ckpt.pt"))


def check_import(nanogpt: NanoGPT, text: Path) -> float:
    """Train with nanoGPT, load its ckpt.pt with Octavo, and compare with nanoGPT's model.py."""
    nanogpt.prepare_characters(text)
    flags = dict(device="cpu", compile=False, eval_iters=1, eval_interval=20, max_iters=20, batch_size=4, dropout=0.0)
    nanogpt.train("train_shakespeare_char", out_dir="out-characters", dtype="float32", **flags, **SHAPE)
    folder = nanogpt.folder / "out-characters"
    return logit_difference(octavo.load(folder), load_nanogpt_model(nanogpt, folder / "ckpt.pt"))


def check_optimizer(nanogpt: NanoGPT) -> float:
    """Make one update from the ckpt.pt of `check_import`, with nanoGPT's model and optimizer, and with Octavo's."""
    path = nanogpt.folder / "out-characters" / "ckpt.pt"
    content, loaded = torch.load(path, weights_only=True), octavo.load(path)
    batch = np.random.default_rng(0).integers(0, loaded.settings.vocab_size, (4, loaded.settings.block_size + 1))
    ids = torch.from_numpy(batch)
    model = load_nanogpt_model(nanogpt, path).train()
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), "cpu")
    optimizer.load_state_dict(content["optimizer"])
    group = optimizer.param_groups[0]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())[1].backward()
    optimizer.step()
    names = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size", "bias", "activation")
    settings = resolve(
        **{name: getattr(loaded.settings, name) for name in names},
        optimizer="adamw",
        learning_rate=group["lr"],
        schedule="constant",
        warmup_steps=0,
        weight_decay=group["weight_decay"],
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        grad_clip=0.0,
        batch_size=4,
        precision="fp32",
    )
    trainer = Trainer(loaded.model, settings, Runtime(torch.device("cpu")))
    trainer.load_optimizer_state(load_optimizer_state(path, loaded.model))
    trainer.update(batch)
    after, ours = model.state_dict(), loaded.model.state_dict()
    change, difference = (
        max(float((after[name] - others[name]).abs().max()) for name in ours) for others in (before, ours)
    )
    largest = max(float(value.abs().max()) for value in after.values())
    print(f"the update changes weights by up to {change / largest:.1e} of the largest")
    return difference / largest


def load_nanogpt_model(nanogpt: NanoGPT, path: Path) -> Any:
    """nanoGPT's own GPT with the weights of a ckpt.pt, as its sample.py builds it."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", nanogpt.folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    content = torch.load(path, weights_only=True)
    model = module.GPT(module.GPTConfig(**content["model_args"]))
    model.load_state_dict({name.removeprefix("_orig_mod."): value for name, value in content["model"].items()})
    return model.eval()


def logit_difference(loaded: Checkpoint, model: Any) -> float:
    """The largest difference of the logits of both models, as a fraction of the largest logit."""
    ids = torch.from_numpy(loaded.tokenizer.encode("the cat sat on the mat"))[None]
    with torch.no_grad():
        ours = loaded.model(ids)
        theirs, _ = model(ids, targets=ids)  # with targets it returns the logits of every position
    return float((ours - theirs).abs().max() / ours.abs().max())


if __name__ == "__main__":
    main()
