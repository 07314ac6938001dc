"""The table of formats that `octavo.interop.convert` writes. Pure data, so that `octavo --help` is quick."""

from dataclasses import dataclass

MAX_FILE_BYTES = 5 * 10**9  # of one shard of the weights; the default of transformers before version 5
PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class Format:
    """A format: its precisions, the default first, and the package that writes it."""

    summary: str
    precisions: tuple[str, ...] = ("fp32",)
    package: str = ""  # the extra of Octavo that installs it has the name of the format


FORMATS = {
    "hf": Format("a folder for transformers and the Hugging Face hub, with a model card"),
    "gguf": Format("one file for llama.cpp, Ollama, LM Studio", ("fp32", "fp16", "int8"), "gguf"),
    "ctranslate2": Format("a folder for CTranslate2", ("fp32", "int8"), "ctranslate2"),
    "nanogpt": Format("a folder with the ckpt.pt of nanoGPT"),
    "onnx": Format("a folder with an ONNX model that has a KV cache", package="onnxscript"),
}
