"""Draw `docs/run.svg`: train `tiny` on `pydocs` and keep what the terminal shows.

python docs/picture.py
"""

import re
import tempfile
from pathlib import Path

from rich.console import Console

from octavo import training
from octavo.terminal import Progress


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        progress = Progress(open(Path(folder) / "terminal", "w"))  # noqa: SIM115
        progress.console = Console(record=True, width=112, highlight=False, soft_wrap=True, file=progress.console.file)
        out = Path("runs") / "pydocs-1"
        for event in training.events(training.plan("pydocs", log_every=100), out=Path(folder) / out):
            progress.show(event)
        svg = progress.console.export_svg(title="make train")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.S)  # it would fetch a font
    (Path(__file__).parent / "run.svg").write_text(svg.replace(folder + "/", ""), encoding="utf-8")


if __name__ == "__main__":
    main()
