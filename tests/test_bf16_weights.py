"""Training with a bf16 copy of the weights gives the gradients and losses of training without it."""

import copy

import pytest
import torch

from octavo.device import Runtime
from octavo.loss import next_token_loss
from octavo.model import GPT
from octavo.settings import resolve
from octavo.training.bf16_weights import Bf16Weights
from octavo.training.step import Trainer

SETTINGS = resolve(
    n_layer=2,
    n_head=2,
    n_embd=32,
    block_size=16,
    vocab_size=70,
    batch_size=8,
    learning_rate=1e-2,
    warmup_steps=0,
    schedule="constant",
    max_steps=40,
)
IDS = torch.randint(0, 70, (8, 17), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model() -> GPT:
    return GPT(SETTINGS, torch.Generator().manual_seed(0))


def summed_loss(model: GPT) -> torch.Tensor:
    return next_token_loss(model(IDS[:, :-1])[..., :70], IDS[:, 1:])


def gradients(model: GPT) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_loss_and_gradients_match_the_model_to_bf16_precision(model: GPT) -> None:
    loss = summed_loss(model)
    loss.backward()
    expected = gradients(model)
    model.zero_grad()
    bf16 = Bf16Weights(model)
    bf16.refresh()
    bf16_loss = summed_loss(bf16.model)
    bf16_loss.backward()
    bf16.accumulate_master_gradients()
    assert bf16_loss.item() == pytest.approx(loss.item(), rel=1e-3)
    actual = gradients(model)
    assert actual.keys() == expected.keys()
    for name, gradient in actual.items():
        assert gradient.dtype == torch.float32
        assert torch.cosine_similarity(gradient.flatten(), expected[name].flatten(), 0) > 0.99, name


def test_the_padding_of_the_vocabulary_has_no_effect(model: GPT) -> None:
    trainer = Trainer(model, SETTINGS, Runtime(torch.device("cpu"), "bf16"))
    trainer.bf16_weights = bf16 = Bf16Weights(model)
    bf16.refresh()
    assert bf16.model.lm_head.weight.shape == (128, 32)
    rows = bf16.model.lm_head.weight.detach()[70:]
    loss = trainer.compute_gradients(IDS.numpy())
    rows.fill_(100.0)
    assert torch.equal(trainer.compute_gradients(IDS.numpy()), loss)
    assert {name: g.shape for name, g in gradients(model).items()} == {
        name: p.shape for name, p in model.named_parameters()
    }


def test_gradients_accumulate_in_float32(model: GPT) -> None:
    bf16 = Bf16Weights(model)
    bf16.refresh()
    total: dict[str, torch.Tensor] = {}
    for rows in (IDS[:3], IDS[3:]):
        next_token_loss(bf16.model(rows[:, :-1])[..., :70], rows[:, 1:]).backward()
        bf16.accumulate_master_gradients()
        next_token_loss(bf16.model(rows[:, :-1])[..., :70], rows[:, 1:]).backward()
        for name, p in bf16.model.named_parameters():
            assert p.grad is not None
            total[name] = total.get(name, 0) + p.grad[: len(model.get_parameter(name))].float()
        bf16.model.zero_grad()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, total[name], atol=0, rtol=1e-6)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_training_with_and_without_bf16_weights_reaches_the_same_loss(model: GPT, optimizer: str) -> None:
    settings = resolve(**{**vars(SETTINGS), "optimizer": optimizer})
    runtime = Runtime(torch.device("cpu"), "bf16")
    plain, with_copy = Trainer(copy.deepcopy(model), settings, runtime), Trainer(model, settings, runtime)
    with_copy.bf16_weights = Bf16Weights(model)
    for _ in range(30):
        losses = [trainer.update(IDS.numpy())[0].item() for trainer in (plain, with_copy)]
    assert losses[0] < 2.5  # from ln 70 = 4.25
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
