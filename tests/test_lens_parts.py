"""The views `attention`, `contributions` and `ablation`, which show what each part of the model does."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from lenses import LINE, Case, assert_near
from octavo import lens
from octavo.checkpoint import Checkpoint
from octavo.errors import OctavoError
from octavo.lens.ablation import ablate
from octavo.lens.attention import head_statistics
from octavo.lens.capture import attend_by_pattern, inference, logits

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_pattern_of_every_head_matches_the_plain_reference(case: Case) -> None:
    T = len(case.ids)
    for layer in range(case.settings.n_layer):
        for head in range(case.settings.n_head):
            view = lens.attention(case.loaded, LINE, layer=layer, head=head)
            assert (view.layer, view.head) == (layer, head)
            assert [token.id for token in view.tokens] == case.ids
            assert np.abs(view.weights.sum(1) - 1).max() <= 1e-5
            assert (np.triu(view.weights, 1) == 0).all()
            assert view.weights[0].tolist() == [1.0, *[0.0] * (T - 1)]
            assert_near(view.weights, case.attention_pattern(layer, head), 1e-4)


def test_the_statistics_of_every_head_match_its_pattern(case: Case) -> None:
    view = lens.attention(case.loaded, LINE)
    T = len(case.ids)
    assert [(each.layer, each.head) for each in view.heads] == [(i, h) for i in range(4) for h in range(4)]
    for each in view.heads:
        rows = case.attention_pattern(each.layer, each.head).tolist()
        means = [0.0] * 5
        distant = sum(max(rows[t][1 : t - 1]) for t in range(3, T)) / (T - 3)
        assert each.distant == pytest.approx(distant, abs=1e-3)
        for t in range(1, T):
            means[0] -= sum(share * math.log(share) for share in rows[t] if share > 0) / (T - 1)
            means[1] += sum(share * (t - s) for s, share in enumerate(rows[t])) / (T - 1)
            for n, share in ((2, rows[t][t - 1]), (3, rows[t][0]), (4, rows[t][t])):
                means[n] += share / (T - 1)
        assert (each.entropy, each.distance, each.previous, each.first, each.itself) == pytest.approx(means, abs=1e-3)


def test_without_a_head_the_most_telling_one_is_shown(case: Case) -> None:
    view = lens.attention(case.loaded, LINE)
    most = max(view.heads, key=lambda head: head.distant)
    assert (view.layer, view.head) == (most.layer, most.head)
    assert np.array_equal(view.weights, lens.attention(case.loaded, LINE, layer=most.layer, head=most.head).weights)
    in_layer = lens.attention(case.loaded, LINE, layer=2)
    assert in_layer.layer == 2
    assert in_layer.head == max(in_layer.heads[8:12], key=lambda head: head.distant).head


@pytest.mark.parametrize(
    ("habit", "row"),
    [
        ("previous", lambda t: {t - 1: 0.8, t: 0.2}),
        ("first", lambda t: {0: 0.7, t: 0.3}),
        ("itself", lambda t: {t: 1.0}),
        ("distant", lambda t: {max(0, t - 3): 0.9, t: 0.1}),
        ("diffuse", lambda t: dict.fromkeys(range(t + 1), 1 / (t + 1))),
        ("mixed", lambda t: {t: 0.4, t - 1: 0.4, max(0, t - 2): 0.2}),
    ],
)
def test_a_head_is_named_by_its_habit(habit: str, row: Callable[[int], dict[int, float]]) -> None:
    weights = torch.zeros(20, 20)
    weights[0, 0] = 1
    for t in range(1, 20):
        for s, share in row(t).items():
            weights[t, s] += share
    assert head_statistics(0, 0, weights).habit == habit


def test_logits_computed_with_the_shown_pattern_equal_those_of_fused_attention(case: Case) -> None:
    idx = torch.tensor([case.ids])
    with inference(case.model):
        shown = logits(case.model, idx, attend_by_pattern)[0]
        fused = logits(case.model, idx)[0]
    with torch.inference_mode():
        training = case.model(idx)[0]  # with PyTorch's fused kernel
    for expected in (fused, training, case.logits()):
        assert_near(shown, expected, 1e-4)


@pytest.mark.parametrize("position", [0, 7, -1])
def test_contributions_match_the_plain_reference(case: Case, position: int) -> None:
    view = lens.contributions(case.loaded, LINE, position=position)
    t = position % len(case.ids)
    assert view.position == t
    expected = {part: each[t] for part, each in case.added.items()}
    names = [(part.name, part.layer, part.head) for part in view.parts]
    assert names == [*expected, *([("ln_f's bias", None, None)] if case.settings.bias else [])]

    stream = case.streams[-1][t]
    scale = torch.sqrt(((stream - stream.mean()) ** 2).mean() + 1e-5)
    gain = case.weights["transformer.ln_f.weight"]
    row = case.weights["transformer.wte.weight"][view.token.id]
    part_logits = [((each - each.mean()) / scale * gain) @ row for each in expected.values()]
    norms = [each.norm() for each in expected.values()]
    if case.settings.bias:
        part_logits.append(case.weights["transformer.ln_f.bias"] @ row)
        norms.append(torch.zeros((), dtype=row.dtype))
    assert_near(view.contributions, torch.stack(part_logits), 1e-4)
    assert_near(view.norms, torch.stack(norms), 1e-4)
    assert_near(view.stream, torch.stack([each[t].norm() for each in case.streams]), 1e-4)

    assert view.logit == pytest.approx(view.contributions.sum(), abs=1e-9)
    assert_near(view.logit, case.logits()[t, view.token.id], 1e-4)
    with torch.inference_mode():
        own = case.model(torch.tensor([case.ids]))[0, t]
    assert abs(view.logit - own[view.token.id].item()) <= 1e-4
    assert own[view.token.id] >= own.max() - 1e-4  # the most likely token


def test_contributions_against_another_token_are_differences(case: Case) -> None:
    one, two, both = (
        lens.contributions(case.loaded, LINE, **given)
        for given in ({"token": "a"}, {"token": "e"}, {"token": "a", "against": "e"})
    )
    assert (one.token.label, one.against, both.token.label, both.against.label) == ("a", None, "a", "e")
    assert both.parts == one.parts
    assert np.abs(both.contributions - (one.contributions - two.contributions)).max() <= 1e-9
    assert both.logit == pytest.approx(one.logit - two.logit, abs=1e-9)
    assert both.norms.tolist() == one.norms.tolist()
    logits = case.logits()[-1]
    assert_near(both.logit, logits[one.token.id] - logits[two.token.id], 1e-3)


@pytest.mark.parametrize("given", [{"token": "dogs"}, {"against": "dogs"}])
def test_a_text_of_several_tokens_has_no_logit(small: Checkpoint, given: dict[str, str]) -> None:
    with pytest.raises(OctavoError, match="dogs"):
        lens.contributions(small, "the cat", **given)


def test_ablation_matches_a_model_in_which_the_part_is_zero(case: Case) -> None:
    view = lens.ablation(case.loaded, LINE)
    targets = torch.tensor(case.ids[1:])

    def loss(logits: Tensor) -> float:
        return -logits[:-1].log_softmax(-1)[range(len(targets)), targets].mean().item()

    logits = case.logits()
    assert_near(view.loss, loss(logits), 1e-4)
    assert_near(view.probability, logits[-1].softmax(-1)[view.next.id], 1e-3)
    zeroed = {
        "head": {},
        "attention": {"attention": True},
        "MLP": {"mlp": True},
        "attention and MLP": {"attention": True, "mlp": True},
    }
    names = [*[("head", h) for h in range(4)], *[(name, None) for name in list(zeroed)[1:]]]
    assert [(t.part.layer, t.part.name, t.part.head) for t in view.trials] == [(i, *n) for i in range(4) for n in names]
    for trial in view.trials[1::6]:  # one of each kind, in all layers
        expected = case.logits_without(trial.part.layer, head=trial.part.head, **zeroed[trial.part.name])
        assert_near(trial.loss, loss(expected), 1e-4)
        assert trial.change == pytest.approx(trial.loss - view.loss, abs=1e-5)
        assert_near(trial.probability, expected[-1].softmax(-1)[view.next.id], 1e-3)
        assert expected[-1, trial.next.id] >= expected[-1].max() - 1e-3


def test_the_trials_of_one_layer_equal_those_of_all_layers(small: Checkpoint) -> None:
    all_layers, last_layer = (lens.ablation(small, "the cat sat", layer=layer) for layer in (None, -1))
    expected = [trial for trial in all_layers.trials if trial.part.layer == 2]
    assert [trial.part for trial in last_layer.trials] == [trial.part for trial in expected]
    assert [trial.loss for trial in last_layer.trials] == pytest.approx([trial.loss for trial in expected], abs=1e-6)


def test_logits_at_once_does_not_change_the_trials(small: Checkpoint) -> None:
    idx, layers = torch.from_numpy(small.tokenizer.encode("the cat sat"))[None].long(), range(small.settings.n_layer)
    expected, one_by_one = ablate(small.model, idx, layers), ablate(small.model, idx, layers, max_logits_per_batch=1)
    assert [each.part for each in one_by_one] == [each.part for each in expected]
    # The order of a matmul's float32 sums depends on its number of rows: 1.4e-6 measured on an Intel Xeon.
    losses, changes = [each.loss for each in expected], [each.change for each in expected]
    assert [each.loss for each in one_by_one] == pytest.approx(losses, abs=1e-5)
    assert [each.change for each in one_by_one] == pytest.approx(changes, abs=1e-5)
