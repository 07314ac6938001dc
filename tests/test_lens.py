"""What the lens shows is what the model does: every number recomputed, by a plain reference or by counting.

Here every identity that the views promise is written out once more, apart from `octavo.lens.verify`, on models of all
tokenizers, with and without biases, with weights near one another and far apart, and on one that was trained.
"""

import dataclasses
import functools
import html.parser
import importlib
import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import octavo
import reference
from lenses import KINDS, LINE, TEXT, tiny, trained_on, weights_of, written
from octavo import checkpoint, kernels, lens, tokenizers, views
from octavo.checkpoint import Checkpoint
from octavo.errors import OctavoError
from octavo.evaluation import evaluate_tokens
from octavo.model import GPT
from octavo.runs import Run
from octavo.settings import ModelSettings, resolve

# The modules: most views have the name of the module that they are in.
ablation = importlib.import_module("octavo.lens.ablation")
capture = importlib.import_module("octavo.lens.capture")
contributions = importlib.import_module("octavo.lens.contributions")
logit_lens = importlib.import_module("octavo.lens.logit_lens")
surprisal = importlib.import_module("octavo.lens.surprisal")
tokens = importlib.import_module("octavo.lens.tokens")

law = hypothesis.settings(derandomize=True, deadline=None, max_examples=30)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with kernels.one_thread():
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Twenty steps of the preset `tiny`."""
    return tiny(tmp_path_factory.getbasetemp())


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, a text, and what the plain reference makes of it in float64."""

    loaded: Checkpoint
    ids: list[int]

    @property
    def model(self) -> GPT:
        return self.loaded.model

    @property
    def settings(self) -> ModelSettings:
        return self.loaded.model.settings

    @functools.cached_property
    def weights(self) -> dict[str, Tensor]:
        return weights_of(self.model)

    @functools.cached_property
    def streams(self) -> list[Tensor]:
        """The residual stream (T, C), before the first layer and after each."""
        wte, wpe = self.weights["transformer.wte.weight"], self.weights["transformer.wpe.weight"]
        found = [wte[self.ids] + wpe[: len(self.ids)]]
        for layer in range(self.settings.n_layer):
            found.append(reference.block(self.weights, self.settings, f"transformer.h.{layer}", found[-1]))
        return found

    def logits(self, stage: int = -1) -> Tensor:
        """What the head reads off a stage, (T, V)."""
        normed = reference.layer_norm(self.weights, "transformer.ln_f", self.streams[stage])
        return normed @ self.weights["transformer.wte.weight"].T

    def without(self, layer: int, *, head: int | None = None, attention: bool = False, mlp: bool = False) -> Tensor:
        """The logits (T, V) of a model in which a part writes nothing: what it is mixed by is set to zero."""
        weights = dict(self.weights)
        D, at = self.settings.head_size, f"transformer.h.{layer}"
        if head is not None:
            mixed = weights[f"{at}.attn.c_proj.weight"].clone()
            mixed[:, head * D : (head + 1) * D] = 0
            weights[f"{at}.attn.c_proj.weight"] = mixed
        for whole, branch in ((attention, "attn"), (mlp, "mlp")):
            for kind in ("weight", "bias") if whole else ():
                if f"{at}.{branch}.c_proj.{kind}" in weights:
                    weights[f"{at}.{branch}.c_proj.{kind}"] = torch.zeros_like(weights[f"{at}.{branch}.c_proj.{kind}"])
        return reference.gpt2(weights, self.settings, torch.tensor(self.ids))

    @functools.cached_property
    def written(self) -> dict[tuple[str, int | None, int | None], Tensor]:
        """What every part writes, (T, C), each head by itself: with what it is mixed by, and no other's."""
        weights, settings = self.weights, self.settings
        nothing = torch.zeros(settings.n_embd, dtype=torch.float64)
        found = {
            ("wte", None, None): weights["transformer.wte.weight"][self.ids],
            ("wpe", None, None): weights["transformer.wpe.weight"][: len(self.ids)],
        }
        for i, x in enumerate(self.streams[:-1]):
            at = f"transformer.h.{i}"
            normed = reference.layer_norm(weights, f"{at}.ln_1", x)
            bias = weights.get(f"{at}.attn.c_proj.bias", nothing)
            for h in range(settings.n_head):
                mine = nothing.clone()
                mine[h * settings.head_size : (h + 1) * settings.head_size] = 1
                alone = weights | {f"{at}.attn.c_proj.weight": weights[f"{at}.attn.c_proj.weight"] * mine}
                found["head", i, h] = reference.attention(alone, settings, f"{at}.attn", normed) - bias
            attended = sum(found["head", i, h] for h in range(settings.n_head)) + bias
            if settings.bias:
                found["attention's bias", i, None] = bias.expand_as(x)
            middle = reference.layer_norm(weights, f"{at}.ln_2", x + attended)
            found["MLP", i, None] = reference.mlp(weights, settings, f"{at}.mlp", middle)
        return found

    def shares(self, layer: int, head: int) -> Tensor:
        """Where every position of a head looks, (T, T), one by one."""
        D, at = self.settings.head_size, f"transformer.h.{layer}"
        normed = reference.layer_norm(self.weights, f"{at}.ln_1", self.streams[layer])
        q, k, _ = reference.linear(self.weights, f"{at}.attn.c_attn", normed).split(self.settings.n_embd, dim=1)
        q, k = (each[:, head * D : (head + 1) * D] for each in (q, k))
        found = torch.zeros(len(q), len(q), dtype=torch.float64)
        for t in range(len(q)):
            found[t, : t + 1] = reference.softmax(k[: t + 1] @ q[t] / math.sqrt(D))
        return found


RANDOM = [(kind, bias, spread) for kind in KINDS for bias in (True, False) for spread in (0.02, 0.2)]
NAMES = [f"{kind}, {'' if bias else 'no '}biases, spread {spread}" for kind, bias, spread in RANDOM]


