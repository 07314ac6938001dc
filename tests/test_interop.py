"""Models that `octavo convert` wrote, loaded by the programs they are for: same ids, same probabilities."""

import contextlib
import dataclasses
import json
import os
import pickle
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ctranslate2
import huggingface_hub
import numpy as np
import onnxruntime
import pytest
import torch
import xllamacpp

import octavo
import octavo.settings
import octavo.tokenizers
from commands import AssertRejected, RunCommand
from folders import file_size_limit
from lenses import LINE, random_checkpoint
from octavo.checkpoint import Checkpoint
from octavo.errors import MachineError, OctavoError
from octavo.interop.formats import FORMATS
from octavo.tokenizers import choose_start

LLAMA_KINDS = ("char", "byte", "bpe:400", "bpe:257")  # bpe:257 has no merges
KINDS = (*LLAMA_KINDS, "word:400")
SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 96}
# Quotes, contractions, runs of spaces and digits: where tokenizers split differently.
TEXT = f"{LINE} I'll  go;\n\n 1234 they've   --- x=1\t{LINE[::-1]} we'd \n"


def model_of(folder: Path, kind: str, bias: bool = True, **options: Any) -> Checkpoint:
    """A model whose probabilities differ enough that rounding changes no choice.

    It counts as trained on several documents, so that texts may end with the end-of-text token.
    """
    model = random_checkpoint(folder, kind, text=TEXT * 20, bias=bias, **{"std": 0.1} | SHAPE | options)
    return dataclasses.replace(model, tokenizer=choose_start(model.tokenizer, trained_on_end_of_text=True))


def log_probabilities(model: Checkpoint, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model.model(torch.tensor([ids]))[0].log_softmax(-1).numpy()


def greedy_ids(model: Checkpoint, prompt: str, tokens: int) -> list[int]:
    """The most likely ids, with the eos token if it ends the text."""
    [sample] = octavo.generate(model, prompt, max_new_tokens=tokens, temperature=0)
    end = [model.tokenizer.end_of_text] if sample.finish_reason == "end_of_text" else []
    return [*sample.token_ids, *end]


# llama.cpp


class Llama:
    """llama.cpp's server with one model."""

    def __init__(self, path: Path) -> None:
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.n_parallel, parameters.cpuparams.n_threads, parameters.port = 1, 1, 0
        parameters.warmup, parameters.verbosity = False, 0
        self._server = xllamacpp.Server(parameters)

    def post(self, path: str, **body: Any) -> Any:
        request = urllib.request.Request(
            self._server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)


@contextlib.contextmanager
def llama(model: Checkpoint, folder: Path, precision: str = "fp32") -> Iterator[Llama]:
    yield Llama(octavo.convert(model, "gguf", folder / f"{precision}.gguf", precision).out)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", LLAMA_KINDS)
def test_llama_cpp_gives_the_same_ids_and_probabilities(tmp_path: Path, kind: str, bias: bool) -> None:
    model = model_of(tmp_path / "model", kind, bias)
    ids = model.tokenizer.encode(TEXT).tolist()
    # One that continues with an ASCII character: the server reports no probabilities of half a character.
    prompt = next(
        LINE[:end] for end in range(4, 20) if model.tokenizer.token_bytes[greedy_ids(model, LINE[:end], 1)[0]].isascii()
    )
    with llama(model, tmp_path) as server:
        assert server.post("/tokenize", content=TEXT)["tokens"] == ids
        assert server.post("/detokenize", tokens=ids)["content"] == TEXT
        answer = server.post("/completion", prompt=prompt, n_predict=24, temperature=0, n_probs=10, return_tokens=True)
    assert answer["tokens"] == greedy_ids(model, prompt, 24)
    expected = log_probabilities(model, model.tokenizer.encode(prompt).tolist())[-1]
    for token in answer["completion_probabilities"][0]["top_logprobs"]:
        assert token["logprob"] == pytest.approx(expected[token["id"]], abs=5e-3)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 0.02), ("int8", 0.1)])
def test_llama_cpp_gives_nearly_the_same_probabilities_in_fewer_bits(
    tmp_path: Path, precision: str, tolerance: float
) -> None:
    model = model_of(tmp_path / "model", "bpe:400")
    with llama(model, tmp_path, precision) as server:
        answer = server.post("/completion", prompt=LINE, n_predict=1, temperature=0, n_probs=10)
    expected = log_probabilities(model, model.tokenizer.encode(LINE).tolist())[-1]
    for token in answer["completion_probabilities"][0]["top_logprobs"]:
        assert token["logprob"] == pytest.approx(expected[token["id"]], abs=tolerance)


