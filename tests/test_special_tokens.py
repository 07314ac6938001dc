"""Special tokens keep their ids and names; only eos ends a text; `special_tokens` encodes their text as the token."""

import contextlib
import dataclasses
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import octavo
from octavo import checkpoint, tokenizers
from octavo.checkpoint import Checkpoint
from octavo.data.chunks import number_documents
from octavo.data.dataset import open_dataset
from octavo.data.encoder import Encoder
from octavo.data.limits import Limits
from octavo.data.prepare import prepare, prepare_dataset
from octavo.errors import OctavoError, OctavoWarning
from octavo.generation.prompt import encode_prompt
from octavo.settings import DataSettings, Settings
from octavo.tokenizers import END_OF_TEXT, Tokenizer
from octavo.tokenizers.bytelevel import LETTER_TO_BYTE
from small_models import BPE, CHARS, spread_model, without_end_of_text
from small_runs import RECIPE, TEXT

NAMED = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "<pad>",
    "additional_special_tokens": ["<speaker1>", "<speaker2>"],
}
TOKENS = ["<s>", "</s>", "<pad>", "<speaker1>", "<speaker2>"]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def folder_with_special_tokens(folder: Path) -> Path:
    """A model folder as transformers writes it, with other special tokens than GPT-2."""
    BPE.save(folder)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    theirs.add_special_tokens(dict(NAMED))
    theirs.add_tokens(["ordinary"])
    theirs.save_pretrained(folder)
    tokenizer = tokenizers.load(folder)
    model = spread_model(vocab_size=tokenizer.vocab_size, block_size=16)
    checkpoint.save(folder / "model", model, tokenizer, Settings(vocab_size=tokenizer.vocab_size), {})
    for name in ("config.json", "model.safetensors"):
        (folder / "model" / name).rename(folder / name)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_with_special_tokens(tmp_path_factory.mktemp("source"))


