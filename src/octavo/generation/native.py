"""The decoder in C: calls forward.c, which `octavo.native_library` loads, through ctypes.

Why C: decoding one token is about two hundred small operations, and in PyTorch each has a fixed overhead. In C they
are one call, and the memory bandwidth of reading the weights is the limit. docs/speed.md has the measurements.

Axis letters: `N` rows, `W` rows whose logits are needed, `H` heads, `D` width of a head, `V` vocabulary, `O` outputs
and `C` inputs of a matrix.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from octavo.generation.decoder import Batch, PrefixKV
from octavo.generation.int8 import input_gains, linears_with_norms, output_factors, quantize_int8
from octavo.kernels.weights import check_weights
from octavo.model import GPT
from octavo.native_library import load_library

_MAX_THREADS = 255  # as in team.h
MIN_WORK_OF_THREADS = 1 << 20  # rows times parameters; with less, waking a second thread takes longer than it saves
_INT8_ROWS, _INT8_COLUMNS = 16, 64  # the shape of a block of int8 weights, as in linear.h
_pointer = ctypes.c_void_p


# The structs of forward.c, field by field.


class _Linear(ctypes.Structure):
    _fields_ = (("weight", _pointer), ("scale", _pointer), ("bias", _pointer))


class _Norm(ctypes.Structure):
    _fields_ = (("weight", _pointer), ("bias", _pointer))


class _Block(ctypes.Structure):
    _fields_ = (
        ("ln_1", _Norm),
        ("c_attn", _Linear),
        ("attn_c_proj", _Linear),
        ("ln_2", _Norm),
        ("c_fc", _Linear),
        ("mlp_c_proj", _Linear),
        ("keys", _pointer),
        ("values", _pointer),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        ("n_layer", ctypes.c_int),
        ("n_head", ctypes.c_int),
        ("n_embd", ctypes.c_int),
        ("vocab_size", ctypes.c_int),
        ("exact_gelu", ctypes.c_int),
        ("positions", ctypes.c_int),
        ("int8", ctypes.c_int),
        ("wte", _pointer),
        ("wpe", _pointer),
        ("ln_f", _Norm),
        ("lm_head", _Linear),
        ("blocks", ctypes.POINTER(_Block)),
    )


class NativeDecoder:
    """A `Decoder` in C. In float32 it reads the model's own tensors, so it follows changes of the weights.

    A row has the same bits whatever rows are beside it and however a prompt is split into batches. Raises
    `UnavailableError` if the C code can't be compiled, or the weights are not contiguous float32 tensors on the CPU.
    """

    is_batch_invariant = True

    def __init__(self, model: GPT, slots: int, int8: bool = False) -> None:
        check_weights(model)
        library = load_library()
        self.notices = [library.notice] if library.notice else []
        self._forward, self._workspace_size = _declare_functions(library.functions)
        library.functions.octavo_use_amx(1)  # if the processor has it; the bits are the same
        settings = model.settings
        self._vocab_size = settings.vocab_size
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self._lanes: int = library.functions.octavo_lanes()  # positions in a tile of the KV cache
        H, D, layers = settings.n_head, settings.head_size, range(settings.n_layer)
        tiles = self._count_tiles(settings.block_size)
        # A tile of int8 numbers ends with a float32 scale for each position: see kv_cache.h.
        tile, dtype = (self._lanes * (D + 4), torch.int8) if int8 else (self._lanes * D, torch.float32)
        shape = (slots, H, tiles, tile)
        # Zeros, so that a machine with too little memory fails here and not while it serves: a page has memory only
        # once it is written.
        self.keys = [torch.zeros(shape, dtype=dtype, device="cpu") for _ in layers]
        self.values = [torch.zeros(shape, dtype=dtype, device="cpu") for _ in layers]
        self._owned: list[Tensor | ctypes.Array[_Block]] = []  # memory that the C structs point to: keep it alive
        parts = self._convert_int8(model) if int8 else self._convert_fp32(model)
        blocks = (_Block * settings.n_layer)()
        for i, keys, values in zip(layers, self.keys, self.values, strict=True):
            (attn, ln_1), (attn_proj, _), (fc, ln_2), (mlp_proj, _) = parts[4 * i : 4 * i + 4]
            blocks[i] = _Block(ln_1, attn, attn_proj, ln_2, fc, mlp_proj, keys.data_ptr(), values.data_ptr())
        head, ln_f = parts[-1]
        self._owned.append(blocks)
        self._model = _Model(
            n_layer=settings.n_layer,
            n_head=H,
            n_embd=settings.n_embd,
            vocab_size=settings.vocab_size,
            exact_gelu=settings.activation == "gelu",
            positions=tiles * self._lanes,
            int8=int8,
            wte=self._pointer_to(model.transformer.wte.weight),
            wpe=self._pointer_to(model.transformer.wpe.weight),
            ln_f=ln_f,
            lm_head=head,
            blocks=blocks,
        )

    def forward(self, batch: Batch) -> Tensor:
        N, W = len(batch.ids), len(batch.logit_rows)
        ids, slots, positions = _as_ints([batch.ids, batch.slots, batch.positions])  # (N,)
        logit_rows = _as_ints(batch.logit_rows)  # (W,)
        threads = min(torch.get_num_threads(), _MAX_THREADS) if N * self.parameters >= MIN_WORK_OF_THREADS else 1
        workspace = _empty_floats(self._workspace_size(self._model, N, threads))
        logits = _empty_floats(W, self._vocab_size)  # (W, V)
        self._forward(
            self._model,
            N,
            ids.data_ptr(),
            slots.data_ptr(),
            positions.data_ptr(),
            W,
            logit_rows.data_ptr(),
            workspace.data_ptr(),
            logits.data_ptr(),
            threads,
        )
        return logits

    def save_prefix(self, slot: int, length: int) -> PrefixKV:
        pairs = zip(self.keys, self.values, strict=True)
        tiles = self._count_tiles(length)
        return [(keys[slot, :, :tiles].clone(), values[slot, :, :tiles].clone()) for keys, values in pairs]

    def restore_prefix(self, slot: int, prefix: PrefixKV) -> None:
        for keys, values, (k, v) in zip(self.keys, self.values, prefix, strict=True):
            keys[slot, :, : k.size(1)], values[slot, :, : v.size(1)] = k, v

    def _count_tiles(self, positions: int) -> int:
        return -(-positions // self._lanes)

    def _convert_fp32(self, model: GPT) -> list[tuple[_Linear, _Norm]]:
        """The C structs of all matrices and of the layer norm before each."""
        pointer, convert_norm = self._pointer_to, self._convert_norm
        return [
            (_Linear(pointer(linear.weight), None, pointer(linear.bias)), convert_norm(norm, None))
            for linear, norm in linears_with_norms(model)
        ]

    def _convert_int8(self, model: GPT) -> list[tuple[_Linear, _Norm]]:
        """The same with int8 weights. They are parts of one tensor, since only a large one gets huge pages."""
        pairs, gains = list(linears_with_norms(model)), list(input_gains(model))
        quantized = [quantize_int8(linear.weight, gain) for (linear, _), gain in zip(pairs, gains, strict=True)]
        packed = [_pack_int8(values) for values, _ in quantized]
        weights = torch.split(torch.cat(packed), [len(each) for each in packed])
        scales = [scale * factor for (_, scale), factor in zip(quantized, output_factors(model), strict=True)]
        biases = [
            None if linear.bias is None else linear.bias.detach() * factor
            for (linear, _), factor in zip(pairs, output_factors(model), strict=True)
        ]
        pointer, convert_norm = self._pointer_to, self._convert_norm
        return [
            (_Linear(pointer(weight), pointer(scale), pointer(bias)), convert_norm(norm, gain))
            for weight, scale, bias, (_, norm), gain in zip(weights, scales, biases, pairs, gains, strict=True)
        ]

    def _convert_norm(self, norm: nn.LayerNorm | None, gain: Tensor | None) -> _Norm:
        """The C struct of a norm, divided by `gain` (C,): the factors that int8 has moved into the matrix after it."""
        if norm is None:
            return _Norm()
        weight, bias = norm.weight.detach(), None if norm.bias is None else norm.bias.detach()
        if gain is None:
            return _Norm(self._pointer_to(weight), self._pointer_to(bias))
        return _Norm(self._pointer_to(weight / gain), self._pointer_to(None if bias is None else bias / gain))

    def _pointer_to(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        assert tensor.is_contiguous()
        self._owned.append(tensor.detach())  # its memory, even if the parameter gets other memory: `model.double()`
        return tensor.data_ptr()


# Both state type and device, since the caller's program may have changed PyTorch's defaults.
def _as_ints(numbers: Sequence[Any]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32, device="cpu")


def _empty_floats(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _pack_int8(weight: Tensor) -> Tensor:
    """int8 weights (O, C) in the order of linear.h: (O / 16, C / 64, 16, 64), with zeros at the ends, flattened."""
    outputs, columns = weight.shape
    padded = nn.functional.pad(weight, (0, -columns % _INT8_COLUMNS, 0, -outputs % _INT8_ROWS))
    blocks = padded.view(-1, _INT8_ROWS, padded.size(1) // _INT8_COLUMNS, _INT8_COLUMNS)
    return blocks.transpose(1, 2).flatten()


def _declare_functions(library: ctypes.CDLL) -> tuple["ctypes._NamedFuncPointer", "ctypes._NamedFuncPointer"]:
    """Declare the types of `octavo_forward` and `octavo_workspace_size`, and return the two functions."""
    forward, workspace_size = library.octavo_forward, library.octavo_workspace_size
    model, rows, count = ctypes.POINTER(_Model), [_pointer] * 3, ctypes.c_int
    forward.restype = None
    forward.argtypes = [model, count, *rows, count, _pointer, _pointer, _pointer, count]
    workspace_size.restype, workspace_size.argtypes = ctypes.c_long, [model, count, count]
    return forward, workspace_size
