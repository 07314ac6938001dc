"""Muon and the starts that go with it, held against what they are meant to be."""

import math

import pytest
import torch

from octavo.model import GPT
from octavo.settings import resolve
from octavo.training import init_weights, optimizers
from octavo.training.optimizers.adamw import AdamW
from octavo.training.optimizers.muon import Muon, join_squares, orthogonalize, split_into_squares

SMALL = dict(n_layer=2, n_head=2, n_embd=16, block_size=12, vocab_size=20)


def seeded(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_the_update_keeps_the_directions_and_evens_out_their_sizes() -> None:
    x = seeded(3, 16, 16)
    u, sizes, v = torch.linalg.svd(x)
    assert sizes.max() / sizes.min() > 20
    ours = torch.linalg.svdvals(orthogonalize(x))
    assert 0.3 < ours.min() < ours.max() < 1.3
    # The same singular vectors: in their basis, what came out is diagonal.
    turned = u.mT @ orthogonalize(x) @ v.mT
    torch.testing.assert_close(turned, torch.diag_embed(torch.diagonal(turned, dim1=-2, dim2=-1)), atol=1e-3, rtol=0)


def test_the_size_of_a_gradient_does_not_matter() -> None:
    x = seeded(2, 8, 8)
    torch.testing.assert_close(orthogonalize(1000 * x), orthogonalize(x), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (64, 16), (16, 64), (32, 48)])
def test_what_is_cut_into_squares_is_joined_again(shape: tuple[int, int]) -> None:
    matrix = seeded(*shape)
    squares = split_into_squares(matrix, 16)
    assert squares.shape == (shape[0] * shape[1] // 256, 16, 16)
    assert torch.equal(join_squares(squares, matrix.shape), matrix)
    assert torch.equal(squares[0], matrix[:16, :16])


def test_a_step_is_nesterov_momentum_made_orthogonal_and_decoupled_decay() -> None:
    first, second = seeded(16, 16), seeded(16, 16).mT.contiguous()
    matrix = torch.nn.Parameter(seeded(16, 16).clone())
    start = matrix.detach().clone()
    muon = Muon([matrix], lr=0.1, weight_decay=0.5, momentum=0.9)
    mean = torch.zeros(16, 16)
    expected = start
    for gradient in (first, second):
        matrix.grad = gradient.clone()
        muon.step()
        mean = 0.9 * mean + 0.1 * gradient
        ahead = 0.1 * gradient + 0.9 * mean
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * orthogonalize(ahead[None])[0]
    torch.testing.assert_close(matrix.detach(), expected, atol=1e-5, rtol=0)


def test_adamw_is_pytorchs() -> None:
    ours, theirs = ([torch.nn.Parameter(seeded(5, 3).clone()), torch.nn.Parameter(seeded(4).clone())] for _ in range(2))
    groups = [{"params": [p], "weight_decay": d} for p, d in zip(theirs, (0.3, 0.0), strict=True)]
    reference = torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.9))
    groups = [{"params": [p], "weight_decay": d} for p, d in zip(ours, (0.3, 0.0), strict=True)]
    mine = AdamW(groups, lr=0.01, betas=(0.8, 0.9), fused=True)
    for step in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.sin(a.detach() * (step + 1))
            b.grad = torch.sin(b.detach() * (step + 1))
        mine.step()
        reference.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_muon_has_the_blocks_matrices_and_adamw_all_the_rest() -> None:
    model = GPT(resolve(**SMALL))
    muon, adamw = optimizers.build_optimizers(model, resolve(weight_decay=0.3))
    names = {id(p): name for name, p in model.named_parameters()}
    by_muon = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    by_adamw = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert by_muon == {n for n in names.values() if n.endswith(("attn.weight", "proj.weight", "fc.weight"))}
    assert by_muon | by_adamw == set(names.values())
    assert not by_muon & by_adamw


def test_the_positions_start_as_turns_that_depend_on_the_distance_alone() -> None:
    model = GPT(resolve(**SMALL))
    init_weights.set_sinusoids(model)
    table = model.transformer.wpe.weight.detach()
    alike = table @ table.T
    for distance in range(12):
        along = torch.diagonal(alike, distance)
        torch.testing.assert_close(along, along[0].expand_as(along), atol=1e-6, rtol=0)
    assert (alike[0, 0] > alike[0, 1:]).all()
    assert table.abs().max() <= 0.07 + 1e-6
    assert math.isclose(table.square().mean().sqrt(), 0.07 / math.sqrt(2), rel_tol=1e-5)


@pytest.mark.parametrize(("n_head", "n_embd"), [(4, 128), (2, 64), (1, 6), (3, 9), (2, 2)])
def test_the_first_layers_heads_start_by_looking_one_two_three_back(n_head: int, n_embd: int) -> None:
    model = GPT(
        resolve(n_layer=2, n_head=n_head, n_embd=n_embd, block_size=32, vocab_size=20), torch.Generator().manual_seed(0)
    )
    second = model.transformer.h[1].attn.c_attn.weight.clone()
    values = model.transformer.h[0].attn.c_attn.weight[2 * n_embd :].clone()
    init_weights.set_sinusoids(model)
    init_weights.set_lookback(model)
    assert torch.equal(model.transformer.h[1].attn.c_attn.weight, second)
    assert torch.equal(model.transformer.h[0].attn.c_attn.weight[2 * n_embd :], values)
    assert (model.transformer.h[0].attn.c_attn.weight != 0).any(1).all()  # a row of zeros would never learn
    if n_embd // n_head < 32:
        return  # too narrow to tell many distances apart
    x = model.embed(torch.zeros(1, 32, dtype=torch.long))
    q, k, _ = model.transformer.h[0].attn.project(model.transformer.h[0].ln_1(x))
    scores = (q @ k.mT)[0]  # (H, T, T)
    for head in range(n_head):
        by_distance = torch.stack([scores[head].diagonal(-distance).mean() for distance in range(24)])
        assert by_distance.argmax() == head + 1
