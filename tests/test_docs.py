"""Every block of the README and of docs/ is run, and prints what the page says it prints.

A ```python block is run in the namespace of its page, after those above it. In a ```console block the lines
after `$ ` are run, in a ```sh block all of them, by the shell, `octavo` being this one. All of it happens in a
folder of the page's own that holds just a text, `my.txt`. A ```text block that follows directly is what was
printed; so is what a ```console block shows under a command, where `...` stands for anything. A command may
fail only if the page shows an `error:`. What can't be run is marked, with the reason, by a comment right above:

    <!-- not run: needs a GPU -->
"""

import contextlib
import io
import os
import re
import shutil
import subprocess
import sysconfig
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))) if page.exists()]

RUN = {"python", "console", "sh"}
SHOWN = {"", "text", "toml", "json", "jsonl", "powershell", "mermaid"}
HARMLESS = {"octavo", "python", "echo", "printf", "cat", "head", "ls"}  # no pip, no git, no make


@dataclass
class Block:
    """A fenced block: its language, its text, the line of its fence, and what surrounds it."""

    line: int
    language: str
    text: str
    above: str  # the nearest line above that isn't blank
    printed: str | None = None  # the text block that follows directly

    @property
    def runs(self) -> bool:
        """Whether it is run; a mark must give its reason."""
        mark = re.fullmatch(r"<!-- not run(?P<reason>.*)-->", self.above)
        assert not mark or re.match(r": \w", mark["reason"]), f"line {self.line}: not run, but why?"
        return self.language in RUN and not mark


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found: list[Block] = []
    fence, above = None, ""
    for number, line in enumerate(page.splitlines(), start=1):
        if fence is None:
            if opening := re.fullmatch(r"\s*(`{3,})([^`]*)", line):
                fence, language = opening[1], opening[2].strip()
                assert language in RUN | SHOWN, f"line {number}: is {language!r} to be run or to be shown?"
                found.append(Block(number, language, "", above))
            above = line.strip() or above
        elif line.strip() == fence:
            block = found[-1]
            block.text = textwrap.dedent(block.text)
            if block.language == "text" and block.above.startswith("```"):  # the end of another block
                found[-2].printed = block.text
            fence, above = None, fence
        else:
            found[-1].text += line + "\n"
    assert fence is None, f"line {found[-1].line}: the block has no end"
    return found


def run_page(page: Path) -> None:
    """Run all blocks of a page in the working directory; raises where one fails or prints something else."""
    namespace: dict[str, Any] = {"__name__": page.stem}
    for block in blocks(page.read_text(encoding="utf-8")):
        if not block.runs:
            continue
        python = block.language == "python"
        printed = run_python(block, page, namespace) if python else run_commands(block, page)
        if block.printed is not None:
            assert printed.rstrip() == block.printed.rstrip(), f"{page.name}:{block.line} prints otherwise"


def run_python(block: Block, page: Path, namespace: dict[str, Any]) -> str:
    above = "\n" * block.line  # so that a traceback names the line of the page
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(above + block.text, page, "exec"), namespace)
    return printed.getvalue()


def run_commands(block: Block, page: Path) -> str:
    everything = ""
    for command, shown in commands(block):
        word = next(word for word in command.split() if not re.match(r"\w+=", word))  # the command, after its variables
        assert word in HARMLESS, f"line {block.line}: {word!r} is not run here: mark the block, with the reason"
        path = sysconfig.get_path("scripts") + os.pathsep + os.environ["PATH"]
        done = subprocess.run(
            command, shell=True, env=os.environ | {"PATH": path, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", timeout=180,
        )  # fmt: skip
        where = f"{page.name}:{block.line}: $ {command}\n{done.stdout}"
        assert done.returncode == 0 or "error:" in shown + (block.printed or ""), f"{where} exit {done.returncode}"
        pattern = ".*".join(re.escape(part) for part in shown.rstrip().split("..."))
        assert not shown or re.fullmatch(pattern, done.stdout.rstrip(), re.DOTALL), f"{where}is not\n{shown}"
        everything += done.stdout
    return everything


def commands(block: Block) -> list[tuple[str, str]]:
    """The commands of a block, each with the output that the page shows under it."""
    text = block.text.replace("\\\n", " ")
    if block.language == "sh":
        lines = (line.strip().removeprefix("$ ") for line in text.splitlines())
        return [(line, "") for line in lines if line and not line.startswith("#")]
    first, *rest = re.split(r"^\$ ", text, flags=re.MULTILINE)
    assert not first.strip(), f"line {block.line}: a console block begins with a `$ ` line"
    return [(command, shown) for command, _, shown in (each.partition("\n") for each in rest)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_runs_and_prints_what_the_page_says(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "docs" / "model.md", "my.txt")  # the text that a reader is taken to have
    run_page(page)


def test_the_page_about_the_model_has_blocks_to_run() -> None:
    assert sum(block.runs for block in blocks((ROOT / "docs" / "model.md").read_text(encoding="utf-8"))) > 5


def written(folder: Path, page: str) -> Path:
    """A made-up page; quotes stand for the fences' backticks."""
    path = folder / "page.md"
    path.write_text(textwrap.dedent(page).replace("'''", "```"), encoding="utf-8")
    return path


GOOD = """
    Blocks of one page share their names and their folder.

    '''python
    greeting = "hello"
    '''

    - also in a list:

      '''python
      from pathlib import Path
      print(greeting)
      Path("greeting.txt").write_text(greeting)
      '''

      '''text
      hello
      '''

    '''console
    $ python -c "print(open('greeting.txt').read(), 3.14)"
    hello ...
    $ python -c "raise SystemExit('error: no such thing')"
    error: no such thing
    '''

    '''sh
    # a comment, and a command on two lines
    python -c \\
        "print(1)"
    $ NUMBER=2 python -c "import os; print(os.environ['NUMBER'])"
    '''
    '''text
    1
    2
    '''

    <!-- not run: there is no such command -->
    '''sh
    octavo-of-the-moon
    '''

    This is not what the block above prints:

    '''text
    something else
    '''
    """


def test_a_page_that_tells_the_truth_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(written(tmp_path, GOOD))
    assert [block.runs for block in blocks((tmp_path / "page.md").read_text())].count(True) == 4


@pytest.mark.parametrize(
    ("true", "false", "complaint"),
    [
        ("'''text\n      hello", "'''text\n      hallo", "prints otherwise"),
        ("    2\n", "    3\n", "prints otherwise"),
        ("hello ...", "hello 2...", "is not"),
        ("error: no such thing\n    '''", "no such thing\n    '''", "exit 1"),
        ("not run: there is no such command", "not run", "but why"),
        ("not run: there is no such command", "not run:", "but why"),
        ("not run: there is no such command", "not for now", "'octavo-of-the-moon' is not run here"),
        ("$ NUMBER=2 python", "$ NUMBER=2 octavo-of-the-moon", "'octavo-of-the-moon' is not run here"),
        ("'''python\n    greeting", "'''pyton\n    greeting", "to be run or to be shown"),
        ("    something else\n    '''", "    something else", "has no end"),
        ("$ python -c \"print(open('greeting.txt')", "python -c \"print(open('greeting.txt')", "begins with"),
    ],
)
def test_a_page_that_lies_is_caught(
    true: str, false: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert GOOD.count(true) == 1
    with pytest.raises(AssertionError, match=complaint):
        run_page(written(tmp_path, GOOD.replace(true, false)))
