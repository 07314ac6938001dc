"""Compiles the C files while the package is built. `pyproject.toml` has everything else.

`pip install .` and `python -m build` put a library for each instruction set of `octavo.native_build` into the wheel,
and `pip install -e .` into the source folder. Without a compiler the wheel is pure Python, and Octavo looks for a
compiler at the first use.
"""

import platform
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).parent / "src"))
from octavo import native_build


class BuildVariants(build_ext):
    def run(self) -> None:
        in_place = self.inplace or self.editable_mode
        folder = native_build.FOLDER if in_place else Path(self.build_lib, "octavo", "kernels")
        folder.mkdir(parents=True, exist_ok=True)
        for name, problem in native_build.build_variants(folder).items():
            print(f"note: no library for {name}: {problem}", file=sys.stderr)

    def get_outputs(self) -> list[str]:
        return []  # an editable wheel must not contain the libraries; any other has the whole build folder

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class PlatformWheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])  # the libraries do not use Python's C API


if native_build.variants() and native_build.find_compiler():
    sources = [str(path.relative_to(Path(__file__).parent)) for path in native_build.SOURCES]
    extensions = [Extension("octavo.kernels.prebuilt", sources)]  # so that the wheel is for this platform alone
else:
    extensions = []
    reason = "without a C compiler (gcc or clang)" if native_build.variants() else f"on {platform.machine()}"
    print(f"note: {reason} the package gets no libraries", file=sys.stderr)
setup(ext_modules=extensions, cmdclass={"build_ext": BuildVariants, "bdist_wheel": PlatformWheel})
