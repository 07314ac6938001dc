"""Every code block of the README and of docs/ runs and prints what the page shows.

The blocks of a page run in order, in a folder that holds only a text, `my.txt`. A ```python block runs in the namespace
of its page. In a ```console block the lines after `$ ` are shell commands, in a ```sh block all lines. `octavo` runs in
this process, except in a command that needs a shell: there it is the installed one. The preset `tiny` is smaller here
than it is, so that a page which names no size takes seconds. The expected output is a ```text block that follows
directly, or the lines under a command in a ```console block, where `...` matches any text. A command may fail only if
the page shows an `error:`. A comment right above a block excludes it and gives the reason:

    <!-- not run: needs a GPU -->
"""

import contextlib
import io
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import draw_speed
import octavo
from octavo import cli
from octavo.settings import PRESETS

ROOT = Path(__file__).parents[1]
PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))) if page.exists()]

EXECUTABLE = {"python", "console", "sh"}
NOT_EXECUTABLE = {"", "text", "toml", "json", "jsonl", "powershell", "mermaid", "ini", "yaml", "bash"}
ALLOWED_COMMANDS = {"octavo", "python", "echo", "printf", "cat", "head", "ls"}  # no pip, no git, no make
VARIABLE = re.compile(r"\w+=.*", re.DOTALL)
SMALL = {"n_layer": 2, "n_embd": 32}


@dataclass
class Block:
    """A fenced block of a page."""

    line: int  # of its opening fence
    language: str
    text: str
    above: str  # the nearest line above that is not blank
    output: str | None = None  # the text block that follows directly

    @property
    def runs(self) -> bool:
        """Whether the block is run. Fails if it is excluded without a reason."""
        comment = re.fullmatch(r"<!-- not run(?P<reason>.*)-->", self.above)
        assert not comment or re.match(r": \w", comment["reason"]), f"line {self.line}: `not run` needs a reason"
        return self.language in EXECUTABLE and not comment


def parse_blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    blocks: list[Block] = []
    fence, above = None, ""
    for number, line in enumerate(page.splitlines(), start=1):
        if fence is None:
            if opening := re.fullmatch(r"\s*(`{3,})([^`]*)", line):
                fence, language = opening[1], opening[2].strip()
                known = EXECUTABLE | NOT_EXECUTABLE
                assert language in known, f"line {number}: unknown language {language!r}"
                blocks.append(Block(number, language, "", above))
            above = line.strip() or above
        elif line.strip() == fence:
            block = blocks[-1]
            block.text = textwrap.dedent(block.text)
            if block.language == "text" and block.above.startswith("```"):  # the closing fence of another block
                blocks[-2].output = block.text
            fence, above = None, fence
        else:
            blocks[-1].text += line + "\n"
    assert fence is None, f"line {blocks[-1].line}: the block has no closing fence"
    return blocks


def run_page(page: Path) -> None:
    """Run all blocks of a page in the working directory. Fails if one raises or prints something else."""
    namespace: dict[str, Any] = {"__name__": page.stem}
    for block in parse_blocks(page.read_text(encoding="utf-8")):
        if not block.runs:
            continue
        is_python = block.language == "python"
        output = run_python(block, page, namespace) if is_python else run_commands(block, page)
        if block.output is not None:
            assert output.rstrip() == block.output.rstrip(), f"{page.name}:{block.line} prints something else"


def run_python(block: Block, page: Path, namespace: dict[str, Any]) -> str:
    padding = "\n" * block.line  # a traceback then has the line numbers of the page
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(compile(padding + block.text, page, "exec"), namespace)
    return output.getvalue()