@pytest.fixture(scope="module", params=["trained", *RANDOM], ids=["trained", *NAMES])
def case(request: pytest.FixtureRequest, trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Four layers, 256 wide; one GELU with biases where weights are near, the other where they are far apart."""
    if request.param == "trained":
        loaded = octavo.load(trained.folder)
    else:
        kind, bias, spread = request.param
        activation = "gelu_new" if bias == (spread < 0.1) else "gelu"
        loaded = written(tmp_path_factory.mktemp("model") / "model", kind, spread=spread, bias=bias, n_layer=4,
                         n_head=4, n_embd=256, block_size=48, activation=activation)  # fmt: skip
    return Case(loaded, loaded.tokenizer.encode(LINE).tolist())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Three layers, 48 wide, 16 positions, over bytes and what they often make together."""
    return written(tmp_path_factory.mktemp("small") / "model")


def assert_near(ours: Any, theirs: Any, tolerance: float) -> None:
    """As numbers go that are larger than 1, relative to the largest."""
    ours, theirs = (torch.as_tensor(each).double() for each in (ours, theirs))
    assert ours.shape == theirs.shape
    off = (ours - theirs).abs().max().item() / max(1.0, theirs.abs().max().item())
    assert off <= tolerance


# Shapes: the walk, live


def test_shapes_and_parameters_are_those_of_the_modules_in_a_real_pass(case: Case) -> None:
    model, C, T = case.model, case.settings.n_embd, len(case.ids)
    given: dict[str, set[tuple[int, ...]]] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, out, name=name: given.setdefault(name, set()).add(tuple(out.shape)))
        for name, module in model.named_modules()
    ]
    model(torch.tensor([case.ids]))
    for hook in hooks:
        hook.remove()
    seen = {stage.name: stage for stage in lens.shapes(case.loaded, LINE).stages}
    blocks = range(case.settings.n_layer)
    for name in ("ln_1", "attn.c_proj", "ln_2", "mlp.c_proj"):
        assert all(given[f"transformer.h.{i}.{name}"] == {seen[f"h.{name}"].shape} for i in blocks)
    for name, path in (("wte", "transformer.wte"), ("ln_f", "transformer.ln_f"), ("logits", "lm_head")):
        assert given[path] == {seen[name].shape}
    assert all(given[f"transformer.h.{i}.attn.c_attn"] == {(1, T, 3 * C)} for i in blocks)
    assert seen["h.attn.c_attn"].shape == (1, case.settings.n_head, T, case.settings.head_size)
    assert all(given[f"transformer.h.{i}.mlp.c_fc"] == {seen["h.mlp.c_fc, GELU"].shape} for i in blocks)

    for name, stage in seen.items():
        path = name.split(",")[0]
        modules = [
            m
            for where, m in model.named_modules()
            if where.removeprefix("transformer.") in (path, path.replace("h.", "h.0."))
        ]
        assert stage.parameters == sum(p.numel() for module in modules for p in module.parameters())
        assert stage.times == (case.settings.n_layer if name.startswith(("h.", "x +")) else 1)
    assert sum(s.parameters * s.times for s in seen.values()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("attend", [capture.fused_attention, capture.explicit_attention])
def test_flops_are_those_that_pytorch_counts_in_a_real_pass(case: Case, attend: Any) -> None:
    """Both count two for each multiplication with its addition, products only, and attention over the full square.

    Inside of `looking`, fused attention is two batched products, which PyTorch's counter sees as such.
    """
    with capture.inference(case.model), FlopCounterMode(display=False) as counter:
        capture.logits(case.model, torch.tensor([case.ids]), attend)
    view = lens.shapes(case.loaded, LINE)
    assert view.flops == sum(stage.flops * stage.times for stage in view.stages) == counter.get_total_flops()


@pytest.mark.parametrize(("layer", "head"), [(0, 0), (2, 3), (-1, -1)])
def test_the_values_of_a_stage_are_those_of_the_text(case: Case, layer: int, head: int) -> None:
    view = lens.shapes(case.loaded, LINE, layer=layer, head=head)
    seen = {stage.name: stage.values for stage in view.stages}
    layer, head = layer % 4, head % 4
    assert (view.layer, view.head) == (layer, head)
    rows = min(16, len(case.ids))
    assert seen["idx"][0].tolist() == case.ids[:16]
    for name, plain in (
        ("x", case.streams[0]), ("x + mlp", case.streams[layer + 1]),
        ("h.attn: softmax", case.shares(layer, head)),
    ):  # fmt: skip
        assert seen[name].shape == (rows, min(16, plain.shape[1]))
        assert_near(seen[name], plain[:16, :16], 1e-4)
    columns = view.stages[-1].columns
    assert columns is not None
    logits = case.logits()
    assert columns == logits[-1].topk(min(16, logits.shape[1])).indices.tolist()
    assert_near(seen["logits"], logits[:16, columns], 1e-4)


NOTES = """\
idx 1 512 0
wte 1 512 768 38597376
wpe 512 768 393216
x 1 512 768 0
h.ln_1 1 512 768 1536
h.attn.c_attn 1 12 512 64 1771776
h.attn: q kT / sqrt(D) 1 12 512 512 0
h.attn: softmax 1 12 512 512 0
h.attn: shares v 1 12 512 64 0
h.attn.c_proj 1 512 768 590592
x + attention 1 512 768 0
h.ln_2 1 512 768 1536
h.mlp.c_fc, GELU 1 512 3072 2362368
h.mlp.c_proj 1 512 768 2360064
x + mlp 1 512 768 0
ln_f 1 512 768 1536
logits 1 512 50257 0"""


def test_the_walk_of_the_notes_has_their_exact_shapes() -> None:
    """512 positions, 768 wide, 12 heads, 12 layers, 50,257 tokens."""
    view = lens.shapes(resolve("gpt2-512", vocab_size=50257))
    rows = [" ".join(map(str, (each.name, *each.shape, each.parameters))) for each in view.stages]
    assert "\n".join(rows) == NOTES
    assert {stage.times for stage in view.stages if stage.name.startswith(("h.", "x +"))} == {12}
    assert view.parameters == 124_046_592
    assert view.flops == 512 * 2 * (12 * 12 * 768**2 + 768 * 50257 + 12 * 2 * 512 * 768)
    assert view.tokens == []
    assert all(stage.values is None for stage in view.stages)


def test_settings_without_a_vocabulary_have_no_shapes() -> None:
    with pytest.raises(OctavoError, match="leave the vocabulary to a tokenizer"):
        lens.shapes(resolve("tiny"))


# Tokens


ARBITRARY = functools.cache(lambda kind: tokenizers.build(kind, TEXT))


def loaded_with(kind: str) -> Checkpoint:
    """Of a text only the tokenizer matters here, so there is no model."""
    return Checkpoint(None, ARBITRARY(kind), ModelSettings(), {}, Path("nowhere"))  # type: ignore[arg-type]


def assert_whole(view: tokens.Tokens, text: str) -> None:
    """All bytes are there, and groups have every token once, in order, as few as make whole characters."""
    pieces = [bytes.fromhex(token.bytes) for token in view.tokens]
    assert b"".join(pieces) == text.encode()
    assert "".join(group.text for group in view.groups) == view.text == text
    assert [at for group in view.groups for at in range(group.first, group.first + group.count)] == [
        *range(len(pieces))
    ]
    for group in view.groups:
        mine = pieces[group.first : group.first + group.count]
        assert b"".join(mine).decode() == group.text
        for count in range(1, group.count):
            with pytest.raises(UnicodeDecodeError):
                b"".join(mine[:count]).decode()


def test_the_bytes_of_the_tokens_are_the_texts_own(case: Case) -> None:
    view = lens.tokens(case.loaded, LINE)
    assert_whole(view, LINE)
    assert [token.id for token in view.tokens] == view.ids[0].tolist() == case.ids
    assert view.labels == [token.label for token in view.tokens]
    assert (view.left_out, view.own) == (0, False)


@pytest.mark.parametrize("kind", KINDS[1:])
@law
@hypothesis.given(text=st.text(min_size=1))
@hypothesis.example(text="e\u0301\u0301 \u200d🦉🏿\r\n\x00")
def test_any_text_is_shown_whole_and_in_groups_of_whole_characters(kind: str, text: str) -> None:
    assert_whole(lens.tokens(loaded_with(kind), text), text)


@pytest.mark.parametrize("kind", KINDS)
@law
@hypothesis.given(data=st.data())
def test_any_ids_are_grouped_once_in_order_be_they_no_text(kind: str, data: st.DataObject) -> None:
    tokenizer = ARBITRARY(kind)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), min_size=1, max_size=30))
    view = lens.tokens(loaded_with(kind), ids)
    assert [token.id for token in view.tokens] == ids
    assert [at for group in view.groups for at in range(group.first, group.first + group.count)] == [*range(len(ids))]
    assert view.text == "".join(group.text for group in view.groups) == tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("piece", "label"),
    [
        (" ", "␣"), (" the", "␣the"), ("\n", "⏎"), ("\r\n", "␍⏎"), ("\t", "⇥"), ("\0", "<U+0000>"), ("é", "é"),
        ("\x1b[31m", "<U+001B>[31m"), ("\u00a0", "<U+00A0>"), ("\u3000", "<U+3000>"), ("\u2028", "<U+2028>"),
        ("\u202e", "<U+202E>"), ("\u200d", "<U+200D>"), ("\ufeff", "<U+FEFF>"), ("\ue000", "<U+E000>"),
        ("\u0301", "◌\u0301"), ("e\u0301", "e\u0301"), ("\u093f", "◌\u093f"), ("🦉", "🦉"), ("<b>", "<b>"),
        (b"\xc3", "<c3>"), (b"\x9f\xa6", "<9f a6>"), (b"a\xc3", "<61 c3>"), (b"\xff", "<ff>"),
    ],
)  # fmt: skip
def test_a_token_has_a_name_that_can_be_seen(piece: str | bytes, label: str) -> None:
    assert tokens.label(piece if isinstance(piece, bytes) else piece.encode()) == label


