"""The benchmark times the products that a step really has."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from octavo import kernels
from octavo.benchmark import generation, training
from octavo.cli import main
from octavo.device import Runtime
from octavo.model import GPT
from octavo.settings import resolve
from octavo.training.step import Trainer

SMALL = resolve(n_layer=2, n_head=2, n_embd=32, block_size=16, batch_size=4, vocab_size=40, device="cpu")


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_the_products_timed_alone_are_those_of_a_step(optimizer: str) -> None:
    settings = dataclasses.replace(SMALL, optimizer=optimizer)
    trainer = Trainer(GPT(settings), settings, Runtime(torch.device("cpu")))
    ids = np.random.default_rng(0).integers(0, 40, (4, 17))
    kernels.is_onednn_exact()  # asks with a product of its own, once
    with FlopCounterMode(display=False) as counter:
        trainer.update(ids)
    products = training.step_matmuls(settings, 4, Runtime(torch.device("cpu")))
    assert sum(count * flops for count, flops, _ in products) == counter.get_total_flops()


def test_cut_into_micro_batches_the_products_are_as_many() -> None:
    runtime = Runtime(torch.device("cpu"))
    sums = [sum(n * flops for n, flops, _ in training.step_matmuls(SMALL, rows, runtime)) for rows in (1, 2, 3, 4)]
    assert sums == pytest.approx([sums[0]] * 4)


def test_the_figures_fit_together() -> None:
    result = training.benchmark_training(SMALL, steps=2)
    assert result.tokens_per_step == 64
    assert result.tokens_per_second == pytest.approx(64 / result.step_seconds)
    assert result.matmul_share == pytest.approx(result.matmul_seconds / result.step_seconds)
    assert result.matmul_share > 0


def test_the_verb_prints_the_formula_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "train", "--rounds", "1", "--n-layer", "1", "--n-head", "1", "--n-embd", "8", "--batch-size", "2"]
    assert main(words) == 0
    assert training.FORMULA in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens_per_step"] == 128
    assert main([*words, "--rounds", "0"]) == 2
    assert "0 steps can't be timed" in capsys.readouterr().err


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_the_figures_of_writing_fit_together(quantize: str) -> None:
    settings = dataclasses.replace(SMALL, vocab_size=0)
    told: list[str] = []
    result = generation.benchmark_generation(
        generation.untrained_model(settings, torch.device("cpu")), quantize, 1, told.append
    )
    assert (result.prompt_tokens, result.new_tokens) == (8, 4)
    matrices = 12 * 2 * 32 * 32 + 65 * 32
    weight, cached = (1, 2) if quantize == "int8" else (4, 4)
    assert result.bytes_per_token == weight * matrices + 2 * 2 * 32 * cached * 10
    assert result.bandwidth_share == pytest.approx(
        result.bytes_per_token * result.tokens_per_second / result.memory_bandwidth
    )
    assert told[-1].endswith("1 rounds of 8 tokens and 4 more, and of 8 texts at once")


def test_the_verb_times_writing(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "generate", "--rounds", "1", "--n-layer", "1", "--n-head", "1", "--n-embd", "8"]
    assert main(words) == 0
    assert "tokens a second" in capsys.readouterr().out
    assert main([*words, "--quantize", "int8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["quantize"] == "int8"
    assert main(["bench", "train", "runs/nothing"]) == 2
    assert "times a preset" in capsys.readouterr().err
    assert main(["bench", "generate", "runs/nothing"]) == 2
    assert main([*words, "--rounds", "0"]) == 2