def run_commands(block: Block, page: Path) -> str:
    output = ""
    for command, expected in parse_commands(block):
        words = shell_words(command)
        program = next(word for word in words if not VARIABLE.fullmatch(word))
        assert program in ALLOWED_COMMANDS, f"line {block.line}: {program!r} is not allowed: exclude the block"
        run = run_here if program == "octavo" and not needs_shell(command) else run_in_shell
        code, printed = run(command)
        where = f"{page.name}:{block.line}: $ {command}\n{printed}"
        may_fail = "error:" in expected + (block.output or "")
        assert code == 0 or may_fail, f"{where} exit code {code}"
        pattern = ".*".join(re.escape(part) for part in expected.rstrip().split("..."))
        matches = re.fullmatch(pattern, printed.rstrip(), re.DOTALL)
        assert not expected or matches, f"{where}does not match\n{expected}"
        output += printed
    return output


def shell_words(command: str, posix: bool = True) -> list[str]:
    """The words of a command without its comment. Operators of the shell are words; without `posix`, quotes stay."""
    parser = shlex.shlex(command, posix=posix, punctuation_chars=True)
    parser.whitespace_split = True
    return list(parser)


def needs_shell(command: str) -> bool:
    """Whether a command has an operator, a variable, a glob or `~` outside of quotes."""
    return any(
        re.match(r"[();<>|&]", word) or (word[0] not in "'\"" and re.search(r"[$`*~]", word))
        for word in shell_words(command, posix=False)
    )


def run_in_shell(command: str) -> tuple[int, str]:
    """The exit code, and what the command printed to stdout and stderr."""
    path = sysconfig.get_path("scripts") + os.pathsep + os.environ["PATH"]
    done = subprocess.run(
        command,
        shell=True,
        env=os.environ | {"PATH": path, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=180,
    )
    return done.returncode, done.stdout


def run_here(command: str) -> tuple[int, str]:
    """Like `run_in_shell`, for an `octavo` command, with variables before it or not."""
    words = shell_words(command)
    variables = list(itertools.takewhile(VARIABLE.fullmatch, words))
    with (
        io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) as output,
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
        pytest.MonkeyPatch.context() as patch,
        open(os.devnull, encoding="utf-8") as stdin,
    ):
        patch.setattr(sys, "stdin", stdin)
        for variable in variables:
            patch.setenv(*variable.split("=", 1))
        code = cli.main(words[len(variables) + 1 :])
        output.seek(0)
        return code, output.read()


def parse_commands(block: Block) -> list[tuple[str, str]]:
    """The commands of a block, each with the output that the page shows under it."""
    text = block.text.replace("\\\n", " ")
    if block.language == "sh":
        lines = (line.strip().removeprefix("$ ") for line in text.splitlines())
        return [(line, "") for line in lines if line and not line.startswith("#")]
    first, *rest = re.split(r"^\$ ", text, flags=re.MULTILINE)
    assert not first.strip(), f"line {block.line}: a console block begins with a `$ ` line"
    return [(command, expected) for command, _, expected in (each.partition("\n") for each in rest)]


@pytest.mark.usefixtures("short_probe", "built_cache")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_runs_and_prints_what_the_page_shows(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PRESETS, "tiny", SMALL)
    shutil.copy(ROOT / "docs" / "model.md", "my.txt")  # the reader's own text
    run_page(page)


@pytest.mark.usefixtures("short_probe", "built_cache")
def test_every_cell_of_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PRESETS, "tiny", SMALL | {"max_steps": 10, "batch_size": 4})
    shutil.copy(ROOT / "docs" / "model.md", "my.txt")
    cells = json.loads((ROOT / "docs" / "notebook.ipynb").read_text(encoding="utf-8"))["cells"]
    namespace: dict[str, Any] = {}
    for number, cell in enumerate(cells):
        assert cell.get("outputs", []) == []  # saved without them
        if cell["cell_type"] == "code":
            code = "".join(cell["source"]).replace("max_steps=100", "max_steps=10")
            exec(compile(code, f"cell {number}", "exec"), namespace)
    assert namespace["run"].best.is_dir()


def test_the_charts_of_speed_are_those_of_its_tables() -> None:
    drawn = draw_speed.draw_charts((ROOT / "docs" / "speed.md").read_text(encoding="utf-8"))
    assert drawn == {name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in drawn}


