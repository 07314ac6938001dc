"""How the C files of kernels/ become a shared library, and the instruction sets that a package has libraries for.

Two modules use this. `setup.py` compiles a library for each `Variant` of this processor's architecture when the package
is built. `native_library` loads the best of them; if there is none, it compiles one for this processor.

Only the standard library is imported: `setup.py` runs before the dependencies are installed.
"""

import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent / "kernels"
SOURCES = tuple(FOLDER / name for name in ("forward.c", "training.c", "sampling.c", "words.c"))
BUILD_PREFIX = "octavo-build-"  # of temporary folders
_FLAGS = ("-O2", "-std=gnu11", "-fPIC", "-pthread", "-Wno-psabi")


class UnavailableError(Exception):
    """The C code can't be used; the message says why."""


class Variant(NamedTuple):
    """An instruction set to compile for."""

    name: str
    compiler_flags: str
    cpu_flags: str = ""  # what /proc/cpuinfo must list before its library is loaded

    @property
    def prebuilt(self) -> Path:
        """The library in the installed package, whether or not it exists. Its name has a hash of sources and flags."""
        return FOLDER / f"prebuilt-{self.name}-{self.source_hash()}.so"

    def source_hash(self) -> str:
        sources = [path.read_text(encoding="utf-8") for path in (*SOURCES, *sorted(FOLDER.glob("*.h")))]
        return hashlib.sha256(repr([sources, _FLAGS, self.compiler_flags]).encode()).hexdigest()[:16]

    def runs_on(self, cpu_flags: str) -> bool:
        return set(self.cpu_flags.split()) <= set(cpu_flags.split())


# Every instruction of this processor. Such a library runs on no other kind of processor, so no package has it.
NATIVE = Variant("native", "-march=native")

# What the compilers' x86-64-v3 and -v4 include, in the words of /proc/cpuinfo.
_V3 = "cx16 lahf_lm popcnt pni ssse3 sse4_1 sse4_2 abm avx avx2 bmi1 bmi2 f16c fma movbe xsave"
_V4 = f"{_V3} avx512f avx512bw avx512cd avx512dq avx512vl"

# The best first. On a processor with AMX, `amx` is as fast as NATIVE. VNNI has a variant because it speeds up an int8
# prefill, and processors before AMX have it too. AVX-512's own conversion to bf16 has none: it made steps no faster.
_X86 = (
    Variant(
        "amx",
        "-march=x86-64-v4 -mavx512vnni -mavx512bf16 -mamx-tile -mamx-int8 -mamx-bf16",
        f"{_V4} avx512_vnni avx512_bf16 amx_tile amx_int8 amx_bf16",
    ),
    Variant("avx512-vnni", "-march=x86-64-v4 -mavx512vnni", f"{_V4} avx512_vnni"),
    Variant("avx512", "-march=x86-64-v4", _V4),
    Variant("avx2", "-march=x86-64-v3", _V3),
)
_ARM = (Variant("neon", ""),)
_VARIANTS = {"x86_64": _X86, "aarch64": _ARM, "arm64": _ARM}


def variants() -> tuple[Variant, ...]:
    """The variants of this processor's architecture, the best first."""
    return _VARIANTS.get(platform.machine(), ())


def build_variants(folder: Path) -> dict[str, str]:
    """Compile the libraries of all variants, in place of those in the folder. Returns which of them failed, and why."""
    compiler, problems = find_compiler(), {}

    def build(variant: Variant) -> None:
        try:
            with build_library(compiler, variant) as library:
                path = folder / variant.prebuilt.name
                shutil.copyfile(library, path.with_suffix(".new"))
                path.with_suffix(".new").replace(path)  # a process may have the old one loaded
        except UnavailableError as error:  # a compiler that is older than the instructions
            problems[variant.name] = str(error)

    for old in folder.glob("prebuilt-*"):
        old.unlink()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(build, variants()))
    return problems


def find_compiler() -> str | None:
    candidates = [name for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name]
    return next((path for name in candidates if (path := shutil.which(name))), None)


@contextlib.contextmanager
def build_library(compiler: str | None, variant: Variant) -> Iterator[Path]:
    """Compile the library in a temporary folder that only the user can read, which is removed at the end."""
    if compiler is None:
        raise UnavailableError("no C compiler was found (gcc or clang)")
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=BUILD_PREFIX, ignore_cleanup_errors=True))
            objects = [str(Path(folder, f"{source.stem}.o")) for source in SOURCES]
            flags = [compiler, *_FLAGS, *variant.compiler_flags.split(), "-c"]
            commands = [[*flags, str(source), "-o", path] for source, path in zip(SOURCES, objects, strict=True)]
            with ThreadPoolExecutor() as pool:  # at once, each on a core
                list(pool.map(_run, commands))
            output = Path(folder) / "kernels.so"
            _run([compiler, "-shared", "-pthread", *objects, "-o", str(output), "-lm"])
        except (OSError, subprocess.SubprocessError) as error:
            message = (getattr(error, "stderr", None) or str(error)).strip() or type(error).__name__
            raise UnavailableError(
                f"the C code can't be compiled with {compiler} ({message.splitlines()[0]})"
            ) from None
        yield output


def _run(command: list[str]) -> None:
    subprocess.run(command, capture_output=True, text=True, errors="replace", check=True, timeout=120)
