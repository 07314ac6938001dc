"""Mutation testing, `make mutants`: change one thing at a time in five modules, and list what no test notices.

mutmut makes the mutants. Its own runner starts a pytest session for each, which takes most of its time. Here the tests
are collected once, and each mutant runs in a forked process: the tests that call its function, the fastest first, until
one fails. `mutmut results` and `mutmut show NAME` show the results.
"""

import argparse
import ast
import contextlib
import fnmatch
import gc
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol
from mutmut import __main__ as mutmut
from mutmut.configuration import config
from mutmut.mutation import trampoline
from mutmut.utils.format_utils import mangled_name_from_mutant_name

KILLED, SURVIVED, NO_TEST, TIMEOUT = 1, 0, 33, 36  # mutmut's codes
NAMES = {KILLED: "killed", SURVIVED: "survived", NO_TEST: "no test", TIMEOUT: "timeout"}
SLOW = 0.1  # seconds: tests that take longer run last
CALLS = Path("calls.json")  # by test: its duration and the functions that it calls


class Mutants:
    """A pytest plugin that runs the collected tests once for each mutant."""

    def __init__(self, patterns: list[str], processes: int) -> None:
        self.processes = processes
        self.metas = {path: json.loads(path.read_text()) for path in sorted(Path("src").rglob("*.py.meta"))}
        names = [name for meta in self.metas.values() for name in meta["exit_code_by_key"]]
        wording = {name for path in self.metas for name in find_wording(path)}
        selected = [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
        self.names = [name for name in selected if name not in wording]
        print(f"{len(selected) - len(self.names)} mutants change the wording of a message, which no test checks")
        self.results: dict[str, int] = {}

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        calls = record_calls(session.items)
        sort_tests(session.items, {test: duration for test, (duration, _) in calls.items()})
        base = session.config._tmp_path_factory.getbasetemp()
        prepare_to_fork()
        running: dict[int, tuple[str, float]] = {}  # by process id: the mutant, and when it is too late
        for name in self.names:
            function = mangled_name_from_mutant_name(name)
            # CPU seconds, since the machine may do other work
            limits = [
                (item, 2 + 3 * calls[item.nodeid][0]) for item in session.items if function in calls[item.nodeid][1]
            ]
            if not limits:
                self.record(name, NO_TEST)
                continue
            if len(running) == self.processes:
                self.wait(running, base)
            if (process := os.fork()) == 0:
                run_mutant(name, limits, base / str(os.getpid()))
            running[process] = (name, time.monotonic() + 300 + 5 * sum(limit for _, limit in limits))
        while running:
            self.wait(running, base)
        for path, meta in self.metas.items():
            meta["exit_code_by_key"] |= {
                name: code for name, code in self.results.items() if name in meta["exit_code_by_key"]
            }
            path.write_text(json.dumps(meta, indent=4))
        return True

    def wait(self, running: dict[int, tuple[str, float]], base: Path) -> None:
        """Wait until a process has ended, and record the result of its mutant."""
        while True:
            for process, (name, deadline) in running.items():
                ended, status = os.waitpid(process, os.WNOHANG)
                if not ended and time.monotonic() < deadline:
                    continue
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process, signal.SIGKILL)  # and the processes that it has started
                if not ended:
                    status = os.waitpid(process, 0)[1]
                code = os.waitstatus_to_exitcode(status)
                is_late = not ended or code == -signal.SIGPROF
                self.record(name, TIMEOUT if is_late else SURVIVED if code == 0 else KILLED)
                shutil.rmtree(base / str(process), ignore_errors=True)
                del running[process]
                return
            time.sleep(0.005)

    def record(self, name: str, result: int) -> None:
        self.results[name] = result
        if result != KILLED:
            print(f"{NAMES[result]}: {name}", flush=True)
        if len(self.results) % 50 == 0 or len(self.results) == len(self.names):
            counts = Counter(NAMES[each] for each in self.results.values())
            print(f"{len(self.results)} of {len(self.names)}: {dict(counts)}", flush=True)


