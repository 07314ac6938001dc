"""Run one program with one model, controlled through stdin and stdout. `against_peers.py` runs several side by side.

    python -P bench/peers.py PROGRAM FOLDER PRECISION THREADS [NANOGPT]

FOLDER is a checkpoint of Octavo; a program with its own format gets it converted inside that folder. Each line of
stdin is a JSON object: the action to `do`, and its arguments. Each line of stdout is the result and the seconds it
took; the first line says that the model is loaded. Only `octavo` needs Octavo; the others run in any Python that has
the peers installed. Each program is configured for speed on a CPU as its authors recommend. Prefix caching
is off, and end-of-text tokens are ignored.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Actions = dict[str, Callable[..., Any]]
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")  # stored as (in, out)


def main() -> None:
    program, folder, precision, threads, *checkout = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the program itself prints goes to stderr
    actions = PROGRAMS[program](Path(folder), precision, int(threads), *checkout)
    print(json.dumps({"notices": actions.pop("notices", list)()}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        action = actions[request.pop("do")]
        start = time.perf_counter()
        value = action(**request)
        seconds = time.perf_counter() - start
        print(json.dumps({"value": value, "seconds": seconds}), file=answers, flush=True)


def octavo(folder: Path, precision: str, threads: int) -> Actions:
    """Octavo's engine. It also measures memory bandwidth, with the same threads."""
    import torch

    from octavo import checkpoint
    from octavo.generation.engine import Engine, Request
    from octavo.generation.sampling import Sampling

    model = checkpoint.load(folder).model
    quantize = {"fp32": "none", "int8": "int8"}[precision]
    engine = Engine(model, slots=8, quantize=quantize, use_drafts=False)  # one token per step, as in the peers
    array = torch.ones(2**28)

    def streams(requests: list[dict[str, Any]], at_once: bool) -> list[list[int]]:
        jobs = []
        for seed, request in enumerate(requests):
            jobs.append(
                engine.submit(
                    Request(
                        prompt=request["prompt"],
                        max_new_tokens=request["new"],
                        sampling=Sampling(**request["sampling"]),
                        generator=torch.Generator().manual_seed(seed),
                        overflow="stop",
                    )
                )
            )
            while not at_once and engine.step():
                pass
        while engine.step():
            pass
        return [[token.id for token in job.tokens] for job in jobs]

    def generate(prompt: list[int], new: int, sampled: bool = False) -> list[int]:
        sampling = {"temperature": 0.8, "top_k": 200} if sampled else {"temperature": 0}
        return streams([{"prompt": prompt, "new": new, "sampling": sampling}], at_once=True)[0]

    def read_memory() -> int:
        array.sum()
        return array.nbytes

    return {"generate": generate, "streams": streams, "read_memory": read_memory, "notices": lambda: engine.notices}


def nanogpt(folder: Path, precision: str, threads: int, checkout: str) -> Actions:
    """The checkout's own `generate`, with the temperature and top-k of sample.py; greedy is top-k 1."""
    import torch
    from safetensors.torch import load_file

    sys.path.insert(0, checkout)
    from model import GPT, GPTConfig

    config = json.loads((folder / "config.json").read_text())
    shape = {name: config[name] for name in ("vocab_size", "n_layer", "n_head", "n_embd")}
    model = GPT(GPTConfig(block_size=config["n_positions"], dropout=0.0, bias=True, **shape)).eval()
    stored = load_file(folder / "model.safetensors").items()
    weights = {name: value.t() if name.endswith(TRANSPOSED) else value for name, value in stored}
    model.load_state_dict(weights | {"lm_head.weight": weights["transformer.wte.weight"]})

    def generate(prompt: list[int], new: int, sampled: bool = False) -> list[int]:
        sampling = {"temperature": 0.8, "top_k": 200} if sampled else {"top_k": 1}
        return model.generate(torch.tensor([prompt]), new, **sampling)[0, len(prompt) :].tolist()

    return {"generate": generate}


