"""int8 weights: how they are rounded, that both decoders use the rounded weights, and that the loss hardly changes."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import octavo
from generating import SHAPES, decode, random_ids, random_model
from octavo.checkpoint import Checkpoint
from octavo.data import pydocs
from octavo.errors import OctavoError
from octavo.generation import native
from octavo.generation.backends import create_decoder
from octavo.generation.engine import Engine
from octavo.generation.int8 import input_gains, linears_with_norms, output_factors, round_to_int8
from octavo.generation.torch_decoder import TorchDecoder
from octavo.loss import split_loss
from octavo.model import GPT, LayerCache


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_rounding_errors_are_at_most_half_a_127th_of_the_largest_weight_of_an_output(shape: dict[str, Any]) -> None:
    model = random_model(**shape)
    ids = random_ids(model.settings.block_size, model.settings.vocab_size)
    rounded_model = round_to_int8(model)
    with torch.no_grad():
        rounded, exact = rounded_model(torch.tensor([ids]))[0], model(torch.tensor([ids]))[0]
    torch_decoder, _ = create_decoder(model, 1, "int8", use_native=False)
    assert (decode(torch_decoder, ids) - rounded).abs().max() < 1e-3
    assert 1e-4 < (rounded - exact).abs().max() < 1.5
    linears = zip(linears_with_norms(rounded_model), linears_with_norms(model), input_gains(model), strict=True)
    for (ours, _), (linear, norm), gain in linears:
        assert norm is None or torch.equal(gain, norm.weight)
        errors = ((ours.weight - linear.weight) * gain).abs().amax(1)
        assert (errors <= (linear.weight * gain).abs().amax(1) / 127 * 0.501).all()


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
@torch.no_grad()
def test_the_c_code_rounds_weights_keys_and_values_as_the_model_in_pytorch(
    shape: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(**shape)
    ids = random_ids(model.settings.block_size, model.settings.vocab_size)
    rounded_model = round_to_int8(model)
    gains, factors = list(input_gains(model)), list(output_factors(model))
    for i, block in enumerate(rounded_model.transformer.h):
        block.attn.c_attn.weight *= factors[4 * i][:, None]
        if block.attn.c_attn.bias is not None:
            block.attn.c_attn.bias *= factors[4 * i]
        block.attn.c_proj.weight *= gains[4 * i + 1]
    rounded = rounded_model(torch.tensor([ids]))[0]
    assert (rounded - round_to_int8(model)(torch.tensor([ids]))[0]).abs().max() < 1e-3  # the same function
    extend = LayerCache.extend
    monkeypatch.setattr(LayerCache, "extend", lambda cache, k, v: extend(cache, round_heads(k), round_heads(v)))
    expected = decode(TorchDecoder(rounded_model, 1), ids)
    rounding = (expected - rounded).abs().mean()
    # The C code also rounds inputs to int16, which may move a key or a value to the next of the 255 numbers.
    error = (decode(native.NativeDecoder(model, 1, int8=True), ids) - expected).abs().mean()
    assert error < rounding / 5


def round_heads(x: Tensor) -> Tensor:
    """Keys or values (B, H, T, D) as int8 represents them, with one scale for the D numbers of each."""
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (x / scale).round() * scale


def scale_channels(model: GPT) -> None:
    """Multiply some channels of the layer norms and divide the weights after them: the same function."""
    for linear, norm in linears_with_norms(model):
        if norm is not None and norm is not model.transformer.ln_f:
            for channel, factor in ((3, 100.0), (17, 1000.0), (40, -50.0)):
                norm.weight[channel] *= factor
                if norm.bias is not None:
                    norm.bias[channel] *= factor
                linear.weight[:, channel] /= factor


@torch.no_grad()
def test_outlier_channels_of_a_norm_do_not_increase_the_error() -> None:
    model = random_model(**SHAPES["even"])
    idx = torch.tensor([random_ids(64, 64)])
    exact = model(idx)
    error = (round_to_int8(model)(idx) - exact).abs().mean()
    scale_channels(model)
    assert torch.allclose(model(idx), exact, atol=1e-3)
    assert (round_to_int8(model)(idx) - exact).abs().mean() < 1.2 * error


@torch.no_grad()
def test_a_norm_with_zero_gain_is_not_divided_by() -> None:
    model = random_model(**SHAPES["even"])
    model.transformer.ln_f.weight.zero_()
    assert torch.isfinite(round_to_int8(model)(torch.tensor([random_ids(64, 64)]))).all()


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["attn.c_attn.weight", "attn.c_attn.bias", "ln_1.weight", "attn.c_proj.weight"])
@pytest.mark.parametrize("row", [0, 64, 128], ids=["query", "key", "value"])
@torch.no_grad()
def test_a_broken_weight_gives_logits_that_are_not_finite(name: str, value: float, row: int) -> None:
    model = random_model(**SHAPES["even"])
    weight = model.transformer.h[0].get_parameter(name)
    weight[row % len(weight)] = value
    assert not decode(native.NativeDecoder(model, 1, int8=True), [1, 2, 3]).isfinite().all()


def test_an_unknown_quantization_or_a_device_that_is_no_cpu_raises() -> None:
    with pytest.raises(OctavoError, match="quantize='int4'"):
        Engine(random_model(), 1, quantize="int4")
    with pytest.raises(OctavoError, match="CPU only"):
        Engine(random_model().to("meta"), 1, quantize="int8")


# A trained model


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A small model after a few seconds of training."""
    return octavo.load(octavo.train("pydocs", preset="quick", max_steps=60, out=tmp_path_factory.mktemp("run")).folder)


def no_outliers(model: GPT) -> None:
    pass


def large_values(model: GPT) -> None:
    """Multiply some value columns and divide the output projection by the same factor: the same function."""
    C = model.settings.n_embd
    for block in model.transformer.h:
        for channel in (5, 30, 70):
            block.attn.c_attn.weight[2 * C + channel] *= 100
            block.attn.c_attn.bias[2 * C + channel] *= 100
            block.attn.c_proj.weight[:, channel] /= 100


def large_weights(model: GPT) -> None:
    """Multiply one weight in a thousand by twenty: another function."""
    generator = torch.Generator().manual_seed(0)
    for linear, _ in linears_with_norms(model):
        linear.weight[torch.rand(linear.weight.shape, generator=generator) < 0.001] *= 20


@pytest.mark.parametrize("outliers", [no_outliers, scale_channels, large_values, large_weights])
@torch.no_grad()
def test_int8_changes_the_loss_by_less_than_0_02_even_with_outliers(
    outliers: Callable[[GPT], None], trained: Checkpoint
) -> None:
    model = copy.deepcopy(trained.model)
    model.tie()
    outliers(model)
    ids = trained.tokenizer.encode(pydocs.text()[-20_000:]).astype(np.uint16)
    block_size = model.settings.block_size
    loss = split_loss(model, ids, block_size)
    assert loss < 4.5  # 4.9 before training: it has learned, so rounding has something to spoil
    assert 1e-6 < abs(split_loss(round_to_int8(model), ids, block_size) - loss) < 0.02

    decoder = native.NativeDecoder(model, 1, int8=True)
    starts = range(0, len(ids) - block_size, block_size)
    losses: list[Tensor] = []
    for start in starts:
        window = ids[start : start + block_size + 1].astype(np.int64)
        losses.append(F.cross_entropy(decode(decoder, window[:-1].tolist()), torch.from_numpy(window[1:])))
    loss = split_loss(model, ids[: len(starts) * block_size + 1], block_size)
    assert 1e-6 < abs(torch.stack(losses).mean() - loss) < 0.02
