"""Draw `docs/run.svg`: train `tiny` on `pydocs` and export what the terminal shows.

python docs/picture.py
"""

import contextlib
import re
import tempfile
from pathlib import Path

from rich.console import Console

from octavo import training
from octavo.terminal.training import TrainingProgress


def main() -> None:
    docs = Path(__file__).parent.resolve()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), open("terminal", "w") as terminal:
        progress = TrainingProgress(terminal)
        progress.console = Console(record=True, width=132, highlight=False, file=terminal)
        for event in training.events(training.plan("pydocs", log_every=100)):
            progress.show(event)
    svg = progress.console.export_svg(title="make train")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.S)  # it would download a font
    (docs / "run.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
