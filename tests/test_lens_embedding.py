"""The views `position`, `neighbors` and `projection` against plain computations on the embeddings."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from lenses import TEXT, Case, assert_near, random_checkpoint, train_on
from octavo import checkpoint, lens
from octavo.checkpoint import Checkpoint
from octavo.errors import OctavoError
from octavo.runs import Run

pytestmark = pytest.mark.usefixtures("one_thread")
SMALLEST_RUN = dict(n_layer=1, n_head=1, n_embd=8, block_size=8, batch_size=2, max_steps=2, eval_every=2)


@pytest.mark.parametrize("at", [(1, 10), (0, 0), (7, 3), (-9, -1)])
def test_the_vector_of_a_word_is_the_sum_of_both_embeddings(case: Case, at: tuple[int, int]) -> None:
    wte, wpe = (case.model.transformer.get_submodule(name).weight.detach().numpy() for name in ("wte", "wpe"))
    view = lens.position(case.loaded, "a", at=at)
    (token,) = view.tokens
    first, second = (each % case.settings.block_size for each in at)
    assert token.at == (first, second)
    assert bytes.fromhex(token.token.bytes) == b"a"
    for n, t in enumerate((first, second)):
        assert np.array_equal(token.x[n], wte[token.token.id] + wpe[t])
        assert np.array_equal(token.wpe[n], wpe[t])
    assert np.array_equal(token.wte, wte[token.token.id])
    difference = token.x[0].astype(float) - token.x[1]
    assert np.abs(difference - (wpe[first].astype(float) - wpe[second])).max() <= 1e-6
    assert token.distance == pytest.approx(math.dist(token.x[0], token.x[1]), abs=1e-6)
    assert token.cosine == pytest.approx(exact_cosine(*token.x), abs=1e-6)


def exact_cosine(one: np.ndarray, two: np.ndarray) -> float:
    """The cosine, with exact sums in float64."""
    one, two = one.tolist(), two.tolist()
    return math.fsum(a * b for a, b in zip(one, two, strict=True)) / (math.hypot(*one) * math.hypot(*two))


def test_similarity_is_the_cosine_of_the_rows_of_wpe(small: Checkpoint) -> None:
    wpe = small.model.transformer.wpe.weight.detach().numpy()
    view = lens.position(small, "the")
    assert view.positions == [*range(16)]
    exact = [[exact_cosine(one, two) for two in wpe] for one in wpe]
    assert np.abs(view.similarity - exact).max() <= 1e-6


def test_every_third_position_of_a_long_block_is_compared(tmp_path: Path) -> None:
    view = lens.position(random_checkpoint(tmp_path / "model", "byte", block_size=600, n_layer=1), "a")
    assert view.positions == [*range(0, 600, 3)]
    assert view.similarity.shape == (200, 200)


def test_a_word_of_several_tokens_is_shown_token_by_token_with_a_note(small: Checkpoint) -> None:
    view = lens.position(small, "dogs", at=(1, 10))
    assert [token.token.label for token in view.tokens] == ["d", "o", "g", "s"]
    assert [token.at for token in view.tokens] == [(1, 10), (2, 11), (3, 12), (4, 13)]
    assert "4 tokens, d o g s" in view.note
    assert view.note in str(view)
    wpe = small.model.transformer.wpe.weight.detach().numpy()
    for token in view.tokens:
        assert np.array_equal(token.wpe, wpe[list(token.at)])
        assert np.array_equal(token.x, token.wte + token.wpe)
    near = lens.neighbors(small, "dogs")
    assert near.tokens == [token.token for token in view.tokens]
    assert near.note == view.note


def test_a_word_that_is_one_token_only_with_a_space_gets_the_space_and_a_note(small: Checkpoint) -> None:
    encode = small.tokenizer.encode
    words = [piece[1:].decode() for piece in small.tokenizer.token_bytes if re.fullmatch(b" [a-z]+", piece)]
    word = next(word for word in words if len(encode(word)) > 1)
    view = lens.position(small, word)
    assert [token.token.label for token in view.tokens] == [f"␣{word}"]
    assert "with a space before it" in view.note
    assert view.note in str(view)


def test_a_word_that_ends_outside_the_block_is_an_error(small: Checkpoint) -> None:
    lens.position(small, "dogs", at=(0, 12))
    with pytest.raises(OctavoError, match="position 13"):
        lens.position(small, "dogs", at=(0, 13))


@pytest.mark.parametrize("view", ["position", "neighbors"])
@pytest.mark.parametrize(("word", "message"), [("", "empty word"), ("xy" * 20, "40 tokens")])
def test_an_empty_word_and_a_very_long_one_are_an_error(small: Checkpoint, view: str, word: str, message: str) -> None:
    with pytest.raises(OctavoError, match=message):
        lens.inspect(small, view, word=word)


def exact_neighbors(case: Case, ids: list[int], top: int) -> list[tuple[int, float]]:
    """The ids, except `ids`, whose rows have the highest cosines to the mean of the rows of `ids`, one by one."""
    wte = case.weights["transformer.wte.weight"].numpy()
    mean = np.array([math.fsum(column) / len(ids) for column in wte[ids].T])
    cosines = {id: exact_cosine(row, mean) for id, row in enumerate(wte) if id not in ids}
    return sorted(cosines.items(), key=lambda pair: -pair[1])[:top]


@pytest.mark.parametrize("word", ["a", "Ka"])
def test_neighbors_match_brute_force(case: Case, word: str) -> None:
    view = lens.neighbors(case.loaded, word, top=7, against="e")
    ids = case.loaded.tokenizer.encode(word).tolist()
    assert [token.id for token in view.tokens] == ids
    expected = exact_neighbors(case, ids, 7)
    assert [each.token.id for each in view.neighbors] == [id for id, _ in expected]
    assert [each.cosine for each in view.neighbors] == pytest.approx([cosine for _, cosine in expected], abs=1e-6)
    (other,) = case.loaded.tokenizer.encode("e").tolist()
    assert view.against is not None
    assert view.against.token.id == other
    assert view.against.cosine == pytest.approx(dict(exact_neighbors(case, ids, 10**6))[other], abs=1e-6)


def test_rows_without_a_token_are_not_neighbors(tmp_path: Path) -> None:
    loaded = random_checkpoint(tmp_path / "model", "char", text="abc", vocab_size=64)  # 60 rows without a token
    view = lens.neighbors(loaded, "a", top=10)
    assert {each.token.label for each in view.neighbors} == {"b", "c", "<|endoftext|>"}
    assert [each.token.label for each in lens.neighbors(loaded, "abc").neighbors] == ["<|endoftext|>"]


@pytest.mark.parametrize("top", [0, -1, 101])
def test_top_outside_its_range_is_an_error(small: Checkpoint, top: int) -> None:
    with pytest.raises(OctavoError, match="between 1 and 100"):
        lens.neighbors(small, "a", top=top)


def test_two_words_are_compared_with_a_space_before_both_or_neither(small: Checkpoint) -> None:
    encode, known = small.tokenizer.encode, set(small.tokenizer.token_bytes)
    words = [piece[1:].decode() for piece in known if re.fullmatch(b" [a-z]+", piece)]
    both = next(word for word in words if len(encode(word)) == 1)
    spaced = next(word for word in words if len(encode(word)) > 1)
    for word, against in ((both, spaced), (spaced, both)):
        view = lens.neighbors(small, word, against=against)
        assert view.against is not None
        assert [view.tokens[0].label, view.against.token.label] == [f"␣{word}", f"␣{against}"]
        assert "with a space before it" in view.note
    view = lens.neighbors(small, "a", against="e")
    assert view.against is not None
    assert [view.tokens[0].label, view.against.token.label] == ["a", "e"]


def test_against_has_to_be_one_token(small: Checkpoint) -> None:
    with pytest.raises(OctavoError, match="dogs"):
        lens.neighbors(small, "a", against="dogs")


def test_history_has_the_cosines_of_every_checkpoint_of_the_run(tiny_run: Run) -> None:
    view = lens.neighbors(tiny_run.folder, "cat", against="mat", top=3)
    folders = list(tiny_run.checkpoints.values())
    assert [moment.step for moment in view.history] == list(tiny_run.checkpoints) == [1, 3, 7, 10, 20]
    assert view.against is not None
    assert len(view.tokens) == 1
    word, against = view.tokens[0].id, view.against.token.id
    neighbors = [each.token.id for each in view.neighbors]
    for moment, folder in zip(view.history, folders, strict=True):
        wte = checkpoint.load(folder).model.transformer.wte.weight.detach().double().numpy()
        assert moment.against == pytest.approx(exact_cosine(wte[word], wte[against]), abs=1e-6)
        assert moment.neighbors == pytest.approx([exact_cosine(wte[word], wte[id]) for id in neighbors], abs=1e-6)
    assert view.history[-1].against == view.against.cosine
    assert "over training" in str(view)


def test_a_checkpoint_outside_a_run_has_no_history(small: Checkpoint) -> None:
    assert lens.neighbors(small, "a", against="e").history == []


def test_without_the_training_text_the_view_says_that_it_has_no_control(tmp_path: Path) -> None:
    run = train_on(TEXT, tmp_path / "run", tokenizer="char", **SMALLEST_RUN)
    assert re.match(r"\d\d+ random pairs", lens.neighbors(run.folder, "a", against="e").control)
    (tmp_path / "run" / "text.txt").unlink()
    view = lens.neighbors(run.folder, "a", against="e")
    assert "not available" in view.control
    assert view.history
    assert all(moment.control is None for moment in view.history)


def test_a_token_that_never_occurs_has_no_control(tmp_path: Path) -> None:
    run = train_on("the cat sat on the mat. " * 50, tmp_path / "run", tokenizer="byte", **SMALLEST_RUN)
    view = lens.neighbors(run.folder, "t", against="Z")
    assert all(moment.control is None for moment in view.history)


COLORS = ("red", "blue")
OTHER_WORDS = [a + b for a in ("ba", "de", "fi", "go", "lu", "ma", "ne", "pi", "ro", "su") for b in "knt"]


def synthetic_corpus() -> str:
    """A different word follows each word, except that the same word follows red and blue."""
    words = [*COLORS, *OTHER_WORDS]
    sequence = [words[n] for n in np.random.default_rng(0).integers(len(words), size=4000)]
    return "".join(f"{word} {'shines' if word in COLORS else word + 's'}. " for word in sequence)


def test_words_with_the_same_contexts_become_more_similar_than_random_pairs(tmp_path: Path) -> None:
    run = train_on(
        synthetic_corpus(),
        tmp_path / "synthetic",
        tokenizer="word:400",
        n_layer=1,
        n_head=2,
        n_embd=32,
        block_size=32,
        batch_size=16,
        max_steps=200,
        eval_every=1000,
        keep_checkpoints=4,
        warmup_steps=5,
        learning_rate=1e-2,
        muon_learning_rate=2e-2,
    )
    view = lens.neighbors(run.folder, "red", against="blue")
    first, last = view.history[0], view.history[-1]
    assert (first.step, last.step) == (1, 200)
    assert "500 random pairs" in view.control
    assert all(each.control_low <= each.control <= each.control_high for each in view.history)
    assert last.against > last.control_high
    assert last.against - first.against > 0.5
    assert first.control_low < first.against < first.control_high  # at the first step, the pair is like a random one
    assert view.neighbors[0].token.label == "blue"


def test_the_projection_matches_the_singular_value_decomposition(case: Case) -> None:
    rows = case.model.transformer.wte.weight.detach().double()[: case.loaded.tokenizer.vocab_size]
    view = lens.projection(case.loaded, words=["a"])
    centered = rows - rows.mean(0)
    _, lengths, axes = torch.linalg.svd(centered, full_matrices=False)
    ids = [token.id for token in view.tokens]
    assert ids[0] == case.loaded.tokenizer.encode("a")[0]
    assert sorted(ids) == [*range(len(rows))]
    exact = centered[ids] @ axes[:2].T
    assert_near(np.abs(view.points), exact.abs(), 1e-6)
    assert view.explained == pytest.approx((lengths[:2] ** 2 / (lengths**2).sum()).tolist(), abs=1e-9)


def test_rows_without_a_token_are_not_projected(tmp_path: Path) -> None:
    run = train_on(TEXT, tmp_path / "run", tokenizer="byte", vocab_size=300, **SMALLEST_RUN)
    assert len(lens.projection(run.folder).tokens) == 257