@pytest.mark.parametrize("kind", ["char", "bpe:400"])
def test_llama_cpp_accepts_a_vocabulary_larger_than_the_tokenizer(tmp_path: Path, kind: str) -> None:
    model = model_of(tmp_path / "model", kind, vocab_size=512)
    ids = model.tokenizer.encode(TEXT).tolist()
    with llama(model, tmp_path) as server:
        assert server.post("/tokenize", content=TEXT)["tokens"] == ids


@pytest.mark.parametrize("kind", LLAMA_KINDS)
def test_the_end_of_text_token_ends_a_text_of_llama_cpp(tmp_path: Path, kind: str) -> None:
    model = model_of(tmp_path / "model", kind)
    end = model.tokenizer.end_of_text
    with torch.no_grad():  # makes the token the most likely one everywhere
        model.model.transformer.ln_f.bias += 9 * model.model.transformer.wte.weight[end]
    assert greedy_ids(model, LINE, 9) == [end]
    with llama(model, tmp_path) as server:
        answer = server.post("/completion", prompt=LINE, n_predict=9, temperature=0)
    assert (answer["content"], answer["stop_type"]) == ("", "eos")


def test_a_word_tokenizer_has_no_equal_in_llama_cpp(tmp_path: Path) -> None:
    model = model_of(tmp_path / "model", "word:400")
    with pytest.raises(OctavoError, match="splits text"):
        octavo.convert(model, "gguf", tmp_path / "word.gguf")
    assert not list(tmp_path.glob("*gguf*"))


def test_a_model_with_the_exact_gelu_is_written_with_a_notice(tmp_path: Path) -> None:
    model = model_of(tmp_path / "model", "char", activation="gelu")
    [notice] = octavo.convert(model, "gguf", tmp_path / "char.gguf").notices
    assert "GELU" in notice


# CTranslate2


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
@pytest.mark.parametrize("kind", KINDS)
def test_ctranslate2_gives_the_same_probabilities_and_ids(
    tmp_path: Path, kind: str, activation: str, bias: bool
) -> None:
    model = model_of(tmp_path / "model", kind, bias, activation=activation)
    ids = model.tokenizer.encode(LINE).tolist()
    tokens = [model.tokenizer.backend.id_to_token(id) for id in ids]
    folder = octavo.convert(model, "ctranslate2", tmp_path / "ct2").out
    generator = ctranslate2.Generator(str(folder), intra_threads=1)
    probabilities = np.array(generator.forward_batch([tokens], return_log_probs=True))[0]
    np.testing.assert_allclose(probabilities, log_probabilities(model, ids), atol=1e-4)
    [result] = generator.generate_batch(
        [tokens], max_length=20, sampling_topk=1, include_prompt_in_result=False, return_end_token=True
    )
    assert result.sequences_ids[0] == greedy_ids(model, LINE, 20)


@pytest.mark.parametrize("kind", KINDS)
def test_ctranslate2s_own_converter_reads_a_checkpoint(tmp_path: Path, kind: str) -> None:
    model = model_of(tmp_path / "model", kind)
    ids = model.tokenizer.encode(LINE).tolist()
    tokens = [model.tokenizer.backend.id_to_token(id) for id in ids]
    ctranslate2.converters.TransformersConverter(str(model.folder)).convert(str(tmp_path / "ct2"))
    generator = ctranslate2.Generator(str(tmp_path / "ct2"), intra_threads=1)
    probabilities = np.array(generator.forward_batch([tokens], return_log_probs=True))[0]
    np.testing.assert_allclose(probabilities, log_probabilities(model, ids), atol=1e-4)


def test_ctranslate2_int8_changes_the_loss_by_less_than_0_02(tmp_path: Path) -> None:
    model = model_of(tmp_path / "model", "bpe:400")
    ids = model.tokenizer.encode(TEXT).tolist()
    tokens = [model.tokenizer.backend.id_to_token(id) for id in ids]
    folder = octavo.convert(model, "ctranslate2", tmp_path / "ct2", "int8").out
    generator = ctranslate2.Generator(str(folder), compute_type="int8", intra_threads=1)
    probabilities = np.array(generator.forward_batch([tokens], return_log_probs=True))[0]
    targets = np.array(ids[1:])[:, None]
    losses = [
        -np.take_along_axis(each[:-1], targets, 1).mean() for each in (probabilities, log_probabilities(model, ids))
    ]
    assert losses[0] == pytest.approx(losses[1], abs=0.02)


