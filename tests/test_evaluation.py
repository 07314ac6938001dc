"""Evaluation is exact: every token is predicted once, and the results match a plain float64 computation."""

import functools
import json
import math
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from torch import nn

import octavo
from octavo import evaluation, tokenizers
from octavo.checkpoint import Checkpoint
from octavo.data.limits import Limits
from octavo.data.prepare import encode_corpus, prepare
from octavo.errors import OctavoError
from octavo.evaluation import count_bytes, evaluate, evaluate_tokens
from octavo.loss import next_token_loss, sequence_batches, split_loss
from octavo.model import GPT
from octavo.progress import PreparationProgress, listen
from octavo.runs import Run
from octavo.settings import DataSettings, ModelSettings
from octavo.tokenizers import Tokenizer
from reference import gpt2
from small_models import BYTES

TEXT = "Die Katze saß auf der Matte; كتاب, किताब, 🦉!\nthe cat sat on the mat, and the rat sat on the hat.\n" * 12
SMALL = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 8, "vocab_size": 13}
law = hypothesis.settings(derandomize=True, deadline=None, max_examples=30)


def spread_out_model(**shape: Any) -> GPT:
    """A model with weights so large that its loss differs from token to token."""
    model = GPT(ModelSettings(**SMALL | shape)).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        mean = 1.0 if ".ln_" in name and name.endswith("weight") else 0.0
        nn.init.normal_(parameter, mean, 0.3, generator=generator)
    return model


def ids(length: int, vocab_size: int = 13, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(vocab_size, size=length).astype(np.uint16)


def plain_losses(model: GPT, tokens: np.ndarray, block_size: int) -> list[float]:
    """The loss of every token but the first, one by one, in float64: -log of its softmax."""
    weights = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
    text = torch.from_numpy(tokens.astype(np.int64))
    losses = []
    for start in range(0, len(text) - 1, block_size):
        inputs = text[start : start + block_size]
        for logits, target in zip(gpt2(weights, model.settings, inputs), text[start + 1 :], strict=False):
            losses.append((logits.exp().sum().log() - logits[target]).item())
    assert len(losses) == len(tokens) - 1
    return losses


# The loss


@law
@hypothesis.given(length=st.integers(2, 40), block_size=st.integers(1, 8))
@hypothesis.example(length=9, block_size=8)  # exactly one sequence
@hypothesis.example(length=10, block_size=8)  # one sequence and one token
@hypothesis.example(length=2, block_size=8)
def test_split_loss_is_the_mean_of_plain_losses_over_consecutive_sequences(length: int, block_size: int) -> None:
    model, tokens = spread_out_model(), ids(length)
    losses = plain_losses(model, tokens, block_size)
    assert split_loss(model, tokens, block_size) == pytest.approx(sum(losses) / len(losses), abs=1e-5)


@law
@hypothesis.given(
    length=st.integers(0, 300),
    block_size=st.integers(1, 70),
    tokens_per_batch=st.sampled_from([1, 10, 64, 4096]),
)
def test_sequences_predict_every_token_but_the_first_once(length: int, block_size: int, tokens_per_batch: int) -> None:
    tokens = np.arange(length, dtype=np.uint16)  # each token is its own position
    targets = []
    for batch in sequence_batches(tokens, block_size, tokens_per_batch):
        assert batch.dtype == np.int64
        assert batch.shape[1] == block_size + 1 or (len(batch) == 1 and 2 <= batch.shape[1] <= block_size)
        assert len(batch) == 1 or batch[:, 1:].size <= tokens_per_batch
        assert (np.diff(batch) == 1).all()
        assert (batch[:, 0] % block_size == 0).all()
        targets.extend(batch[:, 1:].flatten().tolist())
    assert targets == list(range(1, length))


def test_tokens_per_batch_does_not_change_the_loss() -> None:
    model, tokens = spread_out_model(), ids(200)
    expected = split_loss(model, tokens, 8)
    for rows in (8, 4, 1):
        assert split_loss(model, tokens, 8, tokens_per_batch=8 * rows) == pytest.approx(expected, abs=1e-6)


def test_a_memory_mapped_split_has_the_same_loss_as_one_in_memory(tmp_path: Path) -> None:
    np.save(tmp_path / "val.npy", ids(50))
    mapped = np.load(tmp_path / "val.npy", mmap_mode="r")
    assert split_loss(spread_out_model(), mapped, 8) == split_loss(spread_out_model(), ids(50), 8)


@pytest.mark.parametrize("vocab_size", [2, 13, 50257])
def test_a_model_with_equal_logits_has_the_log_of_its_vocabulary_as_loss(vocab_size: int) -> None:
    model = spread_out_model(vocab_size=vocab_size)
    nn.init.zeros_(model.transformer.wte.weight)  # tied: every logit is zero
    assert split_loss(model, ids(100, vocab_size), 8) == pytest.approx(math.log(vocab_size), rel=1e-6)


def test_evaluation_uses_no_dropout_and_does_not_change_the_model() -> None:
    model = spread_out_model(dropout=0.5, attention_dropout=0.5)
    expected = split_loss(model, ids(50), 8)
    assert not model.training
    assert split_loss(model.train(), ids(50), 8) == expected
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_loss_of_a_batch_is_a_sum_in_float32() -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[0, 1, 2], [3, 4, 0]])
    expected = -sum(logits.double().log_softmax(-1)[b, t, targets[b, t]] for b in range(2) for t in range(3))
    assert next_token_loss(logits, targets).item() == pytest.approx(expected.item(), abs=1e-5)
    half = next_token_loss(logits.bfloat16(), targets)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(next_token_loss(logits.bfloat16().float(), targets).item(), abs=1e-6)