@law
@hypothesis.given(piece=st.one_of(st.binary(min_size=1), st.text(min_size=1).map(str.encode)))
def test_no_name_of_a_token_has_blanks_or_control_characters(piece: bytes) -> None:
    label = tokens.label(piece)
    assert label
    assert label.replace(" ", "").isprintable()
    assert " " not in label or label == f"<{piece.hex(' ')}>"


def test_a_row_of_the_model_that_no_token_has_is_named_by_its_number() -> None:
    tokenizer = ARBITRARY("byte")
    assert tokens.make_token(tokenizer, 300) == tokens.Token(300, "#300", "")


def test_a_text_longer_than_the_block_is_cut_and_says_by_how_much(small: Checkpoint) -> None:
    ids = small.tokenizer.encode(TEXT).tolist()
    for view in ("attention", "next_token", "logit_lens", "contributions", "ablation"):
        seen: Any = lens.inspect(small, view, text=TEXT)
        assert [token.id for token in seen.tokens] == ids[:16]
        assert seen.left_out == len(ids) - 16 > 0
        assert seen.plain()["left_out"] == seen.left_out
    for view in ("tokens", "surprisal"):
        seen = lens.inspect(small, view, text=TEXT)
        assert len(seen.tokens) == len(ids)
        assert seen.left_out == 0
    assert [stage.shape for stage in lens.shapes(small, TEXT).stages][-1] == (1, 16, small.settings.vocab_size)


def test_without_a_text_the_model_writes_one(small: Checkpoint) -> None:
    seen = lens.tokens(small)
    assert seen.own
    assert seen.text
    assert not lens.tokens(small, seen.text).own
    assert lens.tokens(small).text == seen.text


def test_ids_may_stand_for_a_text_and_have_to_be_tokens(small: Checkpoint) -> None:
    ids = small.tokenizer.encode("the cat").tolist()
    assert lens.surprisal(small, ids).surprisal.tolist()[1:] == lens.surprisal(small, "the cat").surprisal.tolist()[1:]
    for strange in (-1, small.tokenizer.vocab_size):
        with pytest.raises(OctavoError, match=f"there is no token {strange}"):
            lens.surprisal(small, [0, strange])


@pytest.mark.parametrize("text", ["", []])
def test_nothing_is_no_text(small: Checkpoint, text: Any) -> None:
    for view in ("shapes", "tokens", "attention", "next_token", "logit_lens", "contributions", "surprisal", "ablation"):
        with pytest.raises(OctavoError, match="no text to look at"):
            lens.inspect(small, view, text=text)


def test_unknown_characters_are_refused_skipped_or_replaced(tmp_path: Path) -> None:
    loaded = written(tmp_path / "model", "char", text="abc ?\n")
    for view in ("shapes", "tokens", "attention", "next_token", "logit_lens", "contributions", "surprisal", "ablation"):
        with pytest.raises(OctavoError, match="unknown characters 'é'"):
            lens.inspect(loaded, view, text="abéc")
        lens.inspect(loaded, view, text="abéc", unknown="skip")
    assert lens.tokens(loaded, "abéc", unknown="skip").text == "abc"
    assert lens.tokens(loaded, "abéc", unknown="replace").text == "ab?c"
    with pytest.raises(OctavoError, match="unknown characters 'é'"):
        lens.neighbors(loaded, "é")


# Position


@pytest.mark.parametrize("at", [(1, 10), (0, 0), (7, 3), (-9, -1)])
def test_a_words_two_vectors_are_its_row_and_those_of_the_positions(case: Case, at: tuple[int, int]) -> None:
    wte, wpe = (case.model.transformer.get_submodule(name).weight.detach().numpy() for name in ("wte", "wpe"))
    view = lens.position(case.loaded, "a", at=at)
    (piece,) = view.pieces
    first, second = (each % case.settings.block_size for each in at)
    assert piece.at == (first, second)
    assert bytes.fromhex(piece.token.bytes) == b"a"
    for n, t in enumerate((first, second)):
        assert np.array_equal(piece.x[n], wte[piece.token.id] + wpe[t])
        assert np.array_equal(piece.wpe[n], wpe[t])
    assert np.array_equal(piece.wte, wte[piece.token.id])
    difference = piece.x[0].astype(float) - piece.x[1]
    assert np.abs(difference - (wpe[first].astype(float) - wpe[second])).max() <= 1e-6
    assert piece.distance == pytest.approx(math.dist(piece.x[0], piece.x[1]), abs=1e-6)
    assert piece.cosine == pytest.approx(plain_cosine(*piece.x), abs=1e-6)


def plain_cosine(one: np.ndarray, two: np.ndarray) -> float:
    """Number by number."""
    one, two = one.tolist(), two.tolist()
    return math.fsum(a * b for a, b in zip(one, two, strict=True)) / (math.hypot(*one) * math.hypot(*two))


def test_the_likeness_of_positions_is_the_cosine_of_their_rows(small: Checkpoint) -> None:
    wpe = small.model.transformer.wpe.weight.detach().numpy()
    view = lens.position(small, "the")
    assert view.positions == [*range(16)]
    plain = [[plain_cosine(one, two) for two in wpe] for one in wpe]
    assert np.abs(view.similarity - plain).max() <= 1e-6


def test_of_a_long_block_some_positions_are_compared(tmp_path: Path) -> None:
    view = lens.position(written(tmp_path / "model", "byte", block_size=600, n_layer=1), "a")
    assert view.positions == [*range(0, 600, 3)]
    assert view.similarity.shape == (200, 200)


def test_a_word_of_several_tokens_is_taken_piece_by_piece_and_said_to_be(small: Checkpoint) -> None:
    view = lens.position(small, "dogs", at=(1, 10))
    assert [piece.token.label for piece in view.pieces] == ["d", "o", "g", "s"]
    assert [piece.at for piece in view.pieces] == [(1, 10), (2, 11), (3, 12), (4, 13)]
    assert "4 tokens, d o g s" in view.note
    assert view.note in str(view)
    wpe = small.model.transformer.wpe.weight.detach().numpy()
    for piece in view.pieces:
        assert np.array_equal(piece.wpe, wpe[list(piece.at)])
        assert np.array_equal(piece.x, piece.wte + piece.wpe)
    near = lens.neighbors(small, "dogs")
    assert near.pieces == [piece.token for piece in view.pieces]
    assert near.note == view.note


def test_a_word_that_is_one_token_behind_a_space_is_taken_with_it_and_said_to_be(small: Checkpoint) -> None:
    encode = small.tokenizer.encode
    words = [piece[1:].decode() for piece in small.tokenizer.token_bytes if re.fullmatch(b" [a-z]+", piece)]
    word = next(word for word in words if len(encode(word)) > 1)
    view = lens.position(small, word)
    assert [piece.token.label for piece in view.pieces] == [f"␣{word}"]
    assert "with the space before it" in view.note
    assert view.note in str(view)


