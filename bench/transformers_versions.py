"""Check that older versions of transformers load a checkpoint folder and compute the same as Octavo.

    python bench/transformers_versions.py [--versions 4.46.3 4.57.3] [--environments DIR]

For each kind of tokenizer, with and without biases, `tests/transformers_checks.py` runs with each version: ids, logits,
loss, greedy text, a batch with padding, a step of the Trainer and a merged LoRA adapter, which Octavo loads again. The
packages of a version are installed into DIR, 150 MB each; the rest comes from this environment, whose own version is
checked too. Takes about five minutes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import transformers

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))

from lenses import random_checkpoint  # noqa: E402
from octavo.checkpoint import Checkpoint  # noqa: E402
from test_transformers import SHAPE, assert_loads, expectation  # noqa: E402

KINDS = ("char", "byte", "word:400", "bpe:400", "gpt2")
PACKAGES = {  # what each version needs in place of this environment's packages
    "4.46.3": "tokenizers==0.20.3 huggingface_hub==0.36.0 datasets==3.1.0 accelerate==1.1.1 peft==0.13.2",
    "4.57.3": "tokenizers==0.22.1 huggingface_hub==0.36.0 datasets==4.0.0 accelerate==1.10.1 peft==0.17.1",
}
COMMON = "dill==0.3.8 multiprocess==0.70.16"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", nargs="+", default=list(PACKAGES), choices=PACKAGES)
    parser.add_argument("--environments", type=Path, default=Path("build/transformers"), metavar="DIR")
    options = parser.parse_args()
    environments: dict[str, Path | None] = {version: options.environments / version for version in options.versions}
    for version, folder in environments.items():
        install(version, folder)
    failures = 0
    with tempfile.TemporaryDirectory() as temporary:
        models = {
            f"{kind}, {'' if bias else 'no '}biases": write_model(Path(temporary), kind, bias)
            for kind in KINDS
            for bias in (True, False)
        }
        for version, folder in (environments | {transformers.__version__: None}).items():
            for name, model in models.items():
                out = Path(temporary) / version / model.folder.name
                error = check(model, folder, out)
                failures += error is not None
                print(f"transformers {version}, {name}: {'ok' if error is None else error}", flush=True)
    return int(failures > 0)


def install(version: str, folder: Path) -> None:
    if not folder.exists():
        packages = [f"transformers=={version}", *PACKAGES[version].split(), *COMMON.split()]
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *packages]
        subprocess.run(command, check=True)


def write_model(folder: Path, kind: str, bias: bool) -> Checkpoint:
    """Write a model with random weights, and beside it what Octavo computes."""
    name = f"{kind.partition(':')[0]}-{'bias' if bias else 'no-bias'}"
    model = random_checkpoint(folder / name, kind, bias=bias, **SHAPE)
    model.folder.with_suffix(".json").write_text(json.dumps(expectation(model)), encoding="utf-8")
    return model


def check(model: Checkpoint, environment: Path | None, out: Path) -> str | None:
    """Run the checks with the packages of an environment. Returns what differs, or None."""
    out.mkdir(parents=True)
    paths = [str(environment.absolute())] if environment is not None else []
    process = subprocess.run(
        [sys.executable, str(TESTS / "transformers_checks.py"), str(model.folder), str(out)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    if process.returncode != 0:
        return process.stderr.strip()[-2000:]
    try:
        for name in ("trained", "merged"):
            assert_loads(out / name, model)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


if __name__ == "__main__":
    sys.exit(main())
