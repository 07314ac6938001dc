"""Fixtures of the tests that inject faults into Octavo."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reliability.forked import Forks
from reliability.torture import IS_TORTURE, Report


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """file_calls.c, compiled."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    library = tmp_path_factory.mktemp("library") / "file_calls.so"
    source = Path(__file__).with_name("file_calls.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-Wall", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.fixture(scope="session")
def forks(library: Path) -> Iterator[Forks]:
    """Starts commands in forked processes, in which file_calls.c is loaded."""
    with Forks(preload=library) as forks:
        yield forks


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    """Record a row of the table in docs/reliability.md, or a part of one: rows of the same fault are added up.

    scripts/torture_table.py prints the table from build/torture.jsonl.
    """
    start = time.monotonic()

    def report(fault: str, count: int, **results: int) -> None:
        row = {"fault": fault, "count": count, "results": results, "seconds": round(time.monotonic() - start, 1)}
        line = json.dumps(row) + "\n"
        print("torture:", line, end="")
        if IS_TORTURE:
            file = request.config.rootpath / "build" / "torture.jsonl"
            file.parent.mkdir(exist_ok=True)
            descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            os.write(descriptor, line.encode())  # one call: other processes of pytest append too
            os.close(descriptor)

    return report