def find_wording(meta: Path) -> list[str]:
    """The mutants of a file that only change the case of a text with several words, or put XX around it."""
    module = ".".join(meta.with_name(meta.name.removesuffix(".py.meta")).relative_to("src").parts)
    functions = [
        node for node in ast.walk(ast.parse(meta.with_suffix("").read_text())) if isinstance(node, ast.FunctionDef)
    ]
    texts = {function.name: [each.value for each in ast.walk(function) if is_text(each)] for function in functions}

    def is_wording(name: str) -> bool:
        before, after = texts[f"{name.partition('__mutmut_')[0]}__mutmut_orig"], texts[name]
        changed = [(old, new) for old, new in zip(before, after, strict=False) if old != new]
        return len(before) == len(after) and len(changed) == 1 and " " in changed[0][0].strip() and is_same(*changed[0])

    def is_same(old: str, new: str) -> bool:
        return new == f"XX{old}XX" or new.lower() == old.lower()

    return [f"{module}.{name}" for name in texts if "__mutmut_" in name and is_wording(name)]


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def record_calls(items: list[pytest.Item]) -> dict[str, tuple[float, list[str]]]:
    """By test, its duration without a mutant and the functions with mutants that it calls. Exits if a test fails."""
    calls = json.loads(CALLS.read_text()) if CALLS.exists() else {}  # by an earlier call of this script
    unknown = [item for item in items if item.nodeid not in calls]
    if unknown and (process := os.fork()) == 0:
        functions = set[str]()
        trampoline.get_mutant_under_test = lambda: "stats"  # not in the environment: mutmut can't trace other processes
        trampoline.record_trampoline_hit = lambda function, caller: functions.add(function)
        failed = 0
        terminal = os.dup(2)
        silence()
        for item, follower in zip(unknown, [*unknown[1:], None], strict=True):
            functions.clear()
            start = time.process_time()
            if has_passed(item, follower):
                calls[item.nodeid] = (time.process_time() - start, sorted(functions))
            else:
                os.write(terminal, f"{item.nodeid} fails without a mutant\n".encode())
                failed = 1
        CALLS.write_text(json.dumps(calls))
        os._exit(failed)
    if unknown and os.waitpid(process, 0)[1]:
        pytest.exit("tests fail without a mutant", 1)
    return json.loads(CALLS.read_text())


def sort_tests(items: list[pytest.Item], durations: dict[str, float]) -> None:
    """Put fast tests first, and among them one case of every test, since another case rarely notices more."""
    items.sort(key=lambda item: durations[item.nodeid])
    cases = Counter[str]()
    order: dict[str, tuple[bool, int, Path]] = {}
    for item in items:
        test = item.nodeid.partition("[")[0]
        order[item.nodeid] = (durations[item.nodeid] > SLOW, cases[test], item.path)  # by file: its fixtures are kept
        cases[test] += 1
    items.sort(key=lambda item: order[item.nodeid])


def prepare_to_fork() -> None:
    """Do what each forked process would do again: load the C library, and what transformers imports late."""
    import transformers

    from octavo import native_library  # with its mutants, which exist only now

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OCTAVO_CACHE", os.environ["OCTAVO_TEST_CACHE"])
        native_library.load_library()
    assert transformers.GPT2LMHeadModel
    assert transformers.PreTrainedTokenizerFast
    gc.freeze()


def run_mutant(name: str, limits: list[tuple[pytest.Item, float]], folder: Path) -> None:
    """Run tests with one mutant, each with a limit in seconds of CPU time, in a forked process, which ends here."""
    os.setpgid(0, 0)
    silence()
    folder.mkdir()
    limits[0][0].config._tmp_path_factory._basetemp = folder
    code = KILLED
    try:
        trampoline.set_mutant_under_test(name)
        for (item, limit), follower in zip(limits, [*(item for item, _ in limits[1:]), None], strict=True):
            signal.setitimer(signal.ITIMER_PROF, limit)  # SIGPROF ends the process
            if not has_passed(item, follower):
                break
        else:
            code = SURVIVED
    finally:
        os._exit(code)


def silence() -> None:
    """Let this process and those that it starts read nothing and print nothing."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)


def has_passed(item: pytest.Item, follower: pytest.Item | None) -> bool:
    return not any(report.failed for report in runtestprotocol(item, log=False, nextitem=follower))


def make_mutants() -> None:
    """Write the package with its mutants, and the tests, to mutants/, and make that the working directory."""
    Path("mutants").mkdir(exist_ok=True)
    trampoline.set_mutant_under_test("mutant_generation")
    with contextlib.redirect_stdout(None):  # the name of every file
        mutmut.copy_src_dir()
        mutmut.copy_also_copy_files()
        mutmut.setup_source_paths()
        mutmut.create_mutants(1)
    trampoline.set_mutant_under_test("")
    os.chdir("mutants")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("patterns", nargs="*", default=["*"], help="names of mutants, such as 'octavo.runs.*'")
    arguments = parser.parse_args()
    tests, options = config().pytest_add_cli_args_test_selection, config().pytest_add_cli_args
    make_mutants()
    plugin = Mutants(arguments.patterns, arguments.processes)
    return pytest.main(["--rootdir=.", "-q", "-s", "--tb=native", *options, *tests], plugins=[plugin])


if __name__ == "__main__":
    sys.exit(main())
