"""Write an ONNX model with a KV cache: model.onnx, with our tokenizer.json and a config.json beside it.

    input_ids (B, T), past_key_values.LAYER.key and .value (B, H, S, D)
    -> logits (B, T, V), present.LAYER.key and .value (B, H, S + T, D)

B, T and S may be any number; S is 0 at the beginning of a text, and S + T at most `block_size`. The names are those of
Hugging Face's exporter.

Axis letters: `B` sequences, `T` new positions, `S` cached positions, `H` heads of width `D`, `V` vocabulary.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from octavo import files
from octavo.checkpoint import Checkpoint
from octavo.interop import gpt2_folder
from octavo.model import GPT, Block


def write(checkpoint: Checkpoint, out: Path, precision: str) -> list[str]:
    """Write a folder. Weights of more than 1.5 GiB, PyTorch's limit, are in a second file, model.onnx.data."""
    settings = checkpoint.settings
    # Any sizes of at least 2: PyTorch compiles 0 and 1 into the graph as constants.
    ids = torch.zeros(2, 2, dtype=torch.long)
    past = [torch.zeros(2, settings.n_head, 2, settings.head_size) for _ in range(2 * settings.n_layer)]
    caches = [f"{layer}.{kind}" for layer in range(settings.n_layer) for kind in ("key", "value")]
    any_size = torch.export.Dim.DYNAMIC
    with files.atomic_folder(out) as partial, _quiet_exporter():
        program = torch.onnx.export(
            _CachedModel(checkpoint.model).eval(),
            (ids, past),
            input_names=["input_ids", *(f"past_key_values.{name}" for name in caches)],
            output_names=["logits", *(f"present.{name}" for name in caches)],
            dynamic_shapes=({0: any_size, 1: any_size}, [{0: any_size, 2: any_size}] * len(past)),
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.save(partial / "model.onnx")
        gpt2_folder.write_config_and_tokenizer(partial, settings, checkpoint.tokenizer)
    return []


class _CachedModel(nn.Module):
    """`GPT` with the caches as inputs and outputs, because ONNX has no state."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, past: list[Tensor]) -> tuple[Tensor, ...]:
        model, S, T = self.model, past[0].size(2), input_ids.size(1)
        positions = torch.arange(S, S + T)
        mask = torch.arange(S + T) <= positions[None, None, :, None]  # (1, 1, T, S + T)
        x = model.transformer.wte(input_ids) + model.transformer.wpe(positions)  # (B, T, C)
        present: list[Tensor] = []
        for block, past_k, past_v in zip(model.transformer.h, past[::2], past[1::2], strict=True):
            assert isinstance(block, Block)
            q, k, v = block.attn.project(block.ln_1(x))  # (B, H, T, D)
            present += [torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)]  # (B, H, S + T, D)
            x = x + block.attn.output(block.attn.attend(q, present[-2], present[-1], mask))
            x = x + block.mlp(block.ln_2(x))
        return model.unembed(model.norm(x)), *present


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence the exporter's messages about packages that it does not need here."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)
