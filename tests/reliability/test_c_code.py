"""The C code under sanitizers, and built for processors with narrower vectors than this one."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from octavo import kernels
from reliability.torture import Report

pytestmark = pytest.mark.torture  # minutes

ROOT = Path(__file__).parents[2]
TESTS = ["test_decoders.py", "test_int8.py", "test_fused_step.py", "test_prefix_cache.py", "test_engine.py"]
TESTS += ["test_sampling_kernels.py", "test_encoding.py", "test_optimizers.py"]
_SANITIZERS = "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"
BUILDS = {
    "AVX2": "-march=haswell",
    "SSE2": "-march=x86-64",
    # Vectors of four floats, 32 registers and FMA, as ARM processors have.
    "sanitizers, like ARM": f"{_SANITIZERS} -march=x86-64 -mfma -DACCUMULATORS=16",
    "sanitizers": _SANITIZERS,
    "sanitizers, AVX2": f"{_SANITIZERS} -march=haswell",
}


@pytest.mark.parametrize("flags", BUILDS.values(), ids=list(BUILDS))
def test_the_tests_of_the_c_code_pass_in_every_build(flags: str, tmp_path: Path, report: Report) -> None:
    if "-march" in flags and platform.machine() not in ("x86_64", "AMD64"):
        flags = ""  # every other processor has one width of vectors
    compiler = tmp_path / "compiler"  # of flags that contradict each other, the last counts
    compiler.write_text(f'#!/bin/sh\nunset LD_PRELOAD\nexec cc "$@" {flags}\n', encoding="utf-8")
    compiler.chmod(0o755)
    environment = os.environ | {"CC": str(compiler), "OCTAVO_CACHE": str(tmp_path / "cache"), "OCTAVO_NATIVE": "native"}
    if "sanitize" in flags:
        # The C++ library too: without it AddressSanitizer ends the process at PyTorch's first exception.
        find = [["cc", f"-print-file-name={name}"] for name in ("libasan.so", "libstdc++.so")]
        runtime = "".join(subprocess.run(each, capture_output=True, text=True, check=True).stdout for each in find)
        # PyTorch and Python never free some of their memory.
        environment |= {
            "LD_PRELOAD": " ".join(runtime.split()),
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        *(f"tests/{name}" for name in TESTS),
    ]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    report(f"tests of the C code, built with {flags or 'no other flags'}", 1, failures=0)


def test_calls_with_other_numbers_of_threads_have_no_data_race(tmp_path: Path, report: Report) -> None:
    program, source = tmp_path / "team_stress", Path(__file__).with_name("team_stress.c")
    include = Path(kernels.__file__).parent
    flags = ["-O1", "-g", "-std=gnu11", "-pthread", "-fsanitize=thread", f"-I{include}"]
    subprocess.run(["cc", *flags, str(source), "-o", str(program)], check=True)
    calls = 5000
    result = subprocess.run([program, str(calls)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    report("calls of the team of threads under ThreadSanitizer", 3 * calls, races=0)
