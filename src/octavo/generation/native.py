"""The forward pass in C (forward.c): built once by the machine's own compiler, kept in the cache, called by ctypes.

Why C: one token is some two hundred small operations, and each has its price in PyTorch; in C they are one call, and
what is left is reading the weights. Measured against PyTorch and others in docs/speed.md.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from octavo.files import cache_dir
from octavo.model import GPT

if TYPE_CHECKING:
    from octavo.generation.decoder import Kept

_SOURCE = Path(__file__).with_name("forward.c")
_INCLUDED = [_SOURCE.with_name("floats.h"), _SOURCE.with_name("team.h")]
_LANES = 16  # as in forward.c
_FLAGS = ["-O2", "-march=native", "-std=gnu11", "-fPIC", "-pthread", "-Wno-psabi", "-shared"]
_pointer = ctypes.c_void_p


class UnavailableError(Exception):
    """Why there is no forward pass in C."""


class _Linear(ctypes.Structure):
    _fields_ = (("weight", _pointer), ("scale", _pointer), ("bias", _pointer))


class _Norm(ctypes.Structure):
    _fields_ = (("weight", _pointer), ("bias", _pointer))


class _Block(ctypes.Structure):
    _fields_ = (("ln_1", _Norm), ("c_attn", _Linear), ("attn_c_proj", _Linear), ("ln_2", _Norm), ("c_fc", _Linear),
                ("mlp_c_proj", _Linear), ("keys", _pointer), ("values", _pointer))  # fmt: skip


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int) for name in
          ("n_layer", "n_head", "n_embd", "vocab_size", "exact_gelu", "positions", "half")),
        ("wte", _pointer), ("wpe", _pointer), ("ln_f", _Norm), ("lm_head", _Linear), ("blocks", ctypes.POINTER(_Block)),
    )  # fmt: skip


class NativeDecoder:
    """`octavo.generation.decoder.Decoder` in C. In float32 it reads the model's own weights, where they lie.

    A row gives the same bits whatever runs beside it, and however a prompt is cut. Raises `UnavailableError`.
    """

    def __init__(self, model: GPT, slots: int, int8: bool = False) -> None:
        self._library = library()
        settings = model.settings
        self._width, self._vocab_size = settings.n_embd, settings.vocab_size
        H, D, positions = settings.n_head, settings.head_size, -(-settings.block_size // _LANES) * _LANES
        # Zeros, which the system gives page by page as they are first written.
        dtype, layers = torch.bfloat16 if int8 else torch.float32, range(settings.n_layer)
        self.keys = [torch.zeros(slots, H, positions // _LANES, D, _LANES, dtype=dtype) for _ in layers]
        self.values = [torch.zeros(slots, H, positions, D, dtype=dtype) for _ in layers]
        self._held: list[Tensor | ctypes.Array[_Block]] = []  # what only C points to
        parts = [self._linear_and_norm(linear, norm, int8) for linear, norm in linears(model)]
        blocks = (_Block * settings.n_layer)()
        for i, keys, values in zip(range(settings.n_layer), self.keys, self.values, strict=True):
            (attn, ln_1), (attn_proj, _), (fc, ln_2), (mlp_proj, _) = parts[4 * i : 4 * i + 4]
            blocks[i] = _Block(ln_1, attn, attn_proj, ln_2, fc, mlp_proj, keys.data_ptr(), values.data_ptr())
        head, ln_f = parts[-1]
        self._held.append(blocks)
        self._model = _Model(settings.n_layer, H, settings.n_embd, settings.vocab_size,
                             settings.activation == "gelu", positions, int8, self._at(model.transformer.wte.weight),
                             self._at(model.transformer.wpe.weight), ln_f, head, blocks)  # fmt: skip

    def forward(self, ids: list[int], slots: list[int], positions: list[int], wanted: list[int]) -> Tensor:
        """As `Decoder` has it."""
        N, W = len(ids), len(wanted)
        rows = torch.tensor([ids, slots, positions], dtype=torch.int32)  # (3, N)
        which = torch.tensor(wanted, dtype=torch.int32)
        work = torch.empty(N * (9 * self._width + 1))
        logits = torch.empty(W, self._vocab_size)
        self._library.octavo_forward(
            self._model, N, rows[0].data_ptr(), rows[1].data_ptr(), rows[2].data_ptr(), W, which.data_ptr(),
            work.data_ptr(), logits.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        return logits

    def keep(self, slot: int, length: int) -> "Kept":
        """As `Decoder` has it."""
        pairs = zip(self.keys, self.values, strict=True)
        groups = -(-length // _LANES)
        return [(keys[slot, :, :groups].clone(), values[slot, :, :length].clone()) for keys, values in pairs]

    def restore(self, slot: int, kept: "Kept") -> None:
        """As `Decoder` has it."""
        for keys, values, (k, v) in zip(self.keys, self.values, kept, strict=True):
            keys[slot, :, : k.size(1)], values[slot, :, : v.size(1)] = k, v

    def _linear_and_norm(self, linear: nn.Linear, norm: nn.LayerNorm | None, int8: bool) -> tuple[_Linear, _Norm]:
        bias = self._at(linear.bias)
        if not int8:
            return _Linear(self._at(linear.weight), None, bias), self._norm(norm, None)
        whole, scale, gain = to_int8(linear.weight, norm)
        return _Linear(self._at(whole), self._at(scale), bias), self._norm(norm, gain)

    def _norm(self, norm: nn.LayerNorm | None, gain: Tensor | None) -> _Norm:
        if norm is None:
            return _Norm()
        weight, bias = norm.weight.detach(), None if norm.bias is None else norm.bias.detach()
        if gain is None:
            return _Norm(self._at(weight), self._at(bias))
        return _Norm(self._at(weight / gain), self._at(None if bias is None else bias / gain))

    def _at(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        assert tensor.is_contiguous()
        self._held.append(tensor)
        return tensor.data_ptr()


def linears(model: GPT) -> Iterator[tuple[nn.Linear, nn.LayerNorm | None]]:
    """Every matrix that a token passes, in order, with the norm that it reads through."""
    for block in model.transformer.h:
        yield block.attn.c_attn, block.ln_1  # type: ignore[union-attr, misc]
        yield block.attn.c_proj, None  # type: ignore[union-attr, misc]
        yield block.mlp.c_fc, block.ln_2  # type: ignore[union-attr, misc]
        yield block.mlp.c_proj, None  # type: ignore[union-attr, misc]
    yield model.lm_head, model.transformer.ln_f


@torch.no_grad()
def to_int8(weight: Tensor, norm: nn.LayerNorm | None) -> tuple[Tensor, Tensor, Tensor]:
    """A weight (O, C) as int8 (O, C), a scale for each output (O), and what each input was multiplied by (C).

    The weight is rounded together with the gain of the norm before it: a few channels of a trained GPT-2 have a gain
    many times that of others, and a weight as much smaller, which alone would be rounded to nothing (Wei et al.,
    "Outlier Suppression", 2022, 4.1). Whoever uses it divides the norm's gain and bias by the same.
    """
    gain = torch.ones(weight.size(1)) if norm is None else norm.weight.detach().clone()
    gain[gain.abs() <= 1e-6 * gain.abs().max()] = 1  # of what is switched off no more is known
    weight = weight.detach() * gain
    scale = weight.abs().amax(1).clamp_min(1e-30) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale, gain


@functools.cache
def library() -> ctypes.CDLL:
    """forward.c, built and loaded. Raises `UnavailableError` where that can't be done, saying why."""
    compiler = next((path for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name
                     and (path := shutil.which(name))), None)  # fmt: skip
    if os.environ.get("OCTAVO_NATIVE") == "0":
        raise UnavailableError("OCTAVO_NATIVE=0 asks for no C")
    if compiler is None:
        raise UnavailableError("there is no C compiler here (gcc or clang)")
    try:
        return _loaded(_built(compiler))
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip() or type(error).__name__
        raise UnavailableError(f"forward.c could not be built with {compiler} ({said.splitlines()[0]})") from None


def _loaded(path: Path) -> ctypes.CDLL:
    built = ctypes.CDLL(str(path), mode=os.RTLD_NOW) if hasattr(os, "RTLD_NOW") else ctypes.CDLL(str(path))
    built.octavo_forward.restype = None
    built.octavo_forward.argtypes = [ctypes.POINTER(_Model), ctypes.c_int, _pointer, _pointer, _pointer, ctypes.c_int,
                                     _pointer, _pointer, _pointer, ctypes.c_int]  # fmt: skip
    return built


def _built(compiler: str) -> Path:
    """The library in the cache, made if it isn't there for just this source, compiler and kind of machine."""
    machine = [platform.system(), platform.machine(), sorted(torch.cpu.get_capabilities().items())]
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
    source = [path.read_text(encoding="utf-8") for path in (_SOURCE, *_INCLUDED)]
    key = hashlib.sha256(repr([source, _FLAGS, version, machine]).encode()).hexdigest()
    folder = cache_dir() / "native"
    path = folder / f"forward-{key[:16]}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            made = Path(aside) / "forward.so"
            command = [compiler, *_FLAGS, str(_SOURCE), "-o", str(made), "-lm"]
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
            os.replace(made, path)
    return path
