"""The processor that a benchmark runs on: its name, and the instruction sets that decide which kernels run.

    print(machine.summary())            # one line for the terminal
    report = {"machine": machine.describe(), ...}  # the same for --json

The scripts of `bench/` print it, so that a copied table names the machine that it was measured on.
"""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

# Instruction sets to report; each is present if torch.cpu.get_capabilities() has one of its names.
FLAGS = {
    "AVX2": ("avx2",),
    "AVX-512": ("avx512_f",),
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),
    "AMX": ("amx_tile",),
}


def describe() -> dict[str, Any]:
    """Processor, cores, PyTorch's threads and version, and each of `FLAGS` as a boolean."""
    capabilities = torch.cpu.get_capabilities()
    return {
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "flags": {flag: any(capabilities.get(name) for name in names) for flag, names in FLAGS.items()},
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "system": platform.platform(terse=True),
    }


def environment_of_peers() -> dict[str, str]:
    """This process's environment variables without those that `import octavo` sets, for programs other than Octavo."""
    return {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}


def summary() -> str:
    """The same on one line: "Intel(R) Xeon(R) Processor, 2 cores; AVX2, AVX-512, bf16, no AMX; PyTorch 2.13.0, ..."."""
    about = describe()
    flags = ", ".join(flag if present else f"no {flag}" for flag, present in about["flags"].items())
    return (
        f"{about['processor']}, {about['cores']} cores; {flags}; PyTorch {about['torch']}, {about['threads']} threads; "
        f"{about['system']}"
    )


def processor_name() -> str:
    """The model name that the system reports, or the architecture if it reports none."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    print(summary())
