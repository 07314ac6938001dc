"""Benchmarks time the matmuls of a training step and of a generated token; their results are consistent."""

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

CPU = Runtime(torch.device("cpu"))
SMALL = resolve(n_layer=2, n_head=2, n_embd=32, block_size=16, batch_size=4, vocab_size=40, device="cpu")
TINY = ["--n-layer=1", "--n-head=1", "--n-embd=8"]


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_the_timed_matmuls_have_the_flops_of_a_step(optimizer: str) -> None:
    settings = dataclasses.replace(SMALL, optimizer=optimizer)
    trainer = Trainer(GPT(settings), settings, CPU)
    trainer.fused_step = None  # the counter does not see matmuls in C
    ids = np.random.default_rng(0).integers(0, 40, (4, 17))
    kernels.is_onednn_exact()  # cached here; otherwise the counter counts the matmuls of its test
    with FlopCounterMode(display=False) as counter:
        trainer.update(ids)
    matmuls = training.step_matmuls(settings, 4, CPU)
    assert sum(count * flops for count, flops, _ in matmuls) == counter.get_total_flops()


def test_the_micro_batch_does_not_change_the_flops() -> None:
    flops = [sum(n * each for n, each, _ in training.step_matmuls(SMALL, rows, CPU)) for rows in (1, 2, 3, 4)]
    assert flops == pytest.approx([flops[0]] * 4)


def test_the_results_of_bench_train_are_consistent() -> None:
    result = training.benchmark_training(SMALL, steps=2)
    assert result.tokens_per_step == 64
    assert result.tokens_per_second == pytest.approx(64 / result.step_seconds)
    assert result.matmul_share == pytest.approx(result.matmul_seconds / result.step_seconds)
    assert result.matmul_share > 0


def test_bench_train_prints_the_formula_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "train", "--rounds", "1", *TINY, "--batch-size", "2"]
    assert main(arguments) == 0
    assert training.FORMULA in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert output.keys() == {field.name for field in dataclasses.fields(training.TrainBenchmark)}
    assert output["tokens_per_step"] == 128
    assert main([*arguments, "--rounds", "0"]) == 2
    assert "0 steps" in capsys.readouterr().err


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_the_results_of_bench_generate_are_consistent(quantize: str) -> None:
    settings = dataclasses.replace(SMALL, vocab_size=0)
    lines: list[str] = []
    model = generation.untrained_model(settings, torch.device("cpu"))
    result = generation.benchmark_generation(model, quantize, 1, lines.append)
    assert (result.prompt_tokens, result.new_tokens) == (8, 4)
    matrices = 12 * 2 * 32 * 32 + 66 * 32
    weight_size, cache_size = (1, 1 + 4 / 16) if quantize == "int8" else (4, 4)  # a scale for the 16 numbers of a head
    assert result.bytes_per_token == weight_size * matrices + 2 * 2 * 32 * cache_size * 10
    assert result.bandwidth_share == pytest.approx(
        result.bytes_per_token * result.tokens_per_second / result.memory_bandwidth
    )
    assert "8 prompt tokens and 4 new" in lines[-1]


def test_bench_generate_prints_throughput_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "generate", "--rounds", "1", *TINY]
    assert main(arguments) == 0
    assert "tokens" in capsys.readouterr().out
    assert main([*arguments, "--quantize", "int8", "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert output.keys() == {field.name for field in dataclasses.fields(generation.GenerateBenchmark)}
    assert output["quantize"] == "int8"
    assert main([*arguments, "--rounds", "0"]) == 2


def test_bench_train_takes_no_run_and_bench_generate_needs_an_existing_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "train", "runs/nothing"]) == 2
    assert "preset" in capsys.readouterr().err
    assert main(["bench", "generate", "runs/nothing"]) == 2
