"""Write a model in the format of another program."""

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from octavo import checkpoint, runs
from octavo.errors import OctavoError, install_command
from octavo.interop.formats import FORMATS
from octavo.runs import RunLike


@dataclass(frozen=True)
class Conversion:
    """What `convert` wrote."""

    out: Path
    format: str
    precision: str
    bytes: int
    notices: list[str]


def convert(
    run: RunLike, to: str, out: str | Path, precision: str | None = None, accept_changes: bool = False
) -> Conversion:
    """Write the model of a run in another program's format, one of `FORMATS`.

    `out` is the file or folder to write, in a folder that exists; it must not exist itself. `precision` is that of the
    matrices: "fp32", "fp16" or "int8"; the default is the format's first. With `accept_changes`, `run` may be a
    checkpoint in which another program saved a model. Raises `OctavoError` if the format cannot express the model or
    its tokenizer, if `out` exists or its folder does not, or if the package that the format needs is not installed.
    """
    if to not in FORMATS:
        raise OctavoError(f"{to!r} is not a format that Octavo writes", f"one of {', '.join(FORMATS)}")
    target, out = FORMATS[to], Path(out)
    precision = precision or target.precisions[0]
    if precision not in target.precisions:
        raise OctavoError(f"Octavo does not write {to} in {precision}", f"--precision {' or '.join(target.precisions)}")
    if target.package and importlib.util.find_spec(target.package) is None:
        raise OctavoError(f"--to {to} needs the package {target.package}", install_command(to))
    if out.exists() or out.is_symlink():
        raise OctavoError(f"{out} exists already", "a name that is not in use")
    if not out.parent.is_dir():
        raise OctavoError(f"{out} can't be written: there is no folder {out.parent}", "create it, or another folder")
    loaded = checkpoint.load(runs.find_checkpoint(run), accept_changes=True) if accept_changes else runs.load(run)
    notices = importlib.import_module(f"octavo.interop.{to}").write(loaded, out, precision)
    written = [out] if out.is_file() else [path for path in out.rglob("*") if path.is_file()]
    return Conversion(out, to, precision, sum(path.stat().st_size for path in written), notices)
