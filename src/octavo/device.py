"""Where training runs: the device, the precision, and whether the step is compiled.

`resolve_runtime` turns the settings' `auto` values into a `Runtime`. Operations that differ by device, such as
synchronizing or reading free memory, are here. Nothing here changes PyTorch's global state for longer than a `with`
block.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from octavo.errors import OctavoError
from octavo.settings import TrainingSettings
from octavo.units import format_bytes

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

# Dense 16-bit FLOP/s from the makers' data sheets, by words in the device's name.
_PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "V100": 125e12,
    "T4": 65e12,
}

_highest_peak = [0]  # the largest value of VmHWM that was read, in bytes


@dataclass(frozen=True)
class Runtime:
    """A device, the precision to train in, and whether the step is compiled."""

    device: torch.device
    precision: str = "fp32"
    compile: bool = False
    notices: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The device's name for messages: a GPU's product name, or the CPU with its number of threads."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        if self.device.type == "cpu":
            threads = torch.get_num_threads()
            return f"cpu ({threads} thread{'s' * (threads != 1)})"
        return str(self.device)

    @property
    def stores_bf16(self) -> bool:
        """Whether training computes with weights that are stored in bf16, beside the float32 ones.

        A GPU does, which is faster than autocast; on a CPU it was 1.1 times slower (measured).
        """
        return self.device.type == "cuda" and self.precision == "bf16"

    @property
    def peak_flops(self) -> float | None:
        """The data sheet's dense 16-bit FLOP/s; None in float32, or if the device is not in the table."""
        if self.device.type != "cuda" or self.precision == "fp32":
            return None
        words = f" {self.name.replace('-', ' ')} "  # compare whole words: "L4" must not match "L40S"
        return next((peak for model, peak in _PEAK_FLOPS.items() if f" {model} " in words), None)

    def synchronize(self) -> None:
        """Wait until the device has finished its queued work. A CPU has no queue."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    @property
    def activation_budget(self) -> int:
        """Bytes that the activations of one micro-batch may use: 70% of a GPU's free memory, elsewhere 2 GiB."""
        if self.device.type == "cuda":
            return int(0.7 * torch.cuda.mem_get_info(self.device)[0])
        return 2 << 30

    def peak_memory(self) -> int | None:
        """The peak of memory so far, in bytes: of a GPU's tensors, or of the whole process on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        # On Linux a process inherits ru_maxrss across fork and exec, so it can be the parent's peak. VmHWM is its own.
        # Some kernels, such as gVisor's, do not report VmHWM: then `next` raises StopIteration.
        with contextlib.suppress(OSError, StopIteration), open("/proc/self/status", encoding="ascii") as lines:
            peak = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
            # Linux counts the pages of each thread separately, so VmHWM can fall by a few pages.
            _highest_peak[0] = max(_highest_peak[0], peak)
            return _highest_peak[0]
        try:
            import resource
        except ImportError:  # Windows
            return None
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which the model's matmuls run at `precision`."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        # Autocast's cache keeps the cast weights for reuse in the same forward pass. Each weight is used once per pass,
        # so the cache would only take memory.
        return torch.autocast(self.device.type, _DTYPES[self.precision], cache_enabled=False)

    def grad_scaler(self) -> torch.amp.GradScaler:
        """Loss scaling, which fp16 needs because its small gradients underflow; disabled at other precisions."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def move(self, tensor: torch.Tensor) -> torch.Tensor:
        """Copy a tensor to this device; on CUDA from pinned memory and without blocking."""
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)


@contextlib.contextmanager
def tf32_matmuls(device: torch.device) -> Iterator[None]:
    """Let an NVIDIA GPU round the inputs of float32 matmuls to TF32 (10 bits of mantissa), which its tensor cores take.

    In full float32, where matmuls are several times slower, an evaluation took as long as the training before it. Other
    devices are not affected.
    """
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.set_float32_matmul_precision(before)


def resolve_runtime(settings: TrainingSettings) -> Runtime:
    """Resolve each `auto` of device, precision and compile.

    Raises `OctavoError` for a device or precision that this machine does not have.
    """
    device = find_device(settings.device)
    precision = settings.precision
    notices = []
    if precision == "auto":
        precision = _best_precision(device)
        if device.type == "cpu" and precision == "bf16":
            notices.append("this CPU has native bf16, so training uses bf16 autocast (--precision fp32 to turn it off)")
    if precision == "fp16" and device.type == "cpu":
        raise OctavoError("fp16 is slow and untested on a CPU", "--precision bf16 or --precision fp32")
    # On a CPU a cold compile takes half a minute and speeds up a step by a few percent at the sizes trained there.
    compile = settings.compile == "on" or (settings.compile == "auto" and device.type == "cuda")
    return Runtime(device, precision, compile, notices)


def find_device(name: str = "auto") -> torch.device:
    """The device with this name; `auto` is the first available of CUDA, MPS and CPU.

    Raises `OctavoError` if the name is unknown or this machine has no such device.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise OctavoError(f"there is no device {name!r}", "one of: auto, cpu, cuda, cuda:N, mps") from None
    available = {"cpu": True, "cuda": cuda and (device.index or 0) < torch.cuda.device_count(), "mps": mps}
    if not available.get(device.type, False):
        raise OctavoError(f"this machine has no device {name!r} that PyTorch can use", "--device auto")
    return device


def has_device(name: str) -> bool:
    """Whether this machine has the device."""
    try:
        find_device(name)
    except OctavoError:
        return False
    return True


def check_model_fits(parameters: int, device: torch.device, parts: int = 1) -> None:
    """Raise `OctavoError` if a model, sharded among `parts` processes, is far too large to train on this device.

    Counts only weights, gradients and AdamW's two moments: 16 bytes per parameter.
    """
    needed, total = 16 * parameters // parts, total_memory(device)
    if total is not None and needed > total:
        divided = f", divided among {parts} processes" if parts > 1 else ""
        raise OctavoError(
            f"{parameters:,} parameters{divided} need {format_bytes(needed)} to train, and this machine has "
            f"{format_bytes(total)}",
            "a smaller --n-layer, --n-embd or vocabulary",
        )


def total_memory(device: torch.device) -> int | None:
    """Total memory in bytes: of the GPU, or of the machine for other devices; None if the system does not report it."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None  # Windows has no sysconf; there a model that is too large fails when it is allocated


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated. If the system does not report them, the total memory, which may be None."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    with contextlib.suppress(OSError, StopIteration), open("/proc/meminfo", encoding="ascii") as lines:
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    return total_memory(device)


def resident_memory(device: torch.device) -> int | None:
    """Bytes in use now: by a GPU's tensors, or by the whole process; None if the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    with contextlib.suppress(OSError), open("/proc/self/statm", encoding="ascii") as numbers:
        return os.sysconf("SC_PAGE_SIZE") * int(numbers.read().split()[1])
    return None


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """The type to add up many numbers in: float64, or float32 on MPS, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the error is a failed allocation. On a CPU PyTorch raises a plain RuntimeError, known by its message."""
    message = str(error)
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "not enough memory" in message
        or "can't allocate memory" in message
    )


def _best_precision(device: torch.device) -> str:
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    if device.type == "cpu":
        # Measured: where the CPU multiplies bf16 natively a step is 1.2 (tiny) to 2.3 (baby) times faster
        # than in fp32; elsewhere bf16 is emulated, and five times slower.
        capabilities = torch.cpu.get_capabilities()
        return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"
    return "fp32"
