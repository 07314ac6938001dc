"""The training step in C computes what autograd computes through the model."""

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from octavo import kernels
from octavo.device import Runtime
from octavo.fused_step import FusedStep, forward_loss
from octavo.kernels.training import Dropout, has_fused_attention
from octavo.loss import split_loss
from octavo.model import GPT, Block
from octavo.native_library import UnavailableError
from octavo.settings import resolve
from octavo.training.step import Trainer
from small_runs import SMALL

CPU = Runtime(torch.device("cpu"))
SEED = 3
SHAPES = [  # whole vectors of 16 numbers, parts of vectors, one head, one position
    dict(n_layer=2, n_head=2, n_embd=32, T=16, B=3, vocab_size=65),
    dict(n_layer=1, n_head=3, n_embd=21, T=7, B=5, vocab_size=33),
    dict(n_layer=3, n_head=1, n_embd=48, T=33, B=2, vocab_size=100),
    dict(n_layer=1, n_head=4, n_embd=8, T=1, B=1, vocab_size=2),
    # Attention by matmuls: a sequence too long for the fused one, a head too wide, and in bf16 both together.
    dict(n_layer=2, n_head=2, n_embd=6, T=129, B=2, vocab_size=20),
    dict(n_layer=1, n_head=1, n_embd=130, T=5, B=2, vocab_size=20),
    dict(n_layer=1, n_head=1, n_embd=65, T=64, B=2, vocab_size=20),
    # The largest sequence and head of the fused one.
    dict(n_layer=1, n_head=2, n_embd=256, T=128, B=1, vocab_size=20),
]


