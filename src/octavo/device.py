"""Where and how precisely the arithmetic runs: device, precision, compile. Chosen once, said once.

`resolve_runtime` resolves what the settings leave to `auto` and gives a `Runtime`, with one note for each choice that
changes speed or numbers without being asked. What only one kind of device needs lives here.
"""

import contextlib
import os
import sys
from dataclasses import dataclass, field
from typing import Any

import torch

from octavo.errors import OctavoError
from octavo.settings import TrainingSettings
from octavo.units import format_bytes

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

# Dense bf16 products per second, from the makers' data sheets, by a part of the device's name.
_PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "B200": 2250e12, "A100": 312e12, "L40S": 362e12,
               "L4": 121e12, "RTX 4090": 165e12, "RTX 3090": 71e12, "V100": 125e12, "T4": 65e12}  # fmt: skip


@dataclass(frozen=True)
class Runtime:
    """A device with the precision to train in, and whether the step is compiled."""

    device: torch.device
    precision: str = "fp32"
    compile: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What to call the device when talking to a person."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        if self.device.type == "cpu":
            threads = torch.get_num_threads()
            return f"cpu ({threads} thread{'s' * (threads != 1)})"
        return str(self.device)

    @property
    def peak_flops(self) -> float | None:
        """The device's dense rate in FLOP/s at 16 bits, where it runs at those and its data sheet is known."""
        if self.device.type != "cuda" or self.precision == "fp32":
            return None
        words = f" {self.name.replace('-', ' ')} "  # whole words: an L4 is no L40S
        return next((peak for part, peak in _PEAK_FLOPS.items() if f" {part} " in words), None)

    def synchronize(self) -> None:
        """Until the device has done what it was given; a CPU has by then."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    @property
    def activation_budget(self) -> int:
        """Bytes that a step's activations may take: on a GPU most of what is free, elsewhere what any machine bears."""
        if self.device.type == "cuda":
            return int(0.7 * torch.cuda.mem_get_info(self.device)[0])
        return 2 << 30

    def peak_memory(self) -> int | None:
        """The most bytes that were held so far: of the GPU's memory by tensors, on a CPU by the whole process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        # getrusage on Linux counts what a large parent held before it became this program.
        with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii") as lines:
            return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
        try:
            import resource
        except ImportError:  # Windows
            return None
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which the model's products run at `precision`."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        # The cache keeps a bf16 copy of each weight for one use; here each weight is used once a forward.
        return torch.autocast(self.device.type, _DTYPES[self.precision], cache_enabled=False)

    def grad_scaler(self) -> torch.amp.GradScaler:
        """Loss scaling for fp16, whose small gradients would vanish; does nothing for the others."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def move(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor on this device, without waiting for it on CUDA."""
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)


def resolve_runtime(settings: TrainingSettings) -> Runtime:
    """The place that the settings name, with every `auto` resolved.

    Raises `OctavoError` for a device or precision that this machine doesn't have.
    """
    device = find_device(settings.device)
    precision = settings.precision
    notes = []
    if precision == "auto":
        precision = _best_precision(device)
        if device.type == "cpu" and precision == "bf16":
            notes.append("this CPU has fast bf16, so products run in it (--precision fp32 for none of it)")
    if precision == "fp16" and device.type == "cpu":
        raise OctavoError("fp16 is slow and untested on a CPU", "--precision bf16 or --precision fp32")
    # A cold compile costs half a minute on a CPU and gives a few percent at the sizes trained there.
    compile = settings.compile == "on" or (settings.compile == "auto" and device.type == "cuda")
    return Runtime(device, precision, compile, notes)


def find_device(name: str = "auto") -> torch.device:
    """The device of that name; `auto` is the first of CUDA, MPS and CPU that there is."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise OctavoError(f"there is no device {name!r}", "one of: auto, cpu, cuda, cuda:N, mps") from None
    there = {"cpu": True, "cuda": cuda and (device.index or 0) < torch.cuda.device_count(), "mps": mps}
    if not there.get(device.type, False):
        raise OctavoError(f"this machine has no device {name!r} that PyTorch can use", "--device auto")
    return device


def check_fits(parameters: int, device: torch.device) -> None:
    """Raise `OctavoError` where weights, gradients and AdamW's two averages alone, 16 bytes each, don't fit."""
    there = total_memory(device)
    if there is not None and 16 * parameters > there:
        raise OctavoError(
            f"{parameters:,} parameters need {format_bytes(16 * parameters)} to train, and this machine has "
            f"{format_bytes(there)}",
            "a smaller --n-layer, --n-embd or vocabulary",
        )


def total_memory(device: torch.device) -> int | None:
    """All the bytes of memory that a device has, or the machine."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None  # Windows tells only through its own API; there the allocation itself fails


def free_memory(device: torch.device) -> int | None:
    """Bytes that may still be taken, where the system tells; where it doesn't, all that there are."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    with contextlib.suppress(OSError, StopIteration), open("/proc/meminfo", encoding="ascii") as lines:
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    return total_memory(device)


def resident_memory(device: torch.device) -> int | None:
    """Bytes that are taken now: of a GPU's by tensors, else by the whole process, where the system tells."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    with contextlib.suppress(OSError), open("/proc/self/statm", encoding="ascii") as numbers:
        return os.sysconf("SC_PAGE_SIZE") * int(numbers.read().split()[1])
    return None


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that the device's memory, or the machine's, did not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error) or (
        "can't allocate memory" in str(error)
    )  # fmt: skip


def _best_precision(device: torch.device) -> str:
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    if device.type == "cpu":
        # Measured: where the CPU multiplies bf16 natively a step is 1.2 (tiny) to 2.3 (baby) times faster
        # than in fp32; elsewhere bf16 is emulated, and five times slower.
        has = torch.cpu.get_capabilities()
        return "bf16" if has.get("avx512_bf16") or has.get("amx_bf16") else "fp32"
    return "fp32"