def test_a_word_that_ends_beyond_the_block_is_refused(small: Checkpoint) -> None:
    lens.position(small, "dogs", at=(0, 12))
    with pytest.raises(OctavoError, match="4 tokens, which at 13 end beyond the block of 16"):
        lens.position(small, "dogs", at=(0, 13))


@pytest.mark.parametrize("view", ["position", "neighbors"])
@pytest.mark.parametrize(("word", "said"), [("", "an empty word"), ("xy" * 20, "40 tokens; at most 16")])
def test_no_word_and_an_endless_one_are_refused(small: Checkpoint, view: str, word: str, said: str) -> None:
    with pytest.raises(OctavoError, match=said):
        lens.inspect(small, view, word=word)


# Neighbors


def plain_neighbors(case: Case, ids: list[int], top: int) -> list[tuple[int, float]]:
    """All cosines with the mean of some rows, one by one; the largest, without the word itself."""
    wte = case.weights["transformer.wte.weight"].numpy()
    mean = np.array([math.fsum(column) / len(ids) for column in wte[ids].T])
    cosines = {id: plain_cosine(row, mean) for id, row in enumerate(wte) if id not in ids}
    return sorted(cosines.items(), key=lambda pair: -pair[1])[:top]


@pytest.mark.parametrize("word", ["a", "Ka"])
def test_neighbors_are_those_of_brute_force(case: Case, word: str) -> None:
    view = lens.neighbors(case.loaded, word, top=7, against="e")
    ids = case.loaded.tokenizer.encode(word).tolist()
    assert [piece.id for piece in view.pieces] == ids
    expected = plain_neighbors(case, ids, 7)
    assert [each.token.id for each in view.neighbors] == [id for id, _ in expected]
    assert [each.cosine for each in view.neighbors] == pytest.approx([cosine for _, cosine in expected], abs=1e-6)
    (other,) = case.loaded.tokenizer.encode("e").tolist()
    assert view.against is not None
    assert view.against.token.id == other
    assert view.against.cosine == pytest.approx(dict(plain_neighbors(case, ids, 10**6))[other], abs=1e-6)


def test_a_few_tokens_have_no_more_neighbors_than_there_are(tmp_path: Path) -> None:
    loaded = written(tmp_path / "model", "char", text="abc", vocab_size=64)  # 61 rows that no token has
    view = lens.neighbors(loaded, "a", top=10)
    assert {each.token.label for each in view.neighbors} == {"b", "c"}
    assert lens.neighbors(loaded, "abc").neighbors == []


@pytest.mark.parametrize("top", [0, -1, 101])
def test_more_neighbors_than_can_be_shown_are_refused(small: Checkpoint, top: int) -> None:
    with pytest.raises(OctavoError, match="between 1 and 100"):
        lens.neighbors(small, "a", top=top)


def test_to_follow_a_pair_both_have_to_be_tokens(small: Checkpoint) -> None:
    with pytest.raises(OctavoError, match="'dogs' is 4 tokens here"):
        lens.neighbors(small, "a", against="dogs")


def test_neighbors_are_followed_along_the_checkpoints_of_a_run(trained: Run) -> None:
    view = lens.neighbors(trained.folder, "cat", against="mat", top=3)
    folders = list(trained.steps.values())
    assert [moment.step for moment in view.history] == list(trained.steps) == [1, 3, 7, 20]
    assert view.against is not None
    (word,), other, others = [p.id for p in view.pieces], view.against.token.id, [n.token.id for n in view.neighbors]
    for moment, folder in zip(view.history, folders, strict=True):
        wte = checkpoint.load(folder).model.transformer.wte.weight.detach().double().numpy()
        assert moment.against == pytest.approx(plain_cosine(wte[word], wte[other]), abs=1e-6)
        assert moment.neighbors == pytest.approx([plain_cosine(wte[word], wte[id]) for id in others], abs=1e-6)
    assert view.history[-1].against == view.against.cosine
    assert "along training" in str(view)


def test_a_checkpoint_by_itself_has_no_history(small: Checkpoint) -> None:
    assert lens.neighbors(small, "a", against="e").history == []


def test_a_text_that_is_gone_leaves_no_control_and_says_so(tmp_path: Path) -> None:
    run = trained_on(TEXT, tmp_path / "run", tokenizer="char", n_layer=1, n_head=1, n_embd=8, block_size=8,
                     batch_size=2, max_steps=2, eval_every=2)  # fmt: skip
    assert re.match(r"\d\d+ random pairs", lens.neighbors(run.folder, "a", against="e").control)
    (tmp_path / "run" / "text.txt").unlink()
    view = lens.neighbors(run.folder, "a", against="e")
    assert "can't be had" in view.control
    assert view.history
    assert all(moment.control is None for moment in view.history)


def test_for_a_token_that_was_never_read_there_is_no_pair_as_frequent(tmp_path: Path) -> None:
    run = trained_on("the cat sat on the mat. " * 50, tmp_path / "run", tokenizer="byte", n_layer=1, n_head=1, n_embd=8,
                     block_size=8, batch_size=2, max_steps=2, eval_every=2)  # fmt: skip
    view = lens.neighbors(run.folder, "t", against="Z")
    assert all(moment.control is None for moment in view.history)


COLOURS = ("red", "blue")
OTHERS = [a + b for a in ("ba", "de", "fi", "go", "lu", "ma", "ne", "pi", "ro", "su") for b in "knt"]


def made_corpus() -> str:
    """Every word is followed by one of its own; only red and blue are followed by the same."""
    words = [*COLOURS, *OTHERS]
    said = [words[n] for n in np.random.default_rng(0).integers(len(words), size=4000)]
    return "".join(f"{word} {'shines' if word in COLOURS else word + 's'}. " for word in said)


def test_words_with_the_same_contexts_come_closer_than_random_pairs(tmp_path: Path) -> None:
    run = trained_on(made_corpus(), tmp_path / "made", tokenizer="word:400", n_layer=1, n_head=2, n_embd=32,
                     block_size=32, batch_size=16, max_steps=200, eval_every=1000, keep_checkpoints=4, warmup_steps=5,
                     learning_rate=1e-2, muon_learning_rate=2e-2)  # fmt: skip
    view = lens.neighbors(run.folder, "red", against="blue")
    first, last = view.history[0], view.history[-1]
    assert (first.step, last.step) == (1, 200)
    assert "500 random pairs" in view.control
    assert all(each.control_low <= each.control <= each.control_high for each in view.history)
    assert last.against > last.control_high
    assert last.against - first.against > 0.5
    assert first.control_low < first.against < first.control_high  # before it had read much, a pair like any other
    assert view.neighbors[0].token.label == "blue"


# The map


def test_the_map_has_the_two_directions_in_which_rows_differ_most(case: Case) -> None:
    rows = case.model.transformer.wte.weight.detach().double()[: case.loaded.tokenizer.vocab_size]
    view = lens.projection(case.loaded, words=["a"])
    centred = rows - rows.mean(0)
    _, lengths, axes = torch.linalg.svd(centred, full_matrices=False)
    mine = [token.id for token in view.tokens]
    assert mine[0] == case.loaded.tokenizer.encode("a")[0]
    assert sorted(mine) == [*range(len(rows))]
    plain = centred[mine] @ axes[:2].T
    assert_near(np.abs(view.points), plain.abs(), 1e-6)
    assert view.explained == pytest.approx((lengths[:2] ** 2 / (lengths**2).sum()).tolist(), abs=1e-9)