# Results


KINDS = ["char", "byte", "word", "bpe:300"]


@pytest.mark.parametrize("kind", KINDS)
def test_loss_perplexity_and_bits_per_byte_match_a_plain_computation(kind: str) -> None:
    tokenizer = tokenizers.build(kind, TEXT)
    tokens = tokenizer.encode(TEXT)[:60]
    model = spread_out_model(vocab_size=tokenizer.vocab_size)
    losses = plain_losses(model, tokens, 8)
    size = len(b"".join(tokenizer.token_bytes[id] for id in tokens[1:]))
    result = evaluate_tokens(model, tokenizer, tokens)
    assert result.loss == pytest.approx(sum(losses) / 59, abs=1e-5)
    assert result.perplexity == pytest.approx(math.exp(sum(losses) / 59), rel=1e-5)
    assert result.bits_per_byte == pytest.approx(sum(losses) / math.log(2) / size, rel=1e-5)
    assert (result.tokens, result.bytes, result.block_size) == (59, size, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_the_counted_bytes_are_those_of_the_text(kind: str) -> None:
    tokenizer = tokenizers.build(kind, TEXT)
    tokens = tokenizer.encode(TEXT)
    assert count_bytes(tokenizer, tokens) == len(TEXT.encode()) > len(TEXT)
    first = len(tokenizer.token_bytes[tokens[0]])
    assert (
        evaluate_tokens(spread_out_model(vocab_size=tokenizer.vocab_size), tokenizer, tokens).bytes
        == len(TEXT.encode()) - first
    )


def test_a_byte_model_with_equal_logits_needs_eight_bits_per_byte() -> None:
    tokenizer = BYTES
    model = spread_out_model(vocab_size=256)
    nn.init.zeros_(model.transformer.wte.weight)
    result = evaluate_tokens(model, tokenizer, tokenizer.encode(TEXT))
    assert result.bits_per_byte == pytest.approx(8, rel=1e-6)
    assert result.perplexity == pytest.approx(256, rel=1e-5)


def test_block_size_may_be_smaller_than_the_models_but_not_larger() -> None:
    tokenizer = BYTES
    model, tokens = spread_out_model(vocab_size=256), tokenizer.encode(TEXT)
    for block_size, expected in ((None, 8), (3, 3), (8, 8)):
        result = evaluate_tokens(model, tokenizer, tokens, block_size)
        assert result.block_size == expected
        assert result.loss == pytest.approx(split_loss(model, tokens, expected), abs=1e-9)
    with pytest.raises(OctavoError, match="block_size=9"):
        evaluate_tokens(model, tokenizer, tokens, 9)


@pytest.mark.parametrize("block_size", [0, -1, -8])
def test_a_block_size_below_one_is_an_error(block_size: int) -> None:
    tokenizer = BYTES
    with pytest.raises(OctavoError, match=f"block_size={block_size}:"):
        evaluate_tokens(spread_out_model(vocab_size=256), tokenizer, tokenizer.encode(TEXT), block_size)


@pytest.mark.parametrize(("length", "count"), [(0, "0 tokens"), (1, "1 token")])
def test_a_text_of_fewer_than_two_tokens_is_an_error(length: int, count: str) -> None:
    with pytest.raises(OctavoError, match=f"the text has {count}:"):
        evaluate_tokens(spread_out_model(), tokenizers.build("char", "abc"), ids(length))


def test_a_token_id_outside_the_vocabulary_is_an_error() -> None:
    with pytest.raises(OctavoError, match="id 13"):
        evaluate_tokens(spread_out_model(), tokenizers.build("char", "abc"), np.array([0, 13, 1]))


def test_perplexity_stays_finite_when_the_exponential_overflows() -> None:
    tokenizer = BYTES
    model = spread_out_model(vocab_size=256)
    model.transformer.wte.weight.data *= 1e4
    result = evaluate_tokens(model, tokenizer, tokenizer.encode(TEXT))
    assert result.loss > 710  # the exponential is above float64
    assert math.isfinite(result.perplexity)


def test_weights_that_are_not_finite_are_an_error() -> None:
    model = spread_out_model()
    model.transformer.ln_f.weight.data[0] = math.nan
    with pytest.raises(OctavoError, match="weights are broken"):
        evaluate_tokens(model, tokenizers.build("char", "abc"), ids(50, 3))


# Runs and sources


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of a few steps on a small text, which is stored next to it."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:  # do not write into the cache that the tests share
        patch.setenv("OCTAVO_CACHE", str(folder / "cache"))
        return octavo.train(
            folder / "text.txt",
            out=folder / "run",
            tokenizer="bpe:300",
            n_layer=1,
            n_head=2,
            n_embd=16,
            block_size=8,
            batch_size=4,
            max_steps=6,
            eval_every=3,
            sample_every=0,
            val_fraction=0.2,
            keep_checkpoints=0,
            warmup_steps=1,
            device="cpu",
            precision="fp32",
            compile="off",
        )


@pytest.fixture
def loaded(trained: Run) -> Checkpoint:
    return octavo.load(trained.folder)


def text_of(run: Run) -> Path:
    return run.folder.parent / "text.txt"


def val_text() -> str:
    return TEXT[int(len(TEXT) * 0.8) :]


def test_the_validation_split_gives_the_loss_that_training_logged(trained: Run, loaded: Checkpoint) -> None:
    result = evaluate(loaded)
    assert result == evaluate(trained) == evaluate(trained.folder) == evaluate(str(trained.folder))
    assert result.loss == loaded.info["val_loss"]
    assert result.bits_per_byte == pytest.approx(loaded.info["bits_per_byte"], rel=1e-12)
    assert result.tokens == len(loaded.tokenizer.encode(val_text())) - 1
    losses = plain_losses(loaded.model, loaded.tokenizer.encode(val_text()), 8)
    assert result.loss == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def test_every_token_of_a_text_file_is_evaluated(loaded: Checkpoint, tmp_path: Path) -> None:
    other = "the owl sat on the mat: किताब! ξένος\n"
    (tmp_path / "other.txt").write_text(other, encoding="utf-8")
    tokens = loaded.tokenizer.encode(other)
    result = evaluate(loaded, str(tmp_path / "other.txt"))
    assert result == evaluate_tokens(loaded.model, loaded.tokenizer, tokens)
    assert result.tokens == len(tokens) - 1
    shorter = evaluate(loaded, str(tmp_path / "other.txt"), block_size=3)
    assert shorter == evaluate_tokens(loaded.model, loaded.tokenizer, tokens, 3) != result


@pytest.mark.parametrize("kind", ["byte", "char", "word", "bpe:400"])
def test_a_text_file_of_any_length_is_encoded_as_one_text(kind: str, tmp_path: Path) -> None:
    """A validation split would cut it, and a token that the cut divides would get other ids."""
    tokenizer = tokenizers.build(kind, TEXT)
    for length in range(100, 130):
        (tmp_path / "text.txt").write_text(TEXT[:length], encoding="utf-8")
        encoded, _ = encode_corpus(DataSettings(source=str(tmp_path / "text.txt")), tokenizer).result
        assert encoded.tolist() == tokenizer.encode(TEXT[:length]).tolist()


def test_reading_and_encoding_report_their_progress(
    loaded: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    often = functools.partial(encode_corpus, limits=Limits(progress_seconds=0))
    monkeypatch.setattr(evaluation, "encode_corpus", often)
    progress: list[PreparationProgress] = []
    with listen(progress.append):
        evaluate(loaded, str(tmp_path / "text.txt"))
    characters = {each.stage: each.done for each in progress}
    assert characters["reading"] == characters["encoding"] == len(TEXT)


def test_the_validation_split_of_a_prepared_folder_is_evaluated(
    trained: Run, loaded: Checkpoint, tmp_path: Path
) -> None:
    prepare(text_of(trained), tmp_path / "tokens", tokenizer="bpe:300", val_fraction=0.2)
    assert evaluate(loaded, str(tmp_path / "tokens")) == evaluate(loaded)


def test_a_folder_prepared_with_another_tokenizer_is_an_error(trained: Run, loaded: Checkpoint, tmp_path: Path) -> None:
    prepare(text_of(trained), tmp_path / "tokens", tokenizer="byte")
    with pytest.raises(OctavoError, match="another tokenizer"):
        evaluate(loaded, str(tmp_path / "tokens"))


@pytest.mark.parametrize(("content", "message"), [("a", "1 token:"), ("", "is empty")])
def test_a_file_of_fewer_than_two_tokens_is_an_error(
    content: str, message: str, loaded: Checkpoint, tmp_path: Path
) -> None:
    (tmp_path / "short.txt").write_text(content, encoding="utf-8")
    with pytest.raises(OctavoError, match=message):
        evaluate(loaded, str(tmp_path / "short.txt"))


def test_unknown_characters_are_an_error_or_are_skipped(tmp_path: Path) -> None:
    tokenizer: Tokenizer = tokenizers.build("char", "abc\n")
    model = spread_out_model(vocab_size=tokenizer.vocab_size)
    loaded = Checkpoint(model, tokenizer, model.settings, {}, Path("nowhere"))
    (tmp_path / "text.txt").write_text("abcéabc\nccba", encoding="utf-8")
    with pytest.raises(OctavoError, match="é"):
        evaluate(loaded, str(tmp_path / "text.txt"))
    skipped = evaluate(loaded, str(tmp_path / "text.txt"), unknown="skip")
    kept = evaluate_tokens(model, tokenizer, tokenizer.encode("abcabc\nccba"))
    assert skipped.loss == kept.loss
    assert skipped.bytes == kept.bytes + 2
    assert skipped.unknown is not None
    assert (skipped.unknown.count, skipped.unknown.first, skipped.unknown.offset) == (1, "é", 3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unknown", ["skip", "replace"])
def test_the_bytes_are_those_of_the_whole_text_for_every_tokenizer(kind: str, unknown: str, tmp_path: Path) -> None:
    tokenizer, model = tokenizers.build(kind, "abc, ?\n" * 9), spread_out_model(vocab_size=300)
    loaded = Checkpoint(model, tokenizer, model.settings, {}, Path("nowhere"))
    rows = ["abc, é😀\n", "ab\n", "漢字 abc\n"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
    result = evaluate(loaded, tmp_path / "rows.jsonl", unknown=unknown)
    tokens = encode_corpus(DataSettings(source=str(tmp_path / "rows.jsonl")), tokenizer, unknown).result[0]
    assert result.bytes == len("".join(rows).encode()) - len(tokenizer.token_bytes[tokens[0]])
    if kind == "char":
        assert result.unknown is not None
        assert (result.unknown.count, result.unknown.first, result.unknown.offset) == (4, "é", 5)
    else:
        assert result.unknown is None


def test_a_source_that_changed_since_training_is_an_error(trained: Run, loaded: Checkpoint) -> None:
    text_of(trained).write_text(TEXT + "more", encoding="utf-8")
    try:
        with pytest.raises(OctavoError, match="not the text"):
            evaluate(loaded)
    finally:
        text_of(trained).write_text(TEXT, encoding="utf-8")


def test_a_checkpoint_without_a_recorded_source_needs_one(loaded: Checkpoint) -> None:
    foreign = Checkpoint(loaded.model, loaded.tokenizer, loaded.model.settings, {}, loaded.folder)
    with pytest.raises(OctavoError, match="does not record") as caught:
        evaluate(foreign)
    assert f"octavo eval {loaded.folder} SOURCE" in str(caught.value.hint)
