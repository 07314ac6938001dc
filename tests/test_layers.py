"""Imports go downward only, and `import octavo` shows its public names and loads next to nothing."""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import draw_architecture
import octavo
from layers import modules, violations


def test_imports_go_downward_only() -> None:
    package = Path(octavo.__file__).parent
    assert "octavo.model" in modules(package)
    assert violations(package) == []


def test_the_picture_of_the_layers_is_current() -> None:
    assert draw_architecture.PICTURE.read_text(encoding="utf-8") == draw_architecture.draw(draw_architecture.PACKAGE)


def test_every_import_that_does_not_go_downward_is_caught(tmp_path: Path) -> None:
    modules_of_a_package = {
        "__init__": "from octavo.training import train",
        "attic": "from octavo.errors import OctavoError",
        "cli": "from octavo.attic import dust\nimport octavo.training.loop, octavo.server",
        "data/sampler": "from octavo.data import sources\nfrom ..checkpoint import load\nfrom .. import runs",
        "data/sources": "import json, torch, tokenizers",
        "errors": "",
        "files": "from . import errors",
        "generation/engine": "from octavo.generation.sampling import sample_token",
        "generation/sampling": "from octavo.generation import engine",
        "model": "def late():\n    from octavo import training",
        "runs": "import octavo\nfrom octavo import __version__",
        "server": "",
        "settings": (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from octavo.model import GPT\n"
            "from octavo.files import cache_dir"
        ),
        "training/__init__": "from octavo.training.loop import train",
        "training/loop": "from octavo.model import GPT",
        "checkpoint": "",
    }
    for name, source in modules_of_a_package.items():
        path = tmp_path / "octavo" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    assert violations(tmp_path / "octavo") == [
        "octavo.attic has no layer: add its component to LAYERS",
        "octavo.cli:1 imports octavo.attic, which has no layer",
        "octavo.data.sampler:3 imports octavo.runs: sideways",
        "octavo.generation.sampling:1 imports octavo.generation.engine: upward",
        "octavo.model:2 imports octavo.training: upward",
        "octavo.runs:1 imports octavo: upward",
        "octavo.runs:2 imports octavo: upward",
        "octavo.settings:3 imports octavo.model: upward",
        "octavo.settings:4 imports octavo.files: sideways",
    ]


def run_in_new_process(program: str) -> list[str]:
    """Run a program in a Python that has imported nothing yet. Return what it prints, parsed as JSON."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_import_octavo_loads_neither_torch_nor_numpy() -> None:
    loaded = run_in_new_process("import json, sys, octavo; print(json.dumps(sorted(sys.modules)))")
    assert "octavo" in loaded
    assert {"torch", "numpy"}.isdisjoint(loaded)


def modules_after(commands: list[list[str]]) -> list[str]:
    """Run commands in a new Python. Return the modules that it has loaded then."""
    program = f"""
import contextlib, io, json, sys
from octavo import cli
with contextlib.redirect_stdout(io.StringIO()):
    assert [cli.main(words) for words in {commands}] == [0] * {len(commands)}
print(json.dumps(sorted(sys.modules)))
"""
    return run_in_new_process(program)


def test_reading_a_text_does_not_load_torch(tmp_path: Path) -> None:
    """It would take most of the time of these commands."""
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat, and the rat sat on the hat.\n" * 12, encoding="utf-8")
    commands = [["stats", str(text), "--json"], ["prepare", str(text), "--out", str(tmp_path / "tokens"), "--json"]]
    loaded = modules_after(commands)
    assert "octavo.data.shard_writer" in loaded
    assert "torch" not in loaded


def test_listing_runs_does_not_load_torch(run_folder: Path) -> None:
    commands = [["list", str(run_folder.parent)], ["list", str(run_folder.parent), "--json"], ["info", str(run_folder)]]
    commands += [["info", str(run_folder / "best")], ["info", str(run_folder), "--json"]]
    loaded = modules_after(commands)
    assert "octavo.run_summary" in loaded
    assert "torch" not in loaded


def test_training_in_one_process_imports_nothing_of_several(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat, and the rat sat on the hat.\n" * 12, encoding="utf-8")
    words = ["train", f"{tmp_path}/text.txt", "--n-layer=1", "--n-head=1", "--n-embd=8", "--block-size=8", "--json"]
    words += ["--batch-size=2", "--max-steps=2", "--sample-every=0", "--device=cpu", f"--out={tmp_path}/run"]
    program = f"""
import contextlib, io, json, sys, torch
imported_by_torch = set(sys.modules)
from octavo import cli
with contextlib.redirect_stdout(io.StringIO()):
    assert cli.main({words}) == 0
print(json.dumps(sorted(set(sys.modules) - imported_by_torch)))
"""
    imported = run_in_new_process(program)
    assert "octavo.training.loop" in imported
    several = ("torch.distributed", "octavo.launch", "octavo.training.sharding")
    assert [name for name in imported if name.startswith(several)] == []


def test_pytorch_is_imported_without_garbage_collection() -> None:
    program = """
import gc, json
from octavo.cli.parser import without_garbage_collection
try:
    with without_garbage_collection():
        during = gc.isenabled()
        import torch
        raise KeyboardInterrupt
except KeyboardInterrupt:
    after = gc.isenabled()
with without_garbage_collection():  # PyTorch is there already
    again = gc.isenabled()
print(json.dumps([during, after, again, gc.get_freeze_count() > 100_000]))
"""
    assert run_in_new_process(program) == [False, True, True, True]


def test_all_equals_what_is_visible() -> None:
    visible = "sorted(name for name in dir(octavo) if not name.startswith('_'))"
    for used in ("", "[getattr(octavo, name) for name in octavo.__all__];"):  # loading must not show more
        assert run_in_new_process(f"import json, octavo; {used} print(json.dumps({visible}))") == sorted(octavo.__all__)


def test_type_checkers_and_python_find_the_same_public_names() -> None:
    tree = ast.parse(Path(octavo.__file__).read_text(encoding="utf-8"))
    homes = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("octavo.")
        for alias in node.names
    }
    for name in octavo.__all__:
        home = importlib.import_module(homes.get(name, f"octavo.{name}"))
        assert getattr(octavo, name) is (getattr(home, name) if name in homes else home)
    assert homes.keys() <= set(octavo.__all__)


def test_no_function_shares_a_name_with_a_component() -> None:
    components = {name.split(".")[1] for name in modules(Path(octavo.__file__).parent) if "." in name}
    for name in components.intersection(octavo.__all__):
        assert getattr(octavo, name) is importlib.import_module(f"octavo.{name}")


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    assert not hasattr(octavo, "spam")