def test_a_model_with_more_rows_than_tokens_has_a_map(tmp_path: Path) -> None:
    run = trained_on(TEXT, tmp_path / "run", tokenizer="byte", vocab_size=300, n_layer=1, n_head=1, n_embd=8,
                     block_size=8, batch_size=2, max_steps=2, eval_every=2)  # fmt: skip
    assert len(lens.projection(run.folder).tokens) == 256


# Attention


def test_every_heads_pattern_is_that_of_the_plain_reference(case: Case) -> None:
    T = len(case.ids)
    for layer in range(case.settings.n_layer):
        for head in range(case.settings.n_head):
            view = lens.attention(case.loaded, LINE, layer=layer, head=head)
            assert (view.layer, view.head) == (layer, head)
            assert [token.id for token in view.tokens] == case.ids
            assert np.abs(view.weights.sum(1) - 1).max() <= 1e-5
            assert (np.triu(view.weights, 1) == 0).all()
            assert view.weights[0].tolist() == [1.0, *[0.0] * (T - 1)]
            assert_near(view.weights, case.shares(layer, head), 1e-4)


def test_the_habits_of_all_heads_are_those_of_their_patterns(case: Case) -> None:
    view = lens.attention(case.loaded, LINE)
    T = len(case.ids)
    assert [(each.layer, each.head) for each in view.heads] == [(i, h) for i in range(4) for h in range(4)]
    for each in view.heads:
        rows = case.shares(each.layer, each.head).tolist()
        means = [0.0] * 5
        for t in range(1, T):
            means[0] -= sum(share * math.log(share) for share in rows[t] if share > 0) / (T - 1)
            means[1] += sum(share * (t - s) for s, share in enumerate(rows[t])) / (T - 1)
            for n, share in ((2, rows[t][t - 1]), (3, rows[t][0]), (4, rows[t][t])):
                means[n] += share / (T - 1)
        assert (each.entropy, each.distance, each.previous, each.first, each.itself) == pytest.approx(means, abs=1e-3)


def test_logits_by_the_pattern_that_is_shown_equal_the_fused_ones(case: Case) -> None:
    idx = torch.tensor([case.ids])
    with capture.inference(case.model):
        shown = capture.logits(case.model, idx, capture.explicit_attention)[0]
        fused = capture.logits(case.model, idx)[0]
    with torch.inference_mode():
        training = case.model(idx)[0]  # by PyTorch's own fused kernel
    for theirs in (fused, training, case.logits()):
        assert_near(shown, theirs, 1e-4)


# The logit lens


def test_the_last_row_of_the_lens_is_the_models_answer_to_the_bit(case: Case) -> None:
    idx = torch.tensor([case.ids])
    with capture.inference(case.model):
        *_, last = capture.walk(case.model, case.model.embed(idx))
        assert torch.equal(logit_lens.stage_logits(case.model, last.after), case.model(idx))


def test_every_row_of_the_lens_is_read_by_its_own_norm(case: Case) -> None:
    view = lens.logit_lens(case.loaded, LINE, top=6)
    T, L = len(case.ids), case.settings.n_layer
    assert view.positions == [*range(T)]
    assert view.ids.shape == view.probabilities.shape == (L + 1, T, 6)
    assert view.entropy.shape == view.surprisal.shape == view.rank.shape == (L + 1, T)
    for stage in range(L + 1):
        logits = case.logits(stage)
        shares = logits.softmax(-1)
        assert_near(view.probabilities[stage], shares.sort(dim=-1, descending=True).values[:, :6], 1e-4)
        assert_near(view.probabilities[stage], shares.gather(1, torch.from_numpy(view.ids[stage])), 1e-4)
        assert_near(view.entropy[stage], torch.special.entr(shares).sum(-1), 1e-3)
        came = torch.tensor(case.ids[1:])[:, None]
        assert_near(view.surprisal[stage, :-1], -shares[:-1].gather(1, came)[:, 0].log(), 1e-4)
        with capture.inference(case.model):  # ranks of float32's own, for near ties fall either way
            mine = capture_stage(case, stage)[:-1]
        assert view.rank[stage, :-1].tolist() == (1 + (mine > mine.gather(1, came)).sum(1)).tolist()
        assert math.isnan(view.surprisal[stage, -1])
        assert view.rank[stage, -1] == 0
    assert set(view.vocabulary) == set(view.ids.flatten().tolist())
    assert all(view.vocabulary[id] == tokens.make_token(case.loaded.tokenizer, id).label for id in view.vocabulary)


def capture_stage(case: Case, stage: int) -> Tensor:
    """The model's own logits (T, V) off a stage."""
    x = case.model.embed(torch.tensor([case.ids]))
    after = [x, *(layer.after for layer in capture.walk(case.model, x))]
    return case.model.unembed(case.model.norm(after[stage]))[0]


@pytest.mark.parametrize("positions", [[0], [-1], [5, 2, 5], [-2, 0], []])
def test_some_positions_of_the_lens_are_what_they_are_among_all(small: Checkpoint, positions: list[int]) -> None:
    text = "the cat sat on the mat"
    whole, some = lens.logit_lens(small, text), lens.logit_lens(small, text, positions=positions)
    chosen = [each % len(whole.tokens) for each in positions]
    assert some.positions == chosen
    assert some.ids.tolist() == whole.ids[:, chosen].tolist()
    for name in ("probabilities", "entropy", "surprisal", "rank"):
        assert np.allclose(getattr(some, name), getattr(whole, name)[:, chosen], rtol=0, atol=1e-6, equal_nan=True)


def test_the_last_row_of_the_lens_has_the_surprisal_of_the_score(case: Case) -> None:
    rows, score = lens.logit_lens(case.loaded, LINE), lens.surprisal(case.loaded, LINE)
    assert_near(rows.surprisal[-1, :-1], score.surprisal[1:], 1e-5)
    assert rows.rank[-1, :-1].tolist() == score.rank[1:].tolist()