def test_every_picture_has_a_command_that_draws_it() -> None:
    section = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("\n## Pictures\n")[2]
    rows = re.findall(r"^\| (`.+`) \| `python (\S+\.py)", section.partition("\n## ")[0], re.MULTILINE)
    named = [name for names, _ in rows for name in re.findall(r"`(.+?)`", names)]
    pictures = [path.name for path in (ROOT / "docs").iterdir() if path.suffix in (".svg", ".png")]
    assert sorted(named) == sorted(pictures)
    assert all((ROOT / script).is_file() for _, script in rows)


def test_the_readme_links_every_page() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = [path.name for path in (ROOT / "docs").iterdir() if path.suffix in (".md", ".ipynb")]
    assert [page for page in pages if f"](docs/{page})" not in readme] == []


def test_the_installed_octavo_starts() -> None:
    assert run_in_shell("octavo --version") == (0, f"octavo {octavo.__version__}\n")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("octavo stats 'owl.*'  # a comment | that > is left out", False),
        ('NAME=value octavo sample run --prompt "The end.<|endoftext|>Once $5"', False),
        ("octavo stats chat.jsonl | head -2", True),
        ("octavo stats *.txt", True),
        ("octavo stats $NAME", True),
        ("octavo stats ~/text.txt 2>&1", True),
    ],
)
def test_only_commands_with_operators_need_a_shell(command: str, expected: bool) -> None:
    assert needs_shell(command) == expected


def test_the_page_about_the_model_has_blocks_that_run() -> None:
    assert sum(block.runs for block in parse_blocks((ROOT / "docs" / "model.md").read_text(encoding="utf-8"))) > 5


def write_page(folder: Path, text: str) -> Path:
    """Write a page. Quotes replace the backticks of its fences."""
    path = folder / "page.md"
    path.write_text(textwrap.dedent(text).replace("'''", "```"), encoding="utf-8")
    return path


CORRECT_PAGE = """
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

    <!-- not run: the command does not exist -->
    '''sh
    octavo-of-the-moon
    '''

    This text block does not follow directly:

    '''text
    something else
    '''
    """


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    for file, test in re.findall(r"(test_\w+\.py)::(\w+)", page.read_text(encoding="utf-8")):
        [path] = (ROOT / "tests").rglob(file)
        assert re.search(rf"^(def )?{test}\b", path.read_text(encoding="utf-8"), re.MULTILINE), f"{file} has no {test}"


def test_a_correct_page_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(write_page(tmp_path, CORRECT_PAGE))
    assert [block.runs for block in parse_blocks((tmp_path / "page.md").read_text())].count(True) == 4


@pytest.mark.parametrize(
    ("original", "replacement", "message"),
    [
        ("'''text\n      hello", "'''text\n      hallo", "prints something else"),
        ("    2\n", "    3\n", "prints something else"),
        ("hello ...", "hello 2...", "does not match"),
        ("error: no such thing\n    '''", "no such thing\n    '''", "exit code 1"),
        ("not run: the command does not exist", "not run", "needs a reason"),
        ("not run: the command does not exist", "not run:", "needs a reason"),
        ("not run: the command does not exist", "not for now", "'octavo-of-the-moon' is not allowed"),
        ("$ NUMBER=2 python", "$ NUMBER=2 octavo-of-the-moon", "'octavo-of-the-moon' is not allowed"),
        ("'''python\n    greeting", "'''pyton\n    greeting", "unknown language 'pyton'"),
        ("    something else\n    '''", "    something else", "no closing fence"),
        ("$ python -c \"print(open('greeting.txt')", "python -c \"print(open('greeting.txt')", "begins with"),
    ],
)
def test_a_page_with_a_mistake_fails(
    original: str, replacement: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert CORRECT_PAGE.count(original) == 1
    with pytest.raises(AssertionError, match=message):
        run_page(write_page(tmp_path, CORRECT_PAGE.replace(original, replacement)))