def test_ctranslate2_gets_the_tokens_that_begin_and_end_a_text(tmp_path: Path) -> None:
    model = model_of(tmp_path / "model", "bpe:400")
    model.tokenizer.beginning_of_text, model.tokenizer.end_of_text = 65, 66
    folder = octavo.convert(model, "ctranslate2", tmp_path / "ct2").out
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    names = [model.tokenizer.backend.id_to_token(id) for id in (65, 66)]
    assert [config["bos_token"], config["eos_token"]] == names


# nanoGPT


@pytest.mark.parametrize("bias", [True, False])
def test_a_nanogpt_checkpoint_has_its_names_and_only_plain_values(tmp_path: Path, bias: bool) -> None:
    """`bench/interop_nanogpt.py` runs nanoGPT's own code on such a checkpoint."""
    model = model_of(tmp_path / "model", "char", bias, activation="gelu")
    result = octavo.convert(model, "nanogpt", tmp_path / "out")
    content = torch.load(result.out / "ckpt.pt", weights_only=True)
    assert content["model_args"] == {"vocab_size": model.settings.vocab_size, "bias": bias, "dropout": 0.0} | SHAPE
    assert content["model"].keys() == model.model.state_dict().keys()
    for name, value in model.model.state_dict().items():
        torch.testing.assert_close(content["model"][name], value, rtol=0, atol=0)
    meta = pickle.loads((result.out / "meta.pkl").read_bytes())
    assert [meta["stoi"][character] for character in LINE] == model.tokenizer.encode(LINE).tolist()
    assert len(result.notices) == 1
    assert "meta.pkl" in result.notices[0]


def test_nanogpt_has_no_tokenizer_for_words(tmp_path: Path) -> None:
    result = octavo.convert(model_of(tmp_path / "model", "word:400"), "nanogpt", tmp_path / "out")
    assert any("word" in notice for notice in result.notices)
    assert any("GELU" in notice for notice in result.notices)
    assert not (tmp_path / "out" / "meta.pkl").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on file size")
