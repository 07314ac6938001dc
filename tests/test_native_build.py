"""The prebuilt libraries of a package: which one is loaded, what happens without them, and the wheel that has them."""

import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from octavo import native_build, native_library
from octavo.errors import OctavoError
from octavo.native_build import NATIVE

ROOT = Path(__file__).parents[1]
NAMES = [variant.name for variant in native_build.variants()]
AVX2 = "fpu cx16 lahf_lm popcnt pni ssse3 sse4_1 sse4_2 abm avx avx2 bmi1 bmi2 f16c fma movbe xsave"
AVX512 = f"{AVX2} avx512f avx512bw avx512cd avx512dq avx512vl"
LOAD = "from octavo.native_library import load_library; print(load_library().functions._name)"

has_variants = pytest.mark.skipif(not NAMES, reason="this architecture has no prebuilt libraries")


class Package:
    """A copy of Octavo's files, as a package that is built or installed, and a compiler that copies a library."""

    def __init__(self, folder: Path, library: Path) -> None:
        self.folder, self.cache, self.kernels = folder, folder / "cache", folder / "src" / "octavo" / "kernels"
        ignored = shutil.ignore_patterns("page", "__pycache__", "prebuilt-*")
        shutil.copytree(ROOT / "src" / "octavo", folder / "src" / "octavo", ignore=ignored)
        for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, folder / name)
        self.compiler = folder / "fake-cc"
        lines = ["#!/bin/sh", '[ "$1" = --version ] && echo 1.0 && exit']
        lines += ['case "$*" in *"$REFUSED"*) echo "unknown option" >&2; exit 1;; esac']
        lines += ['while [ "$1" != -o ]; do shift; done', f'cp {library} "$2"']
        self.compiler.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self.compiler.chmod(0o755)

    def run(self, program: str, has_compiler: bool = True, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Run Python code with this package in a new process, by default with the compiler."""
        environment = {"PYTHONPATH": str(self.folder / "src"), "OCTAVO_CACHE": str(self.cache), "REFUSED": "nothing"}
        tools = {"CC": str(self.compiler)} if has_compiler else {"CC": "", "PATH": ""}
        command = [sys.executable, "-c", program]
        variables = os.environ | environment | tools | variables
        return subprocess.run(command, cwd=self.folder, env=variables, capture_output=True, text=True)

    def build_in_place(self, **variables: str) -> dict[str, Path]:
        """Build the libraries as an editable installation does. Return those that there are, by variant."""
        build = "from octavo import native_build; native_build.build_variants(native_build.FOLDER)"
        assert self.run(build, **variables).returncode == 0
        return self.libraries()

    def libraries(self) -> dict[str, Path]:
        found = self.kernels.glob("prebuilt-*")
        return {path.name.removeprefix("prebuilt-").rpartition("-")[0]: path for path in found}

    def load(self, has_compiler: bool = True, **variables: str) -> Path:
        """The library that a new process loads."""
        result = self.run(LOAD, has_compiler, **variables)
        assert result.returncode == 0, result.stderr
        return Path(result.stdout.strip())


@pytest.fixture
def package(tmp_path: Path, built: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    monkeypatch.setenv("OCTAVO_CACHE", str(built.parent))
    return Package(tmp_path, Path(native_library.load_library().functions._name))


def runnable() -> list[str]:
    return [variant.name for variant in native_library.runnable_variants()]


@has_variants
def test_the_best_library_that_the_processor_can_run_is_loaded_without_a_compiler(package: Package) -> None:
    libraries = package.build_in_place()
    assert set(libraries) == set(NAMES)
    for name in runnable():
        assert package.load(has_compiler=False) == libraries[name]
        libraries[name].unlink()
    assert not package.cache.exists()
    assert "no C compiler" in package.run(LOAD, has_compiler=False).stderr
    assert package.load().is_relative_to(package.cache)


def test_the_best_library_uses_what_one_for_this_processor_uses(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header that begins to use other instructions needs them in the table."""
    monkeypatch.setenv("OCTAVO_CACHE", str(built.parent))
    used = []
    for name in [*runnable()[:1], NATIVE.name]:
        monkeypatch.setenv("OCTAVO_NATIVE", name)
        native_library.load_library.cache_clear()
        functions = native_library.load_library().functions
        used.append((functions.octavo_lanes(), functions.octavo_use_amx(1), functions.has_newton_schulz()))
    monkeypatch.delenv("OCTAVO_NATIVE")
    native_library.load_library.cache_clear()
    native_library.load_library()
    assert used[0] == used[-1]


@pytest.mark.parametrize(
    ("cpu_flags", "expected"),
    [
        ("", []),
        (AVX2.replace(" fma", ""), []),
        (AVX2, ["avx2"]),
        (AVX512, ["avx512", "avx2"]),
        (f"{AVX512} avx512_vnni", ["avx512-vnni", "avx512", "avx2"]),
        (f"{AVX512} avx512_vnni avx512_bf16 amx_tile", ["avx512-vnni", "avx512", "avx2"]),
        (f"{AVX512} avx512_vnni avx512_bf16 amx_tile amx_int8 amx_bf16", ["amx", "avx512-vnni", "avx512", "avx2"]),
    ],
)
def test_a_library_with_instructions_that_the_processor_lacks_is_not_a_candidate(
    cpu_flags: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert [variant.name for variant in native_build.variants() if variant.runs_on(cpu_flags)] == expected


def test_processors_of_arm_have_one_library_and_unknown_ones_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for machine, expected in {"aarch64": ["neon"], "arm64": ["neon"], "riscv64": [], "AMD64": []}.items():
        monkeypatch.setattr(platform, "machine", lambda machine=machine: machine)
        assert [variant.name for variant in native_build.variants() if variant.runs_on("")] == expected


@has_variants
def test_after_a_change_of_a_c_file_the_library_is_compiled(package: Package) -> None:
    libraries = package.build_in_place()
    header = package.kernels / "floats.h"
    header.write_text(header.read_text(encoding="utf-8") + "/* changed */\n", encoding="utf-8")
    assert package.load().is_relative_to(package.cache)
    rebuilt = package.build_in_place()
    assert rebuilt.keys() == libraries.keys()
    assert not set(rebuilt.values()) & set(libraries.values())  # the old ones are gone


@has_variants
def test_a_library_that_this_system_cannot_load_is_passed_over(package: Package) -> None:
    for path in package.build_in_place().values():
        path.write_bytes(b"for another system")
    assert package.load().is_relative_to(package.cache)


@has_variants
def test_a_compiler_that_does_not_know_an_instruction_set_builds_the_others(package: Package) -> None:
    flags = {variant.name: variant.compiler_flags for variant in native_build.variants()}
    refused = NAMES[0]
    libraries = package.build_in_place(REFUSED=f"{flags[refused]} -c")
    assert set(libraries) == set(NAMES) - {refused}


@has_variants
def test_octavo_native_chooses_a_library_whether_it_is_prebuilt_or_not(package: Package) -> None:
    for name in runnable():
        assert package.load(OCTAVO_NATIVE=name).is_relative_to(package.cache)
    libraries = package.build_in_place()
    for name in runnable():
        assert package.load(OCTAVO_NATIVE=name) == libraries[name]
    assert package.load(OCTAVO_NATIVE=NATIVE.name).is_relative_to(package.cache)


@pytest.mark.parametrize("name", ["avx1024", "../native", *NAMES[:1]])
def test_a_library_that_does_not_exist_or_that_this_processor_cannot_run_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCTAVO_NATIVE", name)
    monkeypatch.setattr(native_library, "runnable_variants", list)
    native_library.load_library.cache_clear()
    with pytest.raises(OctavoError, match="OCTAVO_NATIVE") as raised:
        native_library.load_library()
    native_library.load_in_background().join()  # the error is for the thread that needs the library
    assert "OCTAVO_NATIVE=native" in str(raised.value)


BUILD_WHEEL = "from setuptools.build_meta import build_wheel; build_wheel('dist')"


@has_variants
def test_a_wheel_has_every_library_and_is_for_its_platform(package: Package) -> None:
    result = package.run(BUILD_WHEEL)
    assert result.returncode == 0, result.stderr
    [wheel] = (package.folder / "dist").glob("*.whl")
    assert "-py3-none-" in wheel.name
    assert not wheel.name.endswith("-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if "/prebuilt-" in name]
    assert sorted(names) == sorted(f"octavo/kernels/{each.prebuilt.name}" for each in native_build.variants())
    assert package.libraries() == {}  # none in the source folder


def test_without_a_compiler_the_wheel_is_pure_python_and_a_note_says_so(package: Package) -> None:
    result = package.run(BUILD_WHEEL, has_compiler=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("note: ") == 1
    [wheel] = (package.folder / "dist").glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if "/prebuilt-" in name]


def test_a_processor_without_libraries_is_named_in_the_note(package: Package) -> None:
    result = package.run(f"import platform; platform.machine = lambda: 'riscv64'; {BUILD_WHEEL}")
    assert result.returncode == 0, result.stderr
    [note] = [line for line in result.stderr.splitlines() if "note: " in line]
    assert "riscv64" in note
    assert "compiler" not in note


@has_variants
def test_an_editable_installation_builds_the_libraries_in_place(package: Package) -> None:
    result = package.run("from setuptools.build_meta import build_editable; build_editable('dist')")
    assert result.returncode == 0, result.stderr
    assert set(package.libraries()) == set(NAMES)
