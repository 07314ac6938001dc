"""Write a GGUF file, which llama.cpp loads as its architecture `gpt2`.

Two tokenizers of llama.cpp give the same ids as ours. `gpt2` is a byte-level BPE with GPT-2's pre-tokenizer. `rwkv`
takes the longest token at each position of the text, byte by byte: with characters or bytes as tokens, it equals our
`char` and `byte`. No tokenizer of llama.cpp splits words as our `word` does, so `word` is an error.
"""

import json
from pathlib import Path

import gguf
import numpy as np

from octavo import files
from octavo.checkpoint import Checkpoint
from octavo.errors import OctavoError
from octavo.tokenizers import Tokenizer

_TYPES = {
    "fp32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "fp16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "int8": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
_MODULES = {"transformer.wte": "token_embd", "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm"}
_BLOCK_MODULES = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
_NEVER_IN_TEXT = "\\xff"  # an escaped byte that UTF-8 does not use: a token that starts with it matches no text


def write(checkpoint: Checkpoint, out: Path, precision: str) -> list[str]:
    """Write a GGUF file. Raises `OctavoError` if no tokenizer of llama.cpp gives the same ids."""
    settings, tokenizer = checkpoint.settings, checkpoint.tokenizer
    with files.atomic_file(out) as file:
        writer = gguf.GGUFWriter(file.name, "gpt2")
        writer.add_name(checkpoint.folder.resolve().name)
        writer.add_file_type(_TYPES[precision][1])
        writer.add_context_length(settings.block_size)
        writer.add_embedding_length(settings.n_embd)
        writer.add_feed_forward_length(4 * settings.n_embd)
        writer.add_block_count(settings.n_layer)
        writer.add_head_count(settings.n_head)
        writer.add_layer_norm_eps(1e-5)
        unused = settings.vocab_size - tokenizer.vocab_size
        if tokenizer.kind in ("char", "byte"):
            _add_longest_match(writer, tokenizer, unused)
        else:
            _add_bpe(writer, tokenizer, unused)
        if tokenizer.beginning_of_text is not None:
            writer.add_bos_token_id(tokenizer.beginning_of_text)
        if tokenizer.end_of_text is not None:
            writer.add_eos_token_id(tokenizer.end_of_text)
        writer.add_add_bos_token(False)
        _add_weights(writer, checkpoint, precision)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    if settings.activation == "gelu":
        return ["llama.cpp computes the tanh approximation of GELU, this model the exact one: logits differ slightly"]
    return []


def _add_longest_match(writer: gguf.GGUFWriter, tokenizer: Tokenizer, unused: int) -> None:
    """llama.cpp's tokenizer `rwkv`."""
    tokens = ["".join(f"\\x{byte:02x}" for byte in token) for token in tokenizer.token_bytes]
    for id in tokenizer.special_ids:
        tokens[id] = _NEVER_IN_TEXT + tokens[id]
    writer.add_tokenizer_model("rwkv")
    writer.add_token_list(tokens + [f"{_NEVER_IN_TEXT}unused{number}" for number in range(unused)])
    writer.add_token_types(_token_types(tokenizer, unused))


def _add_bpe(writer: gguf.GGUFWriter, tokenizer: Tokenizer, unused: int) -> None:
    """llama.cpp's tokenizer `gpt2` with GPT-2's pre-tokenizer."""
    description = json.loads(tokenizer.backend.to_str())
    pre_tokenizer = description["pre_tokenizer"] or {}
    gpt2_pre_tokenizer = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    if any(pre_tokenizer.get(key) != value for key, value in gpt2_pre_tokenizer.items()):
        raise OctavoError(
            f"llama.cpp has no tokenizer that splits text as this {tokenizer.kind} tokenizer does",
            "a model with --tokenizer bpe:N, gpt2, char or byte; or --to ctranslate2, which takes token ids",
        )
    tokens = [str(tokenizer.backend.id_to_token(id)) for id in range(tokenizer.vocab_size)]
    merges = [" ".join(pair) for pair in description["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens + [f"[unused{number}]" for number in range(unused)])
    writer.add_token_types(_token_types(tokenizer, unused))
    # llama.cpp rejects an empty list. The result of this merge is not in the vocabulary, so it changes nothing.
    writer.add_token_merges(merges or [f"{tokens[0]} {tokens[0]}"])


def _token_types(tokenizer: Tokenizer, unused: int) -> list[gguf.TokenType]:
    types = [gguf.TokenType.NORMAL] * tokenizer.vocab_size + [gguf.TokenType.UNUSED] * unused
    for id in tokenizer.special_ids:
        types[id] = gguf.TokenType.CONTROL
    return types


def _add_weights(writer: gguf.GGUFWriter, checkpoint: Checkpoint, precision: str) -> None:
    """Add all parameters under llama.cpp's names, and biases of zero if the model has none; `wte` is also the head."""
    matrix_type = _TYPES[precision][0]
    for name, parameter in checkpoint.model.named_parameters():
        module, _, kind = name.rpartition(".")
        if module in _MODULES:
            target = _MODULES[module]
        else:
            _, _, layer, rest = module.split(".", 3)  # transformer.h.LAYER.REST
            target = f"blk.{layer}.{_BLOCK_MODULES[rest]}"
        values = parameter.detach().numpy()  # matrices (out, in)
        is_matrix = values.ndim == 2 and target != "position_embd"
        _add_tensor(writer, f"{target}.{kind}", values, matrix_type if is_matrix else gguf.GGMLQuantizationType.F32)
        if not checkpoint.settings.bias and target not in ("token_embd", "position_embd"):
            zeros = np.zeros(values.shape[0], np.float32)
            _add_tensor(writer, f"{target}.bias", zeros, gguf.GGMLQuantizationType.F32)


def _add_tensor(writer: gguf.GGUFWriter, name: str, values: np.ndarray, type: gguf.GGMLQuantizationType) -> None:
    """Add a tensor. Q8_0 requires rows of a multiple of 32 numbers; other tensors are written as F16."""
    if type == gguf.GGMLQuantizationType.Q8_0 and values.shape[-1] % 32:
        type = gguf.GGMLQuantizationType.F16
    writer.add_tensor(name, gguf.quants.quantize(values, type), raw_dtype=type)