@st.composite
def scores(draw: st.DrawFn, tied: bool) -> tuple[Tensor, int]:
    """Logits (P, V) below and above the size at which the vocabulary is looked through by groups."""
    P, V, top = draw(st.integers(1, 3)), draw(st.integers(1, 1500)), draw(st.integers(1, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    if tied:
        return torch.randint(draw(st.integers(1, 9)), (P, V), generator=generator).float(), top
    return torch.stack([torch.randperm(V, generator=generator).float() for _ in range(P)]), top


@law
@hypothesis.given(given_=scores(tied=False))
def test_the_likeliest_are_those_of_topk(given_: tuple[Tensor, int]) -> None:
    logits, top = given_
    values, ids = logit_lens.top_tokens(logits, top)
    plain = logits.topk(min(top, logits.shape[1]))
    assert torch.equal(values, plain.values)
    assert torch.equal(ids, plain.indices)


@law
@hypothesis.given(given_=scores(tied=True))
def test_among_equals_the_likeliest_values_are_those_of_topk(given_: tuple[Tensor, int]) -> None:
    logits, top = given_
    values, ids = logit_lens.top_tokens(logits, top)
    assert torch.equal(values, logits.topk(min(top, logits.shape[1])).values)
    assert torch.equal(values, logits.gather(1, ids))
    assert all(len(set(row)) == len(row) for row in ids.tolist())


@law
@hypothesis.given(given_=scores(tied=True))
@hypothesis.example(given_=(torch.zeros(1, 64 * 40), 5))
def test_of_equals_the_lower_id_is_likelier(given_: tuple[Tensor, int]) -> None:
    logits, top = given_
    assert logit_lens.top_tokens(logits, top)[1].tolist() == [
        sorted(range(len(row)), key=lambda id: (-row[id], id))[:top] for row in logits.tolist()
    ]


@pytest.mark.parametrize("top", [0, -3, 51])
def test_more_guesses_than_can_be_shown_are_refused(small: Checkpoint, top: int) -> None:
    with pytest.raises(OctavoError, match="between 1 and 50"):
        lens.logit_lens(small, "the cat", top=top)


# The next token


def test_what_comes_next_is_the_models_last_row(case: Case) -> None:
    view = lens.next_token(case.loaded, LINE)
    assert_near(view.logits, case.logits()[-1], 1e-4)
    order = np.argsort(-view.logits, kind="stable").tolist()
    assert list(view.vocabulary) == order[:1000]
    assert [view.vocabulary[id] for id in order[:5]] == [
        tokens.make_token(case.loaded.tokenizer, id).label for id in order[:5]
    ]


# Residual


@pytest.mark.parametrize("position", [0, 7, -1])
def test_the_parts_of_the_residual_stream_are_those_of_the_plain_reference(case: Case, position: int) -> None:
    view = lens.contributions(case.loaded, LINE, position=position)
    T = position % len(case.ids)
    assert view.position == T
    plain = {part: each[T] for part, each in case.written.items()}
    named = [(part.name, part.layer, part.head) for part in view.parts]
    assert named == [*plain, *([("ln_f's bias", None, None)] if case.settings.bias else [])]

    stream = case.streams[-1][T]
    scale = torch.sqrt(((stream - stream.mean()) ** 2).mean() + 1e-5)
    gain = case.weights["transformer.ln_f.weight"]
    row = case.weights["transformer.wte.weight"][view.token.id]
    shares = [((each - each.mean()) / scale * gain) @ row for each in plain.values()]
    norms = [each.norm() for each in plain.values()]
    if case.settings.bias:
        shares.append(case.weights["transformer.ln_f.bias"] @ row)
        norms.append(torch.zeros((), dtype=row.dtype))
    assert_near(view.contributions, torch.stack(shares), 1e-4)
    assert_near(view.norms, torch.stack(norms), 1e-4)
    assert_near(view.stream, torch.stack([each[T].norm() for each in case.streams]), 1e-4)

    assert view.logit == pytest.approx(view.contributions.sum(), abs=1e-9)
    assert_near(view.logit, case.logits()[T, view.token.id], 1e-4)
    with torch.inference_mode():
        own = case.model(torch.tensor([case.ids]))[0, T]
    assert abs(view.logit - own[view.token.id].item()) <= 1e-4
    assert own[view.token.id] >= own.max() - 1e-4  # the likeliest


@pytest.mark.parametrize("position", [0, 7, -1])
def test_what_was_written_sums_to_the_residual_stream(case: Case, position: int) -> None:
    T = position % len(case.ids)
    with capture.inference(case.model):
        _, written_ = contributions.residual_contributions(case.model, torch.tensor([case.ids]), T)
        *_, last = capture.walk(case.model, case.model.embed(torch.tensor([case.ids])))
    assert (written_.sum(0) - last.after[0, T]).norm() <= 1e-5 * last.after[0, T].norm()


def test_a_lead_over_another_token_is_the_difference_of_two_residuals(case: Case) -> None:
    one, two, lead = (lens.contributions(case.loaded, LINE, **given) for given in
                      ({"token": "a"}, {"token": "e"}, {"token": "a", "against": "e"}))  # fmt: skip
    assert (one.token.label, one.against, lead.token.label, lead.against.label) == ("a", None, "a", "e")
    assert lead.parts == one.parts
    assert np.abs(lead.contributions - (one.contributions - two.contributions)).max() <= 1e-9
    assert lead.logit == pytest.approx(one.logit - two.logit, abs=1e-9)
    assert lead.norms.tolist() == one.norms.tolist()
    logits = case.logits()[-1]
    assert_near(lead.logit, logits[one.token.id] - logits[two.token.id], 1e-3)


@pytest.mark.parametrize("given", [{"token": "dogs"}, {"against": "dogs"}])
def test_only_one_token_has_a_logit(small: Checkpoint, given: dict[str, str]) -> None:
    with pytest.raises(OctavoError, match="'dogs' is 4 tokens here: d o g s"):
        lens.contributions(small, "the cat", **given)


# Score


def test_surprisal_and_rank_are_those_of_the_plain_reference(case: Case) -> None:
    view = lens.surprisal(case.loaded, LINE)
    shares = case.logits()[:-1].softmax(-1)
    came = torch.tensor(case.ids[1:])
    assert [token.id for token in view.tokens] == case.ids
    assert math.isnan(view.surprisal[0])
    assert view.rank[0] == 0
    assert_near(view.surprisal[1:], -shares[range(len(came)), came].log(), 1e-4)
    own = case.model(torch.tensor([case.ids]))[0, :-1].detach()
    for t, id in enumerate(case.ids[1:]):
        above, level = ((own[t] > own[t, id] + margin).sum().item() for margin in (1e-4, -1e-4))
        assert above < view.rank[t + 1] <= max(level, above + 1)
    likeliest = [tokens.make_token(case.loaded.tokenizer, id).label for id in own.argmax(-1).tolist()]
    assert view.guesses == ["", *likeliest]


@pytest.mark.parametrize("length", [2, 16, 17, 18, 33, 100])
def test_the_mean_of_surprisals_is_the_models_loss_over_any_number_of_windows(small: Checkpoint, length: int) -> None:
    ids = small.tokenizer.encode(TEXT)[:length]
    view, result = lens.surprisal(small, ids), evaluate_tokens(small.model, small.tokenizer, ids)
    assert len(view.tokens) == len(view.surprisal) == len(view.rank) == len(view.guesses) == length
    assert view.surprisal[1:].mean() == pytest.approx(result.loss, abs=1e-6)
    assert view.loss == pytest.approx(result.loss, abs=1e-6)
    assert view.perplexity == pytest.approx(result.perplexity, rel=1e-6)
    assert view.bits_per_byte == pytest.approx(result.bits_per_byte, rel=1e-6)
    weights = weights_of(small.model)
    plain = []
    for begin in range(0, length - 1, 16):
        logits = reference.gpt2(weights, small.settings, torch.from_numpy(ids[begin : begin + 16]))
        plain += [-row.log_softmax(-1)[id].item() for row, id in zip(logits, ids[begin + 1 :], strict=False)]
    assert_near(view.surprisal[1:], plain, 1e-4)


def test_how_many_windows_run_at_once_changes_no_surprisal(small: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = lens.surprisal(small, TEXT)
    monkeypatch.setattr(surprisal, "_AT_ONCE", 1)
    assert_near(lens.surprisal(small, TEXT).surprisal[1:], expected.surprisal[1:], 1e-6)


def test_the_mean_of_surprisals_is_the_loss_of_a_text_of_many_windows(case: Case) -> None:
    """Of a loss above 1 as far as float32 goes, in which it is summed."""
    loss = evaluate_tokens(case.model, case.loaded.tokenizer, case.loaded.tokenizer.encode(TEXT)).loss
    assert lens.surprisal(case.loaded, TEXT).loss == pytest.approx(loss, rel=1e-6, abs=1e-6)


def test_a_model_without_a_head_is_surprised_by_the_log_of_its_vocabulary(tmp_path: Path) -> None:
    loaded = written(tmp_path / "model", "byte")
    loaded.model.transformer.wte.weight.data.zero_()  # tied: every logit is zero
    view = lens.surprisal(loaded, LINE)
    assert np.abs(view.surprisal[1:] - math.log(256)).max() <= 1e-6
    assert set(view.rank[1:].tolist()) == {1}


@pytest.mark.parametrize("view", ["surprisal", "ablation"])
def test_one_token_has_nothing_to_be_foretold_by(small: Checkpoint, view: str) -> None:
    with pytest.raises(OctavoError, match="one token"):
        lens.inspect(small, view, text="a")


# Ablation


def test_without_a_part_loss_and_next_token_are_those_of_a_model_that_lacks_it(case: Case) -> None:
    view = lens.ablation(case.loaded, LINE)
    came = torch.tensor(case.ids[1:])

    def loss(logits: Tensor) -> float:
        return -logits[:-1].log_softmax(-1)[range(len(came)), came].mean().item()

    whole = case.logits()
    assert_near(view.loss, loss(whole), 1e-4)
    assert_near(view.probability, whole[-1].softmax(-1)[view.next.id], 1e-3)
    lacks = {"head": {}, "attention": {"attention": True}, "MLP": {"mlp": True},
             "attention and MLP": {"attention": True, "mlp": True}}  # fmt: skip
    names = [*[("head", h) for h in range(4)], *[(name, None) for name in list(lacks)[1:]]]
    assert [(t.part.layer, t.part.name, t.part.head) for t in view.trials] == [(i, *n) for i in range(4) for n in names]
    for trial in view.trials[1::6]:  # one of each kind, in all layers
        plain = case.without(trial.part.layer, head=trial.part.head, **lacks[trial.part.name])
        assert_near(trial.loss, loss(plain), 1e-4)
        assert trial.change == pytest.approx(trial.loss - view.loss, abs=1e-5)
        assert_near(trial.probability, plain[-1].softmax(-1)[view.next.id], 1e-3)
        assert plain[-1, trial.next.id] >= plain[-1].max() - 1e-3


def test_one_layers_trials_are_those_among_all(small: Checkpoint) -> None:
    whole, some = (lens.ablation(small, "the cat sat", layer=layer) for layer in (None, -1))
    expected = [trial for trial in whole.trials if trial.part.layer == 2]
    assert [trial.part for trial in some.trials] == [trial.part for trial in expected]
    assert [trial.loss for trial in some.trials] == pytest.approx([trial.loss for trial in expected], abs=1e-6)


def test_without_nothing_nothing_changes_to_the_bit(case: Case) -> None:
    idx = torch.tensor([case.ids])
    heads, mlp = torch.ones(1, case.settings.n_head), torch.ones(1)
    with capture.inference(case.model):
        whole = case.model(idx)
        for i, layer in enumerate(capture.walk(case.model, case.model.embed(idx))):
            assert torch.equal(ablation.logits_without(case.model, layer, i, heads, mlp), whole)


def test_how_many_trials_run_at_once_changes_none(small: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = lens.ablation(small, "the cat sat")
    monkeypatch.setattr(ablation, "_AT_ONCE", 1)
    one_by_one = lens.ablation(small, "the cat sat")
    assert [trial.part for trial in one_by_one.trials] == [trial.part for trial in expected.trials]
    # The order of a matmul's float32 sums depends on its number of rows: 1.4e-6 measured on an Intel Xeon.
    assert [t.loss for t in one_by_one.trials] == pytest.approx([t.loss for t in expected.trials], abs=1e-5)
    assert [t.change for t in one_by_one.trials] == pytest.approx([t.change for t in expected.trials], abs=1e-5)


# Losses


def test_losses_are_the_lines_that_training_wrote(trained: Run) -> None:
    lines = trained.lines("metrics")
    view = lens.losses(trained.folder)
    logged, evaluated = ([line for line in lines if line.get(name) is not None] for name in ("loss", "val_loss"))
    assert dict(zip(view.steps.tolist(), view.train.tolist(), strict=True)) == {
        line["step"]: line["loss"] for line in logged
    }
    assert dict(zip(view.val_steps.tolist(), view.val.tolist(), strict=True)) == {
        line["step"]: line["val_loss"] for line in evaluated
    }
    assert len(view.val) >= 2
    assert view.plain() == lens.losses(octavo.load(trained.folder)).plain()


def test_what_belongs_to_no_run_has_no_losses(small: Checkpoint) -> None:
    with pytest.raises(OctavoError, match="belongs to no run"):
        lens.losses(small)


# Verify


def foreign(folder: Path, loaded: Checkpoint, dtype: torch.dtype) -> Path:
    """A checkpoint as older Hugging Face folders have it: no prefix, masks among the weights, the head stored twice."""
    shutil.copytree(loaded.folder, folder)
    for name in ("octavo.json", "manifest.json"):
        (folder / name).unlink()
    tensors = safetensors.torch.load_file(loaded.folder / "model.safetensors")
    stored = {name.removeprefix("transformer."): tensor.to(dtype) for name, tensor in tensors.items()}
    block_size = loaded.settings.block_size
    for layer in range(loaded.settings.n_layer):
        stored[f"h.{layer}.attn.bias"] = torch.ones(1, 1, block_size, block_size).tril()
    stored["lm_head.weight"] = stored["wte.weight"].clone()
    safetensors.torch.save_file(stored, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_every_check_holds_on_a_folder_from_elsewhere(activation: str, dtype: torch.dtype, tmp_path: Path) -> None:
    loaded = written(tmp_path / "model", spread=0.1, activation=activation)
    view = lens.verify(foreign(tmp_path / "foreign", loaded, dtype))
    assert [each for each in view.checks if not each.ok] == []


def test_every_check_holds_on_every_model(case: Case) -> None:
    view = lens.verify(case.loaded)
    assert [each for each in view.checks if not each.ok] == []
    assert view.ok
    assert all(0 <= each.error <= each.tolerance for each in view.checks)
    rows = {each.name.partition(":")[0] for each in view.checks}
    assert rows >= views.VIEWS.keys() - {"projection", "next_token", "losses", "verify"} | {
        "causality",
        "cache",
        "float64",
    }


@pytest.mark.parametrize("spread", [0.5, 1.0])
def test_every_check_holds_however_far_apart_weights_are(spread: float, tmp_path: Path) -> None:
    loaded = written(tmp_path / "model", "byte", spread=spread, bias=False, activation="gelu", n_layer=4, n_head=4,
                     n_embd=256, block_size=48)  # fmt: skip
    assert lens.verify(loaded).ok


# What holds of all views


VIEWS: dict[str, dict[str, Any]] = {
    "shapes": {}, "tokens": {}, "position": {"word": None}, "neighbors": {"word": None, "against": "e"},
    "projection": {"words": ["a"]}, "attention": {}, "next_token": {}, "logit_lens": {},
    "contributions": {"against": "e"}, "surprisal": {}, "ablation": {}, "losses": {}, "verify": {},
}  # fmt: skip
OF_A_TEXT = ("shapes", "tokens", "attention", "next_token", "logit_lens", "contributions", "surprisal", "ablation")
SCRIPT = "<script>alert('&')</script>"


def inspect(loaded: Checkpoint, name: str, text: str, word: str) -> Any:
    given = {key: word if value is None else value for key, value in VIEWS[name].items()}
    return lens.inspect(loaded, name, **given | ({"text": text} if name in OF_A_TEXT else {}))


def test_there_is_nothing_that_is_not_looked_at_here() -> None:
    assert list(VIEWS) == list(lens.VIEWS)


class Page(html.parser.HTMLParser):
    """What a browser would make of it."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_plain_data_text_and_escaped_html(name: str, trained: Run) -> None:
    view = inspect(octavo.load(trained.folder), name, SCRIPT, "<b>")
    values = json.loads(json.dumps(view.plain(), allow_nan=False))
    fields = {each.name for each in dataclasses.fields(view)}
    assert values.keys() == fields | ({"caveat"} if view.caveat else set())
    assert view.caveat in str(view)
    page = Page()
    page.feed(view._repr_html_())
    page.close()
    assert page.open == []
    assert page.tags <= {"table", "caption", "tr", "th", "td", "p", "small", "span"}
    assert page.attributes <= {"style", "title"}
    for table in view.tables():
        assert table.title in page.text
        assert all(len(row) == len(table.columns) for row in table.rows)
        for cell in [cell for row in table.rows for cell in row if isinstance(cell, str)]:
            assert cell in page.text
        assert table.title in str(view)


@pytest.mark.parametrize("name", OF_A_TEXT)
def test_no_text_reaches_a_terminal_that_it_could_command(name: str, small: Checkpoint) -> None:
    shown = str(lens.inspect(small, name, text="a\x1b[31mb\x07\u202ec\r\n"))
    assert shown.replace("\n", "").isprintable()


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """512 positions and a vocabulary of 5,000."""
    return written(tmp_path_factory.mktemp("long") / "model", "byte", block_size=512, vocab_size=5000)


@pytest.mark.parametrize("name", [name for name in VIEWS if name != "losses"])
def test_a_view_of_a_long_text_and_a_large_vocabulary_is_bounded(long: Checkpoint, name: str) -> None:
    view = inspect(long, name, TEXT[:600], "a")
    said = json.dumps(view.plain(), allow_nan=False)
    assert len(said) < 4 << 20
    assert len(str(view)) < 1 << 14
    assert len(view._repr_html_()) < 1 << 20


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_leaves_the_model_as_it_was(name: str, trained: Run) -> None:
    loaded = octavo.load(trained.folder)
    before = {key: value.clone() for key, value in loaded.model.state_dict().items()}
    loaded.model.train()
    first, again = (inspect(loaded, name, "the cat sat", "cat").plain() for _ in range(2))
    assert first == again
    assert loaded.model.training
    assert all(parameter.grad is None for parameter in loaded.model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in loaded.model.state_dict().items())
    assert (
        lens.inspect(
            trained.folder,
            name,
            **VIEWS[name]
            | ({"text": "the cat sat"} if name in OF_A_TEXT else {})
            | ({"word": "cat"} if "word" in VIEWS[name] else {}),
        ).plain()
        == first
    )


@pytest.mark.parametrize("kind", ["byte", "char"])
@pytest.mark.parametrize("block_size", [1, 2])
@pytest.mark.parametrize("name", [name for name in VIEWS if name not in ("losses", "verify")])
def test_the_smallest_of_models_has_every_view(name: str, block_size: int, kind: str, tmp_path: Path) -> None:
    loaded = written(tmp_path / "model", kind, n_layer=1, n_head=1, n_embd=8, block_size=block_size)
    if name == "ablation" and block_size == 1:
        with pytest.raises(OctavoError, match="one token"):
            lens.ablation(loaded, "at")
        return
    if name == "position":
        view: Any = lens.position(loaded, "a", at=(0, -1))
    else:
        view = inspect(loaded, name, "at", "a")
    json.dumps(view.plain(), allow_nan=False)
    assert str(view)
    assert view._repr_html_()


@pytest.mark.parametrize("block_size", [1, 2, 3])
@pytest.mark.parametrize("n_head", [1, 2])
def test_every_check_holds_on_the_smallest_of_models(block_size: int, n_head: int, tmp_path: Path) -> None:
    loaded = written(tmp_path / "model", "byte", n_layer=1, n_head=n_head, n_embd=8, block_size=block_size)
    assert lens.verify(loaded).ok


def test_one_token_is_looked_at_alone(small: Checkpoint) -> None:
    seen = lens.attention(small, "a")
    assert seen.weights.tolist() == [[1.0]]
    assert all((each.entropy, each.distance, each.itself) == (0, 0, 1) for each in seen.heads)
    rows = lens.logit_lens(small, "a")
    assert rows.rank.tolist() == [[0]] * 4
    assert lens.contributions(small, "a").position == 0
    for name in ("shapes", "tokens", "attention", "next_token", "logit_lens", "contributions"):
        view = lens.inspect(small, name, text="a")
        json.dumps(view.plain(), allow_nan=False)
        assert str(view)


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("attention", {"layer": 3}, "layer 3: the layers are 0 to 2"), ("attention", {"layer": -4}, "layer -4"),
        ("attention", {"head": 3}, "head 3: the heads are 0 to 2"), ("attention", {"head": -4}, "head -4"),
        ("shapes", {"layer": 99}, "layer 99"), ("shapes", {"head": 99}, "head 99"),
        ("ablation", {"layer": 3}, "layer 3"), ("ablation", {"layer": -4}, "layer -4"),
        ("contributions", {"position": 6}, "position 6: the positions are 0 to 5"),
        ("contributions", {"position": -7}, "position -7"),
        ("logit_lens", {"positions": [0, 6]}, "position 6"), ("logit_lens", {"positions": [-7]}, "position -7"),
    ],
)  # fmt: skip
def test_what_the_model_does_not_have_is_refused(
    small: Checkpoint, name: str, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(OctavoError, match=said):
        lens.inspect(small, name, text="the cat sat on the mat", **given)


def test_counting_from_the_end_gives_the_same_as_from_the_start(small: Checkpoint) -> None:
    text = "the cat sat on the mat"
    for name, from_end, from_start in (
        ("attention", {"layer": -1, "head": -2}, {"layer": 2, "head": 1}), ("ablation", {"layer": -3}, {"layer": 0}),
        ("contributions", {"position": -1}, {"position": 5}), ("logit_lens", {"positions": [-6]}, {"positions": [0]}),
    ):  # fmt: skip
        one, other = (lens.inspect(small, name, text=text, **given).plain() for given in (from_end, from_start))
        assert one == other


def test_a_view_that_is_not_there_and_an_option_that_it_does_not_take_are_told(small: Checkpoint) -> None:
    with pytest.raises(OctavoError, match="there is no view 'atention'") as caught:
        lens.inspect(small, "atention")
    assert "attention" in str(caught.value.hint)
    with pytest.raises(OctavoError, match="tokens takes no layer") as caught:
        lens.inspect(small, "tokens", layer=1)
    assert "attention" in str(caught.value.hint)
    with pytest.raises(OctavoError, match="attention needs a trained model"):
        lens.inspect(resolve("gpt2-512", vocab_size=50257), "attention")


def test_a_model_in_half_precision_is_refused(small: Checkpoint) -> None:
    half = dataclasses.replace(small, model=written_half(small))
    with pytest.raises(OctavoError, match="the lens looks at float32"):
        lens.attention(half, "the cat")


def written_half(loaded: Checkpoint) -> GPT:
    model = GPT(loaded.model.settings)
    model.load_state_dict(loaded.model.state_dict())
    return model.bfloat16()


def test_broken_weights_are_told(tmp_path: Path) -> None:
    loaded = written(tmp_path / "model", "byte")
    loaded.model.transformer.h[1].mlp.c_fc.weight.data[0, 0] = math.nan
    for name in ("next_token", "logit_lens", "contributions", "surprisal", "ablation", "verify"):
        with pytest.raises(OctavoError, match="weights are broken"):
            inspect(loaded, name, LINE, "a")
