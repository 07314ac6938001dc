"""Initial weights: sinusoidal positions, and heads that attend to the previous tokens."""

import math

import pytest
import torch

from octavo.model import GPT
from octavo.settings import resolve
from octavo.training import init_weights


def test_products_of_sinusoidal_positions_depend_only_on_their_distance() -> None:
    model = GPT(resolve(n_layer=2, n_head=2, n_embd=16, block_size=12, vocab_size=20))
    init_weights.set_sinusoids(model)
    table = model.transformer.wpe.weight.detach()
    products = table @ table.T
    for distance in range(12):
        diagonal = torch.diagonal(products, distance)
        torch.testing.assert_close(diagonal, diagonal[0].expand_as(diagonal), atol=1e-6, rtol=0)
    assert (products[0, 0] > products[0, 1:]).all()
    assert table.abs().max() <= 0.07 + 1e-6
    assert math.isclose(table.square().mean().sqrt(), 0.07 / math.sqrt(2), rel_tol=1e-5)


@pytest.mark.parametrize(("n_head", "n_embd"), [(4, 128), (2, 64), (1, 6), (3, 9), (2, 2)])
def test_heads_of_the_first_block_start_by_attending_one_two_three_back(n_head: int, n_embd: int) -> None:
    settings = resolve(n_layer=2, n_head=n_head, n_embd=n_embd, block_size=32, vocab_size=20)
    model = GPT(settings, torch.Generator().manual_seed(0))
    second_block = model.transformer.h[1].attn.c_attn.weight.clone()
    values = model.transformer.h[0].attn.c_attn.weight[2 * n_embd :].clone()
    init_weights.set_sinusoids(model)
    init_weights.set_lookback(model)
    assert torch.equal(model.transformer.h[1].attn.c_attn.weight, second_block)
    assert torch.equal(model.transformer.h[0].attn.c_attn.weight[2 * n_embd :], values)
    assert (model.transformer.h[0].attn.c_attn.weight != 0).any(1).all()  # a row of zeros would never learn
    if n_embd // n_head < 32:
        return  # too narrow to distinguish 24 distances
    x = model.embed(torch.zeros(1, 32, dtype=torch.long))
    q, k, _ = model.transformer.h[0].attn.project(model.transformer.h[0].ln_1(x))
    scores = (q @ k.mT)[0]  # (H, T, T)
    for head in range(n_head):
        by_distance = torch.stack([scores[head].diagonal(-distance).mean() for distance in range(24)])
        assert by_distance.argmax() == head + 1