def test_a_disk_that_is_full_while_a_nanogpt_checkpoint_is_written_is_an_error(tmp_path: Path) -> None:
    model = model_of(tmp_path / "model", "char")
    with file_size_limit(10_000), pytest.raises(MachineError, match="disk is full"):
        octavo.convert(model, "nanogpt", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# Every format


QUICK_FORMATS = [name for name in FORMATS if name != "onnx"]  # it takes seconds, and has a separate test below


@pytest.mark.parametrize(
    ("format", "precision"), [(name, precision) for name in QUICK_FORMATS for precision in FORMATS[name].precisions]
)
def test_convert_does_not_change_the_model(tmp_path: Path, format: str, precision: str) -> None:
    model = model_of(tmp_path / "model", "bpe:400")
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    octavo.convert(model, format, tmp_path / "out", precision)
    for name, value in model.model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("format", QUICK_FORMATS)
def test_convert_reports_what_it_wrote(run_folder: Path, run_command: RunCommand, format: str) -> None:
    result = run_command("convert", run_folder, "out", "--to", format, "--json")
    assert result.code == 0
    assert result.json["out"] == "out"
    assert result.json["bytes"] > 1000
    assert Path("out").exists()


def test_mistakes_are_answered_and_nothing_is_written(run_folder: Path, assert_rejected: AssertRejected) -> None:
    Path("taken").mkdir()
    Path("file").write_text("mine", encoding="utf-8")
    assert_rejected(["convert", run_folder, "taken", "--to", "gguf"], "taken")
    assert_rejected(["convert", run_folder, "file", "--to", "nanogpt"], "file")
    assert_rejected(["convert", run_folder, "new", "--to", "onyx"], "onyx", "gguf")
    assert_rejected(["convert", run_folder, "new", "--to", "nanogpt", "--precision", "int8"], "int8", "fp32")
    assert_rejected(["convert", "nothing", "new", "--to", "gguf"], "nothing")
    for format in FORMATS:
        assert_rejected(["convert", run_folder, "missing/out", "--to", format], "no folder missing")


@pytest.mark.parametrize("format", [name for name, format in FORMATS.items() if format.package])
def test_a_missing_package_is_named_with_its_extra(
    run_folder: Path, assert_rejected: AssertRejected, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert_rejected(["convert", run_folder, "new", "--to", format], f"[{format}]")


# The Hugging Face hub


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_for_the_hub_round_trips_bit_for_bit(tmp_path: Path, kind: str, bias: bool) -> None:
    model = model_of(tmp_path / "model", kind, bias, activation="gelu", vocab_size=512)
    folder = octavo.convert(model, "hf", tmp_path / "out").out
    written = {path.name for path in folder.iterdir()}
    assert written == {path.name for path in model.folder.iterdir()} - {"octavo.json", "manifest.json"} | {"README.md"}
    loaded = octavo.load(folder)
    assert loaded.tokenizer.encode(TEXT).tolist() == model.tokenizer.encode(TEXT).tolist()
    assert (loaded.settings.activation, loaded.settings.block_size) == ("gelu", SHAPE["block_size"])
    weights = loaded.model.state_dict()
    for name, value in model.model.state_dict().items():
        assert torch.equal(weights[name], value)
    assert not bias or weights.keys() == model.model.state_dict().keys()


def test_the_model_card_says_what_the_run_recorded(run_folder: Path) -> None:
    folder = octavo.convert(run_folder, "hf", "my model").out
    text = (folder / "README.md").read_text(encoding="utf-8")
    card = huggingface_hub.ModelCard(text)
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-generation")
    assert card.data.license is None
    assert card.data.tags == ["gpt2", "octavo"]
    info, settings = octavo.load(run_folder).info, octavo.Run(run_folder).settings
    for value in (" kB |", f"{info['val_loss']:.4f}", f"{info['train_loss']:.4f}", f"{info['bits_per_byte']:.4f}"):
        assert value in text
    [toml] = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    Path("card.toml").write_text(toml, encoding="utf-8")
    assert octavo.settings.resolve(config="card.toml", source=settings.source) == settings
    assert settings.source not in text  # a path of this machine
    [use] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    compile(use, "README.md", "exec")


def test_the_card_of_a_model_that_octavo_did_not_train_claims_nothing(tmp_path: Path) -> None:
    folder = octavo.convert(model_of(tmp_path / "model", "char"), "hf", tmp_path / "first").out
    again = octavo.convert(folder, "hf", tmp_path / "second").out
    assert "does not record its training" in (again / "README.md").read_text(encoding="utf-8")


# ONNX


def test_onnx_runtime_gives_the_same_logits_with_and_without_a_cache(tmp_path: Path) -> None:
    model = model_of(tmp_path / "model", "bpe:300", n_layer=1, n_embd=16)
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    folder = octavo.convert(model, "onnx", tmp_path / "out").out
    assert all(torch.equal(value, before[name]) for name, value in model.model.state_dict().items())
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    names = ["past_key_values.0.key", "past_key_values.0.value"]
    for batch, cached, new in ((1, 0, 1), (1, 0, 7), (2, 5, 1), (3, 9, 4), (1, SHAPE["block_size"] - 1, 1)):
        ids = torch.randint(0, 300, (batch, cached + new), generator=torch.Generator().manual_seed(new))
        past = dict.fromkeys(names, np.zeros((batch, SHAPE["n_head"], 0, 8), np.float32))
        if cached:
            past = dict(zip(names, session.run(None, {"input_ids": ids[:, :cached].numpy()} | past)[1:], strict=True))
        logits = session.run(["logits"], {"input_ids": ids[:, cached:].numpy()} | past)[0]
        with torch.no_grad():
            np.testing.assert_allclose(logits, model.model(ids)[:, cached:], atol=1e-5)
    assert octavo.tokenizers.load(folder).encode(TEXT).tolist() == model.tokenizer.encode(TEXT).tolist()


# Round trips


@pytest.mark.parametrize("bias", [True, False])
def test_nanogpts_format_round_trips_bit_for_bit(tmp_path: Path, bias: bool) -> None:
    model = model_of(tmp_path / "model", "char", bias, activation="gelu", n_embd=16)
    loaded = octavo.load(octavo.convert(model, "nanogpt", tmp_path / "out").out)
    assert loaded.tokenizer.encode(LINE).tolist() == model.tokenizer.encode(LINE).tolist()
    assert loaded.settings.bias == bias
    weights = loaded.model.state_dict()
    assert weights.keys() == model.model.state_dict().keys()
    for name, value in model.model.state_dict().items():
        assert torch.equal(weights[name], value)