def transformers(folder: Path, precision: str, threads: int) -> Actions:
    """`generate` with its defaults: eager mode, a growing KV cache, PyTorch's fused attention."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)  # no end-of-text token

    def generate(prompt: list[int], new: int) -> list[int]:
        ids = torch.tensor([prompt])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new)
        return out[0, len(prompt) :].tolist()

    return {"generate": generate}


def ctranslate2(folder: Path, precision: str, threads: int) -> Actions:
    """`generate_batch` without the prompt in its result: only then does it prefill the prompt in one pass."""
    import ctranslate2
    from ctranslate2.converters import TransformersConverter

    kind = {"fp32": "float32", "int8": "int8"}[precision]
    converted = Path(TransformersConverter(str(folder)).convert(str(folder / kind), quantization=kind))
    config = json.loads((converted / "config.json").read_text())
    # The converter writes null for these, which the loader rejects.
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "none")
    (converted / "config.json").write_text(json.dumps(config | names | {"layer_norm_epsilon": 1e-5}))
    tokens = json.loads((converted / "vocabulary.json").read_text(encoding="utf-8"))
    generator = ctranslate2.Generator(str(converted), compute_type=kind, intra_threads=threads)

    def generate(prompt: list[int], new: int) -> list[int]:
        start = [tokens[id] for id in prompt]
        out = generator.generate_batch([start], min_length=new, max_length=new, include_prompt_in_result=False)
        return out[0].sequences_ids[0]

    return {"generate": generate}


def llama_cpp(folder: Path, precision: str, threads: int) -> Actions:
    """llama.cpp's server, called without HTTP, with its defaults: flash attention, mmap, repacking, an f16 KV cache."""
    import gguf
    import numpy as np
    import xllamacpp
    from safetensors.numpy import load_file

    kind = {"fp32": "F32", "int8": "Q8_0"}[precision]
    config = json.loads((folder / "config.json").read_text())
    file = gguf.GGUFWriter(folder / f"{kind}.gguf", "gpt2")
    fields = {
        "context_length": config["n_positions"],
        "embedding_length": config["n_embd"],
        "feed_forward_length": 4 * config["n_embd"],
        "block_count": config["n_layer"],
        "head_count": config["n_head"],
        "layer_norm_eps": 1e-5,
        "file_type": {"F32": gguf.LlamaFileType.ALL_F32, "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}[kind],
        "tokenizer_model": "gpt2",
        "tokenizer_pre": "gpt-2",
        "token_merges": ["Ġ 0"],  # at least one is required
        # It answers in text, so the text of each token is its id.
        "token_list": [f"Ġ{id}" for id in range(config["vocab_size"])],
    }
    for name, value in fields.items():
        getattr(file, f"add_{name}")(value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, config["n_layer"])
    for name, value in load_file(folder / "model.safetensors").items():
        value = np.ascontiguousarray(value.T) if name.endswith(TRANSPOSED) else value
        dtype = gguf.GGMLQuantizationType["F32" if value.ndim == 1 or name.endswith("wpe.weight") else kind]
        name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        file.add_tensor(name, gguf.quants.quantize(value, dtype), raw_dtype=dtype)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()

    settings = xllamacpp.CommonParams()
    settings.model.path = str(folder / f"{kind}.gguf")
    settings.n_ctx = config["n_positions"]
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    settings.fit_params, settings.cache_ram_mib = False, 0
    server = xllamacpp.Server(settings)
    greedy = {"temperature": 0, "samplers": ["top_k"], "top_k": 1, "ignore_eos": True, "cache_prompt": False}

    def generate(prompt: list[int], new: int) -> list[int]:
        out = server.handle_completions({"prompt": prompt, "max_tokens": new, **greedy})
        return [int(id) for id in out["choices"][0]["text"].split()]

    return {"generate": generate}


PROGRAMS: dict[str, Callable[..., Actions]] = {
    "nanogpt": nanogpt,
    "transformers": transformers,
    "ctranslate2": ctranslate2,
    "llama.cpp": llama_cpp,
    "octavo": octavo,
}

if __name__ == "__main__":
    main()
