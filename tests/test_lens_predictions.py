"""The views `next_token`, `logit_lens` and `surprisal` against the plain reference."""

import math
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from torch import Tensor

import reference
from lenses import LINE, TEXT, Case, assert_near, float64_weights, random_checkpoint
from octavo import lens
from octavo.checkpoint import Checkpoint
from octavo.errors import OctavoError
from octavo.evaluation import evaluate_tokens
from octavo.lens.capture import inference, run_blocks
from octavo.lens.logit_lens import top_tokens
from octavo.lens.surprisal import token_surprisals
from octavo.lens.tokens import make_token

pytestmark = pytest.mark.usefixtures("one_thread")
law = hypothesis.settings(derandomize=True, deadline=None, max_examples=30)


def test_next_token_is_the_last_row_of_the_models_logits(case: Case) -> None:
    view = lens.next_token(case.loaded, LINE)
    assert_near(view.logits, case.logits()[-1], 1e-4)
    order = np.argsort(-view.logits, kind="stable").tolist()
    assert list(view.vocabulary) == order[:1000]
    assert [view.vocabulary[id] for id in order[:5]] == [
        make_token(case.loaded.tokenizer, id).label for id in order[:5]
    ]


def test_every_row_of_the_logit_lens_is_normalized_separately(case: Case) -> None:
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
        targets = torch.tensor(case.ids[1:])[:, None]
        assert_near(view.surprisal[stage, :-1], -shares[:-1].gather(1, targets)[:, 0].log(), 1e-4)
        with inference(case.model):  # in float32, because near ties may rank either way
            own_logits = stage_logits(case, stage)[:-1]
        assert view.rank[stage, :-1].tolist() == (1 + (own_logits > own_logits.gather(1, targets)).sum(1)).tolist()
        assert math.isnan(view.surprisal[stage, -1])
        assert view.rank[stage, -1] == 0
    assert set(view.vocabulary) == set(view.ids.flatten().tolist())
    assert all(view.vocabulary[id] == make_token(case.loaded.tokenizer, id).label for id in view.vocabulary)


def stage_logits(case: Case, stage: int) -> Tensor:
    """The model's float32 logits (T, V) at a stage."""
    x = case.model.embed(torch.tensor([case.ids]))
    after = [x, *(layer.resid_post for layer in run_blocks(case.model, x))]
    return case.model.unembed(case.model.norm(after[stage]))[0]


@pytest.mark.parametrize("positions", [[0], [-1], [5, 2, 5], [-2, 0], []])
def test_rows_of_chosen_positions_equal_those_of_all_positions(small: Checkpoint, positions: list[int]) -> None:
    text = "the cat sat on the mat"
    all_rows, rows = lens.logit_lens(small, text), lens.logit_lens(small, text, positions=positions)
    chosen = [each % len(all_rows.tokens) for each in positions]
    assert rows.positions == chosen
    assert rows.ids.tolist() == all_rows.ids[:, chosen].tolist()
    for name in ("probabilities", "entropy", "surprisal", "rank"):
        assert np.allclose(getattr(rows, name), getattr(all_rows, name)[:, chosen], rtol=0, atol=1e-6, equal_nan=True)


def test_the_last_row_of_the_logit_lens_equals_the_view_surprisal(case: Case) -> None:
    rows, view = lens.logit_lens(case.loaded, LINE), lens.surprisal(case.loaded, LINE)
    assert_near(rows.surprisal[-1, :-1], view.surprisal[1:], 1e-5)
    assert rows.rank[-1, :-1].tolist() == view.rank[1:].tolist()


