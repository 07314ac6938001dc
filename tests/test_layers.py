"""Imports go downward only, and `import octavo` shows its public names and loads next to nothing."""

import ast
import importlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import octavo

# Top to bottom. A room may import what lies on the lines below its own, and itself. The longest name that
# fits decides: `octavo.generation.sampling` has a line of its own, the rest of `octavo.generation` another.
LAYERS = [
    ["octavo.__main__"],
    ["octavo.cli"],
    ["octavo"],  # the public names: for users and for the command line, no way from one room to another
    ["octavo.server", "octavo.terminal", "octavo.benchmark"],
    ["octavo.training"],
    ["octavo.lens"],
    ["octavo.evaluation", "octavo.estimate"],
    ["octavo.generation"],
    ["octavo.generation.sampling", "octavo.loss", "octavo.runs", "octavo.data"],
    ["octavo.checkpoint", "octavo.device"],
    ["octavo.model", "octavo.tokenizers", "octavo.kernels"],
    ["octavo.settings", "octavo.files", "octavo.views"],
    ["octavo.errors", "octavo.units"],
]
LINE = {room: line for line, rooms in enumerate(LAYERS) for room in rooms}


def room(module: str) -> str | None:
    """The room a module stands in: `octavo.training` for `octavo.training.loop`."""
    while module not in LINE:
        module = module.rpartition(".")[0]
        if module in ("octavo", ""):  # the public names are not a room for strangers
            return None
    return module


def modules(root: Path) -> dict[str, Path]:
    """Every module of the package at `root`, by its dotted name."""
    parts = {path: path.relative_to(root.parent).with_suffix("").parts for path in root.rglob("*.py")}
    return {".".join(each[:-1] if each[-1] == "__init__" else each): path for path, each in parts.items()}


def imports(module: str, path: Path, known: dict[str, Path]) -> Iterator[tuple[int, str]]:
    """Each line that imports something of `known`, with what: in functions and under TYPE_CHECKING too."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            members = [f"{base}.{alias.name}" for alias in node.names]
            named = [member if member in known else base for member in members]
        else:
            continue
        yield from ((node.lineno, name) for name in named if name.split(".")[0] == "octavo")


def violations(root: Path) -> list[str]:
    """What in the package at `root` breaks the rule, a line each."""
    known = modules(root)
    wrong = [f"{module} stands in no layer: give it a place in LAYERS" for module in known if room(module) is None]
    for module, path in known.items():
        for line, imported in imports(module, path, known):
            here, there = room(module), room(imported)
            if here is None or there == here:
                continue
            if there is None:
                wrong.append(f"{module}:{line} imports {imported}, which stands in no layer")
            elif LINE[there] <= LINE[here]:
                direction = "upward" if LINE[there] < LINE[here] else "sideways"
                wrong.append(f"{module}:{line} imports {imported}: {direction}")
    return sorted(wrong)


def test_imports_go_downward_only() -> None:
    package = Path(octavo.__file__).parent
    assert "octavo.model" in modules(package)
    assert violations(package) == []


def test_every_import_that_does_not_go_downward_is_caught(tmp_path: Path) -> None:
    made_up = {
        "__init__": "from octavo.training import train",
        "attic": "from octavo.errors import OctavoError",
        "cli": "from octavo.attic import dust\nimport octavo.training.loop, octavo.server",
        "data/sampler": "from octavo.data import corpora\nfrom ..checkpoint import load\nfrom .. import runs",
        "data/corpora": "import json, torch, tokenizers",
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
    for name, source in made_up.items():
        path = tmp_path / "octavo" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    assert violations(tmp_path / "octavo") == [
        "octavo.attic stands in no layer: give it a place in LAYERS",
        "octavo.cli:1 imports octavo.attic, which stands in no layer",
        "octavo.data.sampler:3 imports octavo.runs: sideways",
        "octavo.generation.sampling:1 imports octavo.generation.engine: upward",
        "octavo.model:2 imports octavo.training: upward",
        "octavo.runs:1 imports octavo: upward",
        "octavo.runs:2 imports octavo: upward",
        "octavo.settings:3 imports octavo.model: upward",
        "octavo.settings:4 imports octavo.files: sideways",
    ]


def fresh(program: str) -> list[str]:
    """What `program` prints as JSON, in a Python that has imported nothing yet."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_import_octavo_loads_neither_torch_nor_numpy() -> None:
    loaded = fresh("import json, sys, octavo; print(json.dumps(sorted(sys.modules)))")
    assert "octavo" in loaded
    assert {"torch", "numpy"}.isdisjoint(loaded)


def test_all_equals_what_is_visible() -> None:
    visible = "sorted(name for name in dir(octavo) if not name.startswith('_'))"
    for used in ("", "[getattr(octavo, name) for name in octavo.__all__];"):  # loading must not show more
        assert fresh(f"import json, octavo; {used} print(json.dumps({visible}))") == sorted(octavo.__all__)


def test_every_public_name_is_what_a_type_checker_takes_it_for() -> None:
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


def test_no_function_shares_a_name_with_a_room() -> None:
    rooms = {name.split(".")[1] for name in modules(Path(octavo.__file__).parent) if "." in name}
    for name in rooms.intersection(octavo.__all__):
        assert getattr(octavo, name) is importlib.import_module(f"octavo.{name}")


def test_a_name_that_octavo_lacks_is_an_ordinary_attribute_error() -> None:
    assert not hasattr(octavo, "spam")
