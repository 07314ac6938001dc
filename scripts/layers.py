"""The layers of the package and the check that imports go downward only.

`draw_architecture.py` draws them; `tests/test_layers.py` runs `violations` on the package.

A component is a module or a subpackage of `octavo`. It may import from itself and from components in layers below.
"""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

# From top to bottom, each component with its purpose. A module belongs to the longest name here that it starts with.
LAYERS: list[dict[str, str]] = [
    {"octavo.__main__": "python -m octavo"},
    {"octavo.cli": "one file per command"},
    {"octavo": "public names, loaded lazily"},
    {
        "octavo.server": "HTTP API and page",
        "octavo.run_summary": "octavo list, octavo info",
        "octavo.terminal": "draws events",
        "octavo.launch": "starts processes",
        "octavo.benchmark": "octavo bench",
    },
    {"octavo.training": "plan, loop, step, optimizers"},
    {"octavo.lens": "views of a trained model", "octavo.scaling": "cost of several processes"},
    {
        "octavo.evaluation": "exact loss",
        "octavo.estimate": "cost, by formula",
        "octavo.interop.lm_eval": "tasks of lm-eval",
    },
    {"octavo.generation": "engine, decoders, text stream", "octavo.interop": "formats of other programs"},
    {
        "octavo.generation.sampling": "logits to a token",
        "octavo.loss": "next-token loss",
        "octavo.runs": "run folders",
        "octavo.data": "text to token shards",
    },
    {
        "octavo.interop.nanogpt": "nanoGPT's ckpt.pt",
        "octavo.interop.hub": "models of the hub",
        "octavo.mirror": "copies of runs",
    },
    {
        "octavo.checkpoint": "checkpoint folders",
        "octavo.device": "device, precision",
        "octavo.fused_step": "forward and backward in C",
        "octavo.distributed": "several processes",
    },
    {"octavo.interop.gpt2_folder": "GPT-2 folders", "octavo.interop.meta_pkl": "nanoGPT's characters"},
    {"octavo.weights": "tensors in files"},
    {
        "octavo.model": "GPT-2",
        "octavo.tokenizers": "text to ids",
        "octavo.kernels": "fast CPU paths",
        "octavo.remote": "files by URL",
    },
    {"octavo.native_library": "loads the C code"},
    {
        "octavo.settings": "settings, presets",
        "octavo.files": "atomic writes",
        "octavo.views": "the table of views",
        "octavo.interop.formats": "the table of formats",
    },
    {"octavo.schema": "checked JSON and TOML"},
    {
        "octavo.errors": "typed errors",
        "octavo.units": "numbers for people",
        "octavo.progress": "progress of long work",
        "octavo.byte_order_mark": "encodings",
        "octavo.native_build": "compiles the C code",
        "octavo.transcript": "chats as text",
        "octavo.run_layout": "names in a run",
    },
]
LAYER_OF = {component: number for number, components in enumerate(LAYERS) for component in components}


def violations(package: Path) -> list[str]:
    """Return a line for each module without a layer and for each import that does not go downward."""
    known = modules(package)
    wrong = [f"{module} has no layer: add its component to LAYERS" for module in known if component_of(module) is None]
    for module, path in known.items():
        importer = component_of(module)
        for line, name in imports(module, path, known):
            imported = component_of(name)
            if importer is None or imported == importer:
                continue
            if imported is None:
                wrong.append(f"{module}:{line} imports {name}, which has no layer")
            elif LAYER_OF[imported] <= LAYER_OF[importer]:
                direction = "upward" if LAYER_OF[imported] < LAYER_OF[importer] else "sideways"
                wrong.append(f"{module}:{line} imports {name}: {direction}")
    return sorted(wrong)


def component_imports(package: Path) -> dict[str, set[str]]:
    """Return, for each component, the components it imports from."""
    known = modules(package)
    graph: dict[str, set[str]] = {component: set() for component in LAYER_OF}
    for module, path in known.items():
        importer = component_of(module)
        for _, name in imports(module, path, known):
            imported = component_of(name)
            if importer is not None and imported is not None and importer != imported:
                graph[importer].add(imported)
    return graph


def modules(package: Path) -> dict[str, Path]:
    """Return every module of the package, by its dotted name."""
    parts = {path: path.relative_to(package.parent).with_suffix("").parts for path in package.rglob("*.py")}
    return {".".join(each[:-1] if each[-1] == "__init__" else each): path for path, each in parts.items()}


def imports(module: str, path: Path, known: dict[str, Path]) -> Iterator[tuple[int, str]]:
    """Yield line and module of each import from the package, in functions and under TYPE_CHECKING too."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            members = [f"{base}.{alias.name}" for alias in node.names]
            names = [member if member in known else base for member in members]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == "octavo")


def component_of(module: str) -> str | None:
    """Return the component of a module: `octavo.training` for `octavo.training.loop`; None for one without a layer."""
    while module not in LAYER_OF:
        module = module.rpartition(".")[0]
        if module in ("octavo", ""):  # the public names are a component for `import octavo` alone
            return None
    return module