@st.composite
def logits_and_top(draw: st.DrawFn, has_ties: bool) -> tuple[Tensor, int]:
    """Logits (P, V). From some vocabulary size on, `top_tokens` compares groups of ids; V is below or above it."""
    P, V, top = draw(st.integers(1, 3)), draw(st.integers(1, 1500)), draw(st.integers(1, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    if has_ties:
        return torch.randint(draw(st.integers(1, 9)), (P, V), generator=generator).float(), top
    return torch.stack([torch.randperm(V, generator=generator).float() for _ in range(P)]), top


@law
@hypothesis.given(example=logits_and_top(has_ties=False))
def test_top_tokens_match_topk(example: tuple[Tensor, int]) -> None:
    logits, top = example
    values, ids = top_tokens(logits, top)
    expected = logits.topk(min(top, logits.shape[1]))
    assert torch.equal(values, expected.values)
    assert torch.equal(ids, expected.indices)


@law
@hypothesis.given(example=logits_and_top(has_ties=True))
def test_top_values_match_topk_with_ties(example: tuple[Tensor, int]) -> None:
    logits, top = example
    values, ids = top_tokens(logits, top)
    assert torch.equal(values, logits.topk(min(top, logits.shape[1])).values)
    assert torch.equal(values, logits.gather(1, ids))
    assert all(len(set(row)) == len(row) for row in ids.tolist())


@law
@hypothesis.given(example=logits_and_top(has_ties=True))
@hypothesis.example(example=(torch.zeros(1, 64 * 40), 5))
def test_ties_are_ordered_by_id(example: tuple[Tensor, int]) -> None:
    logits, top = example
    assert top_tokens(logits, top)[1].tolist() == [
        sorted(range(len(row)), key=lambda id: (-row[id], id))[:top] for row in logits.tolist()
    ]


@pytest.mark.parametrize("top", [0, -3, 51])
def test_top_outside_its_range_is_an_error(small: Checkpoint, top: int) -> None:
    with pytest.raises(OctavoError, match="between 1 and 50"):
        lens.logit_lens(small, "the cat", top=top)


def test_surprisal_and_rank_match_the_plain_reference(case: Case) -> None:
    view = lens.surprisal(case.loaded, LINE)
    shares = case.logits()[:-1].softmax(-1)
    targets = torch.tensor(case.ids[1:])
    assert [token.id for token in view.tokens] == case.ids
    assert math.isnan(view.surprisal[0])
    assert view.rank[0] == 0
    assert_near(view.surprisal[1:], -shares[range(len(targets)), targets].log(), 1e-4)
    own_logits = case.model(torch.tensor([case.ids]))[0, :-1].detach()
    for t, id in enumerate(case.ids[1:]):
        low, high = ((own_logits[t] > own_logits[t, id] + margin).sum().item() for margin in (1e-4, -1e-4))
        assert low < view.rank[t + 1] <= max(high, low + 1)
    predictions = [make_token(case.loaded.tokenizer, id).label for id in own_logits.argmax(-1).tolist()]
    assert view.predictions == ["", *predictions]


@pytest.mark.parametrize("length", [2, 16, 17, 18, 33, 100])
def test_the_mean_surprisal_is_the_loss_over_any_number_of_sequences(small: Checkpoint, length: int) -> None:
    ids = small.tokenizer.encode(TEXT)[:length]
    view, result = lens.surprisal(small, ids), evaluate_tokens(small.model, small.tokenizer, ids)
    assert len(view.tokens) == len(view.surprisal) == len(view.rank) == len(view.predictions) == length
    assert view.surprisal[1:].mean() == pytest.approx(result.loss, abs=1e-6)
    assert view.loss == pytest.approx(result.loss, abs=1e-6)
    assert view.perplexity == pytest.approx(result.perplexity, rel=1e-6)
    assert view.bits_per_byte == pytest.approx(result.bits_per_byte, rel=1e-6)
    weights = float64_weights(small.model)
    exact = []
    for start in range(0, length - 1, 16):
        logits = reference.gpt2(weights, small.settings, torch.from_numpy(ids[start : start + 16]))
        exact += [-row.log_softmax(-1)[id].item() for row, id in zip(logits, ids[start + 1 :], strict=False)]
    assert_near(view.surprisal[1:], exact, 1e-4)


def test_logits_at_once_does_not_change_the_surprisals(small: Checkpoint) -> None:
    ids = small.tokenizer.encode(TEXT)
    expected, _, _ = token_surprisals(small.model, ids)
    nats, _, _ = token_surprisals(small.model, ids, max_logits_per_batch=1)
    assert_near(nats, expected, 1e-6)


def test_the_mean_surprisal_is_the_loss_of_a_long_text(case: Case) -> None:
    """The tolerance is that of float32, in which the loss is summed."""
    loss = evaluate_tokens(case.model, case.loaded.tokenizer, case.loaded.tokenizer.encode(TEXT)).loss
    assert lens.surprisal(case.loaded, TEXT).loss == pytest.approx(loss, rel=1e-6, abs=1e-6)


def test_with_equal_logits_every_surprisal_is_the_log_of_the_vocabulary(tmp_path: Path) -> None:
    loaded = random_checkpoint(tmp_path / "model", "byte")
    loaded.model.transformer.wte.weight.data.zero_()  # tied: every logit is zero
    view = lens.surprisal(loaded, LINE)
    assert np.abs(view.surprisal[1:] - math.log(257)).max() <= 1e-6
    assert set(view.rank[1:].tolist()) == {1}


@pytest.mark.parametrize("view", ["surprisal", "ablation"])
def test_a_text_of_one_token_is_an_error(small: Checkpoint, view: str) -> None:
    with pytest.raises(OctavoError, match="one token"):
        lens.inspect(small, view, text="a")
