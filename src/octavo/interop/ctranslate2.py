"""Write a folder that CTranslate2 loads: model.bin, config.json, vocabulary.json and our tokenizer.json.

CTranslate2 knows tokens as strings, those of tokenizer.json. It encodes no text itself.
"""

from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
from torch import Tensor, nn

from octavo import files
from octavo.checkpoint import Checkpoint
from octavo.model import Block


def write(checkpoint: Checkpoint, out: Path, precision: str) -> list[str]:
    """Write a folder. With "int8" the matrices are quantized, with a scale for each row."""
    settings, tokenizer, transformer = checkpoint.settings, checkpoint.tokenizer, checkpoint.model.transformer
    activations = {"gelu_new": ctranslate2.specs.Activation.GELUTanh, "gelu": ctranslate2.specs.Activation.GELU}
    spec = ctranslate2.specs.TransformerDecoderModelSpec.from_config(
        settings.n_layer, settings.n_head, pre_norm=True, activation=activations[settings.activation]
    )
    decoder = spec.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = _array(transformer.wte.weight)
    decoder.position_encodings.encodings = _array(transformer.wpe.weight)
    decoder.projection.weight = _array(transformer.wte.weight)  # a tied head
    _set_norm(decoder.layer_norm, transformer.ln_f)
    for target, block in zip(decoder.layer, transformer.h, strict=True):
        assert isinstance(block, Block)
        _set_norm(target.self_attention.layer_norm, block.ln_1)
        _set_linear(target.self_attention.linear[0], block.attn.c_attn)
        _set_linear(target.self_attention.linear[1], block.attn.c_proj)
        _set_norm(target.ffn.layer_norm, block.ln_2)
        _set_linear(target.ffn.linear_0, block.mlp.c_fc)
        _set_linear(target.ffn.linear_1, block.mlp.c_proj)
    tokens = [tokenizer.backend.id_to_token(id) for id in range(tokenizer.vocab_size)]
    tokens += [f"[unused{number}]" for number in range(settings.vocab_size - tokenizer.vocab_size)]
    spec.register_vocabulary(tokens)
    # CTranslate2 requires these three names. If the vocabulary has no `<|endoftext|>`, nothing ends a text.
    end = "<|endoftext|>" if tokenizer.end_of_text is None else tokens[tokenizer.end_of_text]
    start = end if tokenizer.beginning_of_text is None else tokens[tokenizer.beginning_of_text]
    spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = start, end, end
    spec.validate()
    spec.optimize(quantization="int8" if precision == "int8" else None)
    with files.atomic_folder(out) as partial:
        spec.save(str(partial))
        tokenizer.save(partial)
    return []


def _set_norm(target: Any, norm: nn.LayerNorm) -> None:
    target.gamma = _array(norm.weight)
    target.beta = np.zeros(len(norm.weight), np.float32) if norm.bias is None else _array(norm.bias)


def _set_linear(target: Any, linear: nn.Linear) -> None:
    target.weight = _array(linear.weight)
    if linear.bias is not None:
        target.bias = _array(linear.bias)


def _array(parameter: Tensor) -> np.ndarray:
    """A copy, because CTranslate2 quantizes the arrays in place."""
    return parameter.detach().numpy().copy()