def random_model(shape: dict[str, int], **changes: object) -> GPT:
    """A model with two positions more than needed, and weights large enough for all its parts to matter."""
    sizes = {name: size for name, size in shape.items() if name not in "TB"} | {"block_size": shape["T"] + 2}
    generator = torch.Generator().manual_seed(1)
    model = GPT(resolve(**{**SMALL, **sizes, **changes}), generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def random_ids(shape: dict[str, int]) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(shape["vocab_size"], (shape["B"], shape["T"] + 1), generator=generator)


def autograd_gradients(model: GPT, ids: Tensor, start: int = 0, autocast: bool = False) -> dict[str, Tensor]:
    """The gradients of the mean loss, and the loss, by the plain path: in float64, or in bf16 under autocast."""
    plain = GPT(model.settings)
    plain.load_state_dict(model.state_dict())
    plain.to(torch.float32 if autocast else torch.float64)
    for number, module in enumerate(m for m in plain.modules() if isinstance(m, nn.Dropout)):
        module.register_forward_hook(lambda module, inputs, y, n=number: drop(inputs[0], module.p, n))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = plain.unembed(plain.norm(plain.blocks(plain.embed(ids[:, :-1], start))))
    loss = F.cross_entropy((logits.float() if autocast else logits).flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    return {name: cast(Tensor, p.grad) for name, p in plain.named_parameters()} | {"loss": loss.detach()}


def drop(x: Tensor, p: float, number: int) -> Tensor:
    """Dropout as training.c does it, in NumPy: each row and column is hashed with the key."""
    if not p:
        return x
    dropout = Dropout(p)
    dropout.set_seed(SEED, number, 0)
    rows, columns = np.arange(x.size(0) * x.size(1), dtype=np.uint32), np.arange(x.size(2), dtype=np.uint32)
    keys = mix(mix(rows ^ np.uint32(dropout.key[0])) ^ np.uint32(dropout.key[1]))
    bits = mix(columns * np.uint32(0x9E3779B9) + keys[:, None])
    keep = torch.from_numpy(bits >= dropout.threshold).view(x.shape)
    return x * keep / (1 - p)


def mix(x: np.ndarray) -> np.ndarray:
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    return x ^ (x >> np.uint32(16))


def fused_gradients(
    model: GPT, ids: Tensor, start: int = 0, bf16: bool = False, rows: int = 100, step: FusedStep | None = None
) -> dict[str, Tensor]:
    """The same by the fused step, in micro-batches of `rows` sequences."""
    step, scale = step or FusedStep(model, bf16), 1 / ids[:, 1:].numel()
    model.zero_grad()
    step.refresh()
    loss = torch.zeros(())
    for first, part in zip(range(0, len(ids), rows), ids.split(rows), strict=True):
        loss += scale * step.accumulate_gradients(part, start, scale, SEED, first)
    return {name: cast(Tensor, p.grad).clone() for name, p in model.named_parameters()} | {"loss": loss}


def relative_errors(values: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    assert values.keys() == expected.keys()
    return {
        name: float((values[name] - expected[name]).double().norm() / expected[name].double().norm().clamp(min=1e-9))
        for name in values
    }


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("activation", ["gelu_new", "gelu"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradients_are_those_of_autograd_in_float64(
    shape: dict[str, int], bias: bool, activation: str
) -> None:
    model, ids = random_model(shape, bias=bias, activation=activation), random_ids(shape)
    for start, rows in ((0, 100), (2, 2)):
        errors = relative_errors(fused_gradients(model, ids, start, rows=rows), autograd_gradients(model, ids, start))
        assert max(errors.values()) < 3e-6, errors


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_the_loss_of_an_evaluation_is_the_models_without_dropout(shape: dict[str, int], bias: bool) -> None:
    model = random_model(shape, dropout=0.5, bias=bias)
    tokens = random_ids(shape | {"B": 1, "T": 5 * shape["T"] + shape["T"] // 2})[0].numpy()  # the last is shorter
    fused = split_loss(model, tokens, shape["T"], tokens_per_batch=2 * shape["T"])
    assert forward_loss(model) is not None
    assert fused == pytest.approx(split_loss(model.double(), tokens, shape["T"]), abs=1e-6)


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape["T"] > 1])
def test_bf16_is_as_near_to_float64_as_autocast(shape: dict[str, int]) -> None:
    model, ids = random_model(shape), random_ids(shape)
    exact = autograd_gradients(model, ids)
    errors = relative_errors(fused_gradients(model, ids, bf16=True, rows=2), exact)
    errors_of_autocast = relative_errors(autograd_gradients(model, ids, autocast=True), exact)
    # Attention by matmuls rounds the scores to bf16, unlike autocast's kernel.
    is_fused = has_fused_attention(shape["T"], shape["n_embd"] // shape["n_head"], bf16=True)
    assert sum(errors.values()) < (1.1 if is_fused else 1.5) * sum(errors_of_autocast.values())


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("shape", SHAPES[:2])
def test_dropout_drops_the_same_elements_forward_and_backward_whatever_the_micro_batch(shape: dict[str, int]) -> None:
    model, ids = random_model(shape, dropout=0.3), random_ids(shape)
    expected = autograd_gradients(model, ids)
    for rows in (1, 2, 100):
        errors = relative_errors(fused_gradients(model, ids, rows=rows), expected)
        assert max(errors.values()) < 3e-6, errors
    assert max(relative_errors(autograd_gradients(random_model(shape), ids), expected).values()) > 0.1


@pytest.mark.parametrize("p", [0.01, 0.5, 0.9])
def test_dropout_drops_a_share_p_in_every_row_and_column(p: float) -> None:
    x = torch.ones(1, 2000, 500, dtype=torch.float64)
    kept = [drop(x, p, number)[0] > 0 for number in range(2)]
    for dim, count in ((0, 2000), (1, 500)):
        deviations = (kept[0].double().mean(dim) - (1 - p)) / (p * (1 - p) / count) ** 0.5
        assert deviations.abs().max() < 5
        assert 0.8 < deviations.std() < 1.2
    both = (kept[0] & kept[1]).double().mean()
    assert abs(both - (1 - p) ** 2) < 5 * (0.25 / 1e6) ** 0.5


@pytest.mark.parametrize("bf16", [True, False])
def test_gradients_have_the_same_bits_in_any_number_of_threads(bf16: bool) -> None:
    shape = dict(n_layer=2, n_head=3, n_embd=96, T=64, B=20, vocab_size=65)
    model, ids = random_model(shape, dropout=0.1), random_ids(shape)
    results = []
    for threads in (1, 2, 3, 4):
        with kernels.one_thread():  # restores the number of threads
            torch.set_num_threads(threads)
            results.append(fused_gradients(model, ids, bf16=bf16))
    for name in results[0]:
        assert all(torch.equal(result[name], results[0][name]) for result in results), name


@settings(max_examples=20, deadline=None)
@given(shapes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 12)), min_size=2, max_size=5), bf16=st.booleans())
def test_batches_of_changing_shapes_share_their_memory(shapes: Sequence[tuple[int, int]], bf16: bool) -> None:
    model = random_model(dict(n_layer=1, n_head=2, n_embd=20, T=12, B=1, vocab_size=30))
    step = FusedStep(model, bf16)
    for B, T in shapes:
        ids = random_ids(dict(B=B, T=T, vocab_size=30))
        values = fused_gradients(model, ids, rows=2, step=step)
        expected = fused_gradients(model, ids, rows=2, bf16=bf16)
        for name in values:
            assert torch.equal(values[name], expected[name]), name


def test_the_parts_of_every_weights_gradient_fit_into_their_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = dict(n_layer=1, n_head=1, n_embd=32, T=64, B=32, vocab_size=65)
    model, ids = random_model(shape), random_ids(shape)
    expected = autograd_gradients(model, ids)
    for most in (1000, 5000, 7000, 10_000, 13_000):  # elements; the widest matrix does not have the largest parts
        monkeypatch.setattr("octavo.fused_step._MAX_ELEMENTS_OF_ALL_PARTS", most)
        assert max(relative_errors(fused_gradients(model, ids), expected).values()) < 3e-6


def untie(model: GPT) -> None:
    model.lm_head.weight = nn.Parameter(2 * model.lm_head.weight.detach())


def transpose_a_weight(model: GPT) -> None:
    c_fc = cast(Block, model.transformer.h[0]).mlp.c_fc
    c_fc.weight = nn.Parameter(c_fc.weight.detach().T.contiguous().T)


def expand_a_gain(model: GPT) -> None:
    model.transformer.ln_f.weight = nn.Parameter(torch.ones(1).expand(len(model.transformer.ln_f.weight)))


def convert_to_float64(model: GPT) -> None:
    model.double()


@pytest.mark.parametrize("change", [untie, transpose_a_weight, expand_a_gain, convert_to_float64])
def test_weights_that_the_c_code_cannot_read_run_in_pytorch(change: Callable[[GPT], None]) -> None:
    shape = SHAPES[0]
    model, tokens = random_model(shape), random_ids(shape).flatten().numpy().astype(np.int64)
    change(model)
    assert forward_loss(model) is None
    with pytest.raises(UnavailableError, match="the C code needs"):
        FusedStep(model, bf16=False)
    x, y = torch.from_numpy(tokens[:-1]), torch.from_numpy(tokens[1:])
    count = min(len(x), model.settings.block_size)
    with torch.no_grad():
        expected = F.cross_entropy(model(x[None, :count])[0], y[:count])
    assert split_loss(model, tokens[: count + 1], count) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("id", [-1, 10**9])
def test_an_id_outside_of_the_vocabulary_is_an_error(id: int) -> None:
    shape = SHAPES[0]
    ids = random_ids(shape)
    ids[0, 1] = id
    loss = forward_loss(random_model(shape))
    assert loss is not None
    with pytest.raises(IndexError, match=str(id)):
        loss(ids)


def test_weights_that_are_replaced_are_read() -> None:
    model, ids = random_model(SHAPES[0]), random_ids(SHAPES[0])
    step = FusedStep(model, bf16=False)
    before = fused_gradients(model, ids, step=step)
    other = {name: 2 * value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(other, assign=True)
    model.tie()
    model.requires_grad_()
    after = fused_gradients(model, ids, step=step)
    assert after["loss"] != before["loss"]
    assert max(relative_errors(after, autograd_gradients(model, ids)).values()) < 3e-6


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_give_a_loss_that_is_not(value: float, bf16: bool) -> None:
    for name in ("transformer.wte.weight", "transformer.h.0.mlp.c_fc.weight", "transformer.h.0.ln_1.bias"):
        model, ids = random_model(SHAPES[0]), random_ids(SHAPES[0])
        with torch.no_grad():
            dict(model.named_parameters())[name].fill_(value)
        assert not fused_gradients(model, ids, bf16=bf16)["loss"].isfinite()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_with_and_without_the_c_code_learns_alike(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise UnavailableError("no compiler")

    losses = []
    for has_compiler in (True, False):
        if not has_compiler:
            monkeypatch.setattr("octavo.kernels.training.load_library", fail)
        chosen = resolve(**{**SMALL, "vocab_size": 20, "max_steps": 40, "optimizer": "muon", "precision": precision})
        trainer = Trainer(
            GPT(chosen, torch.Generator().manual_seed(0)), chosen, Runtime(torch.device("cpu"), precision=precision)
        )
        assert (trainer.fused_step is not None) == has_compiler
        assert len(trainer.take_notices()) == (not has_compiler)
        batches = np.random.default_rng(0).integers(0, 5, (40, 6, chosen.block_size + 1))
        losses.append([trainer.update(batch)[0].item() for batch in batches])
    assert losses[0][-1] < losses[0][0] - 1
    np.testing.assert_allclose(losses[0], losses[1], atol=1e-4 if precision == "fp32" else 2e-2)


@pytest.mark.parametrize("changes", [{"attention_dropout": 0.1}, {"block_size": 513}, {"compile": "on"}])
def test_what_the_fused_step_does_not_compute_runs_in_autograd(
    changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function: function)
    chosen = resolve(**{**SMALL, "vocab_size": 20, **changes})
    trainer = Trainer(GPT(chosen), chosen, Runtime(torch.device("cpu"), compile=chosen.compile == "on"))
    assert trainer.fused_step is None
    assert trainer.notices == []


def test_autograd_runs_where_the_c_code_is_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # of the fixture that lets steps run in C everywhere
    chosen = resolve(**{**SMALL, "vocab_size": 20})
    for machine in ("x86_64", "AMD64", "aarch64"):
        monkeypatch.setattr("platform.machine", lambda name=machine: name)
        trainer = Trainer(GPT(chosen), chosen, CPU)
        assert (trainer.fused_step is not None) == (machine != "aarch64")
        assert trainer.notices == []


def test_a_checkpoint_says_whether_steps_ran_in_c() -> None:
    chosen = resolve(**{**SMALL, "vocab_size": 20})
    trainer = Trainer(GPT(chosen), chosen, CPU)
    state = trainer.state()
    assert state.values["fused"] is True
    trainer.restore(state)
    assert trainer.notices == []
    trainer.fused_step = None
    trainer.restore(state)
    assert len(trainer.notices) == 1


@pytest.mark.parametrize("bf16", [True, False])
def test_micro_batches_that_processes_divide_add_up_to_the_same_bits(bf16: bool) -> None:
    """One process adds the second to the first; of two processes each has one, and they add their sums."""
    shape = dict(n_layer=2, n_head=2, n_embd=48, T=40, B=6, vocab_size=65)
    model, ids = random_model(shape, dropout=0.1), random_ids(shape)
    together = fused_gradients(model, ids, bf16=bf16, rows=3)
    halves = []
    for first in (0, 3):
        step = FusedStep(model, bf16)
        model.zero_grad()
        step.refresh()
        step.accumulate_gradients(ids[first : first + 3], 0, 1 / ids[:, 1:].numel(), SEED, first)
        halves.append({name: cast(Tensor, p.grad).clone() for name, p in model.named_parameters()})
    for name in halves[0]:
        assert torch.equal(halves[0][name] + halves[1][name], together[name]), name
