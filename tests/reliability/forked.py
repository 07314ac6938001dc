"""Run `octavo` commands in forked processes, which need not load the interpreter and PyTorch again.

    with Forks(preload=library) as forks:
        process = forks.start(["train", "text.txt"], folder, CALLS_NUMBER="3")
        process.kill()
        result = process.wait()

This file is also the program of the process that is forked. It reads requests from stdin, a JSON object a line, and
answers each with a line. It has one thread, and so has each of its children when it begins.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

_LIMIT_SECONDS = 600  # for one command, which takes less than one on a machine with nothing else to do


@dataclass(frozen=True)
class Result:
    """How a command ended: its exit code, or minus the signal that killed it, and its output."""

    code: int
    out: str
    err: str

    def __str__(self) -> str:
        return f"exit code {self.code}\n{self.out[-2000:]}\n{self.err[-4000:]}"


class Forks:
    """Starts commands. `preload` is an LD_PRELOAD library for them."""

    def __init__(self, preload: Path | None = None) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | ({"LD_PRELOAD": str(preload)} if preload else {})
        self._outputs = tempfile.TemporaryDirectory()
        self._server = subprocess.Popen(
            [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> "Forks":
        return self

    def __exit__(self, *error: object) -> None:
        self._server.communicate()  # closes its stdin, which ends it
        self._outputs.cleanup()

    def start(
        self,
        words: list[object],
        folder: Path,
        hook: str | None = None,
        streams: dict[int, str | None] | None = None,
        **environment: str,
    ) -> "Process":
        """Start `octavo` with these words in `folder`; its cache is `folder`/cache.

        `hook`, as "module:function" with a module of the tests, is called before the command. `streams` has the file of
        a standard stream, by its descriptor, or None if it is closed.
        """
        output = Path(tempfile.mkdtemp(dir=self._outputs.name))
        for name in ("out", "err"):  # a command may be killed before it opens them
            (output / name).touch()
        environment = {"OCTAVO_CACHE": str(folder / "cache")} | environment
        words = [str(word) for word in words]
        pid = self.ask(
            words=words,
            folder=str(folder),
            environment=environment,
            output=str(output),
            hook=hook,
            streams=streams or {},
        )
        return Process(self, pid, output)

    def run(self, words: list[object], folder: Path, **options: Any) -> Result:
        """Run `octavo` with these words to its end. `options` as in `start`."""
        return self.start(words, folder, **options).wait()

    def ask(self, **request: Any) -> Any:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())


class Process:
    """A command that runs. Its process id stays valid until `poll` has returned its exit code."""

    def __init__(self, forks: Forks, pid: int, output: Path) -> None:
        self.pid, self._forks, self._output = pid, forks, output
        self._code: int | None = None

    def kill(self) -> None:
        """Send SIGKILL, if the command still runs."""
        if self._code is None:
            os.kill(self.pid, signal.SIGKILL)

    def poll(self) -> int | None:
        """The exit code, or minus the signal that killed the command, or None if it still runs."""
        if self._code is None:
            self._code = self._forks.ask(poll=self.pid)
        return self._code

    def wait(self) -> Result:
        """Wait until the command ends."""
        deadline = time.monotonic() + _LIMIT_SECONDS
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"a command ran for more than {_LIMIT_SECONDS} seconds")
            time.sleep(0.002)
        out, err = ((self._output / name).read_text(encoding="utf-8", errors="replace") for name in ("out", "err"))
        return Result(code, out, err)


def _serve() -> None:
    """Answer requests until stdin ends."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if the tests run in the background of a shell
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import tokenizers  # noqa: F401  # as a command does when it builds a tokenizer

    import octavo.data.prepare
    import octavo.generation.generate
    import octavo.terminal.training
    import octavo.training

    octavo.estimate.SAMPLE_TOKENS = 20  # samples of 200 tokens would take half the time of a small run

    while line := sys.stdin.readline():
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                _run_command(request)
        print(json.dumps(answer), flush=True)


def _run_command(request: dict[str, Any]) -> NoReturn:
    from octavo import cli

    os.chdir(request["folder"])
    for descriptor, stream, flags in (
        (0, "stdin", os.O_RDONLY),
        (1, "stdout", os.O_WRONLY),
        (2, "stderr", os.O_WRONLY),
    ):
        default = os.devnull if descriptor == 0 else os.path.join(request["output"], stream.removeprefix("std"))
        path = request["streams"].get(str(descriptor), default)
        if path is None:  # as Python starts if it is closed
            os.close(descriptor)
            setattr(sys, stream, None)
            continue
        opened = os.open(path, flags | os.O_CREAT, 0o644)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.update(request["environment"])
    sys.argv = ["octavo", *request["words"]]
    if request["hook"]:
        module, _, name = request["hook"].partition(":")
        hook: Callable[[], None] = getattr(importlib.import_module(module), name)
        hook()
    cli.run_and_exit()


if __name__ == "__main__":
    _serve()