def special_tokens_of(folder: Path) -> dict[str, Any]:
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    named = {name: getattr(theirs, name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    return named | {"special": sorted(theirs.all_special_tokens), "size": len(theirs)}


def test_a_loaded_and_saved_tokenizer_has_the_tokens_and_names_of_its_folder(source: Path, tmp_path: Path) -> None:
    tokenizer = tokenizers.load(source)
    assert tokenizer.vocab_size == BPE.vocab_size + 6
    assert tokenizer.special_token_id("eos_token") == tokenizer.end_of_text
    assert tokenizer.special_token_id("unk_token") is None
    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    assert special_tokens_of(tmp_path) == special_tokens_of(source)
    assert special_tokens_of(source)["eos_token"] == "</s>"
    assert tokenizers.load(tmp_path).special_tokens_map == tokenizer.special_tokens_map
    assert tokenizers.load(tmp_path).fingerprint == tokenizer.fingerprint


def test_special_tokens_and_names_survive_fine_tuning(source: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    settings = RECIPE | {"max_steps": 1, "eval_every": 1, "keep_checkpoints": 0}
    run = octavo.train(tmp_path / "text.txt", init=source, out=tmp_path / "run", **settings)
    assert run.last is not None
    assert special_tokens_of(run.last) == special_tokens_of(source)
    tokenizer = tokenizers.load(source)
    for name in ("config.json", "generation_config.json"):
        config = read(run.last / name)
        ids = [tokenizer.special_token_id(name) for name in ("bos_token", "eos_token", "pad_token")]
        assert [config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]] == ids


def test_an_old_folder_has_its_added_tokens(source: Path, tmp_path: Path) -> None:
    description = read(source / "tokenizer.json")
    vocabulary = dict(description["model"]["vocab"])
    added = {token["content"]: token["id"] for token in description["added_tokens"]}
    write(tmp_path / "vocab.json", vocabulary | {END_OF_TEXT: added.pop(END_OF_TEXT)})
    merges = "\n".join(" ".join(pair) for pair in description["model"]["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    write(tmp_path / "added_tokens.json", added)
    write(tmp_path / "special_tokens_map.json", NAMED | {"pad_token": {"content": "<pad>", "lstrip": False}})
    tokenizer, expected = tokenizers.load(tmp_path), tokenizers.load(source)
    assert tokenizer.token_bytes == expected.token_bytes
    assert tokenizer.special_ids == expected.special_ids
    assert tokenizer.special_tokens_map == NAMED
    text = "<speaker1>the cat ordinary </s>"
    assert tokenizer.encode(text).tolist() == expected.encode(text).tolist()
    assert expected.encode("ordinary").tolist() == [added["ordinary"]]


def test_an_old_folder_has_the_special_tokens_of_its_vocabulary(tmp_path: Path) -> None:
    """`vocab.json` does not say which of its tokens are special: only their names do. One of them has id 0."""
    vocabulary = {token: id for id, token in enumerate(["<s>", "</s>", "<speaker1>", *LETTER_TO_BYTE])}
    write(tmp_path / "vocab.json", vocabulary)
    (tmp_path / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    named = {"bos_token": "<s>", "eos_token": "</s>", "additional_special_tokens": ["<speaker1>"]}
    write(tmp_path / "special_tokens_map.json", named)
    tokenizer = tokenizers.load(tmp_path)
    assert tokenizer.special_ids == {0, 1, 2}
    assert tokenizer.encode("<speaker1></s><s>", special_tokens=True).tolist() == [2, 1, 0]


def test_an_added_token_with_another_id_than_listed_is_an_error(tmp_path: Path) -> None:
    BPE.save(tmp_path)
    write(tmp_path / "added_tokens.json", {"<new>": BPE.vocab_size + 5})
    with pytest.raises(OctavoError, match="'<new>' has id"):
        tokenizers.load(tmp_path)


@pytest.mark.parametrize(
    "name", ["added_tokens.json", "tokenizer_config.json", "special_tokens_map.json", "config.json"]
)
@pytest.mark.parametrize("content", ["", "[]", "{", '{"added_tokens_decoder": 5, "x": "y"}', "[" * 100_000])
def test_a_damaged_file_is_an_error_or_ignored(name: str, content: str, tmp_path: Path) -> None:
    BPE.save(tmp_path)
    (tmp_path / name).write_text(content, encoding="utf-8")
    with contextlib.suppress(OctavoError):
        tokenizers.load(tmp_path)


def test_the_models_own_config_names_eos_if_the_tokenizer_does_not(tmp_path: Path) -> None:
    BPE.backend.save(str(tmp_path / "tokenizer.json"))
    description = read(tmp_path / "tokenizer.json")
    description["added_tokens"].append({**description["added_tokens"][0], "content": "</s>", "id": BPE.vocab_size})
    write(tmp_path / "tokenizer.json", description)
    write(tmp_path / "config.json", {"eos_token_id": BPE.vocab_size, "bos_token_id": 5, "pad_token_id": 10**9})
    tokenizer = tokenizers.load(tmp_path)
    assert tokenizer.special_tokens_map == {"eos_token": "</s>"}  # id 5 is ordinary text, and there is no token 10**9
    write(tmp_path / "config.json", {"eos_token_id": [1, 2]})
    assert tokenizers.load(tmp_path).end_of_text == BPE.end_of_text


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("kind", ["char", "byte", "word:300", "bpe:300", "char of an earlier version"])
def test_a_folder_to_which_transformers_added_a_pad_token_loads(kind: str, version: int, tmp_path: Path) -> None:
    tokenizer = tokenizers.build(kind.partition(" of ")[0], TEXT)
    if "earlier" in kind:
        tokenizer = without_end_of_text(tokenizer)
    model = spread_model(vocab_size=tokenizer.vocab_size, block_size=16)
    checkpoint.save(tmp_path / "ours", model, tokenizer, Settings(**dataclasses.asdict(model.settings)), {})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    their_model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    theirs.add_special_tokens({"pad_token": "<pad>"})
    their_model.resize_token_embeddings(len(theirs), mean_resizing=False)
    for each in (theirs, their_model):
        each.save_pretrained(tmp_path / "theirs")
    if version == 4:  # it lists the added tokens in a second file, with their ids as text
        added = read(tmp_path / "theirs" / "tokenizer.json")["added_tokens"]
        path = tmp_path / "theirs" / "tokenizer_config.json"
        write(path, read(path) | {"added_tokens_decoder": {str(token.pop("id")): token for token in added}})
    loaded = octavo.load(tmp_path / "theirs")
    assert loaded.tokenizer.kind == tokenizer.kind
    assert loaded.tokenizer.vocab_size == loaded.settings.vocab_size == tokenizer.vocab_size + 1
    assert loaded.tokenizer.special_token_id("pad_token") == tokenizer.vocab_size
    assert loaded.tokenizer.special_token_id("eos_token") == tokenizer.end_of_text
    assert loaded.tokenizer.beginning_of_text == tokenizer.beginning_of_text
    assert loaded.tokenizer.encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()
    octavo.generate(loaded, max_new_tokens=3)


# Generation


def checkpoint_that_writes(tokenizer: Tokenizer, *ids: int) -> Checkpoint:
    """A checkpoint whose greedy text is these tokens in turn: its position embedding alone chooses the next one."""
    model = spread_model(vocab_size=tokenizer.vocab_size, n_embd=len(ids), n_head=1, n_layer=1, block_size=64)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if name.endswith("ln_f.weight") else 0.0)
        model.transformer.wpe.weight[:] = torch.eye(len(ids)).repeat(64, 1)[:64]
        model.transformer.wte.weight[list(ids)] = torch.eye(len(ids)) * 1e-3
    return Checkpoint(model, tokenizer, model.settings, {}, Path("nowhere"))


def test_only_eos_ends_a_text(source: Path) -> None:
    tokenizer = tokenizers.load(source)
    speaker, pad, eos = (tokenizer.backend.token_to_id(token) for token in ("<speaker1>", "<pad>", "</s>"))
    the = int(tokenizer.encode("the")[0])
    loaded = checkpoint_that_writes(tokenizer, speaker, the, pad, eos)
    sample = octavo.generate(loaded, [], max_new_tokens=20, temperature=0)[0]
    assert sample.finish_reason == "end_of_text"
    assert sample.text == tokenizer.decode(sample.token_ids)
    assert set(sample.token_ids) == {speaker, the, pad}
    stopped = octavo.generate(loaded, [], max_new_tokens=20, temperature=0, stop="<pad>")[0]
    assert stopped.finish_reason == "stop"


def test_an_empty_prompt_starts_after_bos(source: Path) -> None:
    tokenizer = tokenizers.load(source)
    assert encode_prompt(tokenizer, "").ids == [tokenizer.special_token_id("bos_token")]


# Special tokens in text

TEXTS = st.lists(st.sampled_from(["the cat", " ", "\n", "<", "|>", "sat", "a", *TOKENS, END_OF_TEXT])).map("".join)


@pytest.fixture(scope="module")
def loaded_by_both(source: Path) -> tuple[Tokenizer, Any]:
    return tokenizers.load(source), transformers.AutoTokenizer.from_pretrained(source)


@settings(max_examples=100, deadline=None)
@given(text=TEXTS)
def test_special_tokens_in_a_text_have_the_ids_of_transformers(
    loaded_by_both: tuple[Tokenizer, Any], text: str
) -> None:
    tokenizer, theirs = loaded_by_both
    expected = theirs(text, add_special_tokens=False, split_special_tokens=False)["input_ids"]
    assert tokenizer.encode(text, special_tokens=True).tolist() == expected
    assert tokenizer.decode(expected) == text
    assert Encoder(tokenizer, special_tokens=True).encode(text.encode()).tolist() == expected
    assert not set(tokenizer.encode(text).tolist()) & tokenizer.special_ids


def test_special_tokens_in_a_text_of_a_bpe_that_octavo_trained() -> None:
    text = "the cat<|endoftext|>sat\n<|endoftext|>\non the mat <|endoftext|>"
    parts = text.split(END_OF_TEXT)
    expected = BPE.encode(parts[0]).tolist()
    for part in parts[1:]:
        expected += [BPE.end_of_text, *BPE.encode(part).tolist()]
    assert BPE.encode(text, special_tokens=True).tolist() == expected
    assert Encoder(BPE, special_tokens=True).encode(text.encode()).tolist() == expected
    assert encode_prompt(BPE, text, special_tokens=True).ids == expected
    assert BPE.end_of_text not in encode_prompt(BPE, text).ids
    assert BPE.end_of_text not in Encoder(BPE).encode(text.encode())


def test_a_tokenizer_without_special_tokens_refuses_to_encode_them() -> None:
    with pytest.raises(OctavoError, match="no special tokens"):
        CHARS.encode("a", special_tokens=True)
    with pytest.raises(OctavoError, match="no special tokens"):
        Encoder(CHARS, special_tokens=True)


@pytest.mark.parametrize("processes", [1, 2])
def test_prepared_text_has_special_tokens_if_they_are_asked_for(
    processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "cache"))
    text = "one two<|endoftext|>three\n" * 20
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    limits = Limits(single_process_characters=1 << 30 if processes == 1 else 1)
    datasets = {}
    for special_tokens in (False, True):
        data_settings = DataSettings(
            source=str(tmp_path / "text.txt"), tokenizer="bpe:300", special_tokens=special_tokens
        )
        if special_tokens:
            data = prepare_dataset(data_settings, limits=limits).result
        else:
            with pytest.warns(OctavoWarning, match=r"20 times within its text.*--special-tokens"):
                data = prepare_dataset(data_settings, limits=limits).result
        datasets[special_tokens] = data
        ids = np.concatenate([np.asarray(data.tokens[split]) for split in ("train", "val")])
        assert data.tokenizer.decode(ids) == text
        assert (ids == data.tokenizer.end_of_text).sum() == 20 * special_tokens
    assert datasets[True].fingerprint != datasets[False].fingerprint
    assert b"endof" in b"".join(datasets[False].tokenizer.token_bytes[:-1])
    assert b"endof" not in b"".join(datasets[True].tokenizer.token_bytes[:-1])


def test_special_tokens_of_a_prepared_text_must_have_been_asked_for_when_it_was_prepared(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("one two three\n" * 20, encoding="utf-8")
    for special_tokens in (False, True):
        folder = tmp_path / str(special_tokens)
        prepare(tmp_path / "text.txt", folder, tokenizer="bpe:300", special_tokens=special_tokens)
    asked_for = DataSettings(source=str(tmp_path / "True"), special_tokens=True)
    assert prepare_dataset(asked_for).result.folder == tmp_path / "True"
    with pytest.raises(OctavoError, match="prepared without special tokens"):
        list(prepare_dataset(dataclasses.replace(asked_for, source=str(tmp_path / "False"))))


def test_a_text_with_special_tokens_starts_after_them_in_every_kind(tmp_path: Path) -> None:
    text = "one<|endoftext|>two\n" * 20
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    for spec in ("auto", "char", "byte", "word"):
        data = prepare(tmp_path / "text.txt", tmp_path / spec, tokenizer=spec, special_tokens=True)
        ids = np.concatenate([np.asarray(data.tokens[split]) for split in ("train", "val")])
        assert (ids == data.tokenizer.end_of_text).sum() == 20
        assert data.tokenizer.decode(ids) == text
        assert encode_prompt(data.tokenizer, "").ids == [data.tokenizer.end_of_text]


# Files of stories


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_lines_of_end_of_text_separate_documents(newline: str, tmp_path: Path) -> None:
    stories = ["One.\nTwo.\n", "Three <|endoftext|> inside.\n", "Four.\n"]
    text = "<|endoftext|>\n".join(stories).replace("\n", newline) + "<|endoftext|>"
    (tmp_path / "stories.txt").write_bytes(text.encode())
    with pytest.warns(OctavoWarning) as warnings:
        data = prepare(tmp_path / "stories.txt", tmp_path / "tokens", tokenizer="bpe:300")
    assert "3 documents" in str(warnings[0].message)
    assert "1 times within" in str(warnings[1].message)
    assert data.info["text"]["documents"] == 3
    assert data.info["text"]["bytes"] == len("".join(stories).replace("\n", newline).encode())
    ids = [int(id) for split in ("train", "val") for id in np.asarray(open_dataset(data.folder).tokens[split])]
    assert ids.count(data.tokenizer.end_of_text) == 3


LINES = st.lists(st.sampled_from(["<|endoftext|>", "<|endo", "ftext|>", "\n", "\r\n", "\r", "a", " "]), max_size=20)


@settings(max_examples=300, deadline=None)
@given(pieces=LINES, cuts=st.lists(st.integers(0, 60)))
def test_documents_do_not_depend_on_how_a_text_is_read(pieces: list[str], cuts: list[int]) -> None:
    text = "".join(pieces)
    ends = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    blocks = [text[start:end] for start, end in itertools.pairwise(ends)]
    documents: dict[int, str] = {}
    for number, part in number_documents(blocks):
        documents[number] = documents.get(number, "") + part
    expected = [""]
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):
        if line.removesuffix("\n").removesuffix("\r") == "<|endoftext|>":
            expected.append("")
        else:
            expected[-1] += line
    assert list(documents.values()) == expected
