"""The cost of several processes, by formula; bench/scale.py compares it with measurements."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

import scale
from octavo import cli, estimate, scaling
from octavo.errors import OctavoError
from octavo.scaling import Network, Processes
from octavo.settings import resolve

SETTINGS = resolve(
    n_layer=12, n_head=12, n_embd=768, block_size=1024, vocab_size=50257, batch_size=480, optimizer="adamw"
)
NETWORK = Network(1e9, 0.0)
TINY = ["--n-layer=1", "--n-head=1", "--n-embd=8", "--block-size=8", "--batch-size=4", "--max-steps=4", "--device=cpu"]


def cost(processes: Processes, device: str = "cpu", compute_seconds: float = 1.0) -> scaling.StepCost:
    return scaling.step_cost(SETTINGS, compute_seconds, device, "fp32", 4, processes)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_replicated_processes_send_the_gradients_around_a_ring(count: int) -> None:
    result = cost(Processes(count, count, NETWORK))
    gradients = 4 * estimate.parameters(SETTINGS)
    assert result.bytes_sent == pytest.approx(2 * (count - 1) / count * gradients, rel=1e-6)
    assert 8 * result.bytes_sent / 1e9 < result.communication_seconds < 1.3 * 8 * result.bytes_sent / 1e9
    assert result.step_seconds == result.compute_seconds + result.communication_seconds
    assert result.utilization == result.compute_seconds / result.step_seconds


def test_one_process_exchanges_nothing() -> None:
    result = cost(Processes())
    assert (result.communication_seconds, result.bytes_sent, result.utilization) == (0, 0, 1)


def test_a_slower_network_and_more_latency_cost_more() -> None:
    seconds = [cost(Processes(4, 4, Network(rate, 0))).communication_seconds for rate in (1e10, 1e9, 1e8)]
    assert seconds == sorted(seconds)
    near, far = (cost(Processes(100, 100, Network(1e10, each))).communication_seconds for each in (0, 1e-3))
    assert far - near > 2 * 99 * 1e-3


def test_processes_of_one_machine_send_as_much_over_its_link_as_one_process() -> None:
    one, eight = cost(Processes(4, 4, NETWORK)), cost(Processes(32, 4, NETWORK))
    assert eight.communication_seconds < 1.4 * one.communication_seconds


def test_muon_gathers_the_matrices_that_others_have_computed() -> None:
    muon = dataclasses.replace(SETTINGS, optimizer="muon")
    sent = [scaling.step_cost(each, 1.0, "cpu", "fp32", 4, Processes(4)).bytes_sent for each in (SETTINGS, muon)]
    assert sent[1] - sent[0] == 3 / 4 * 4 * 12 * 12 * 768**2


def test_work_is_divided_among_the_machines_of_cpus_and_among_gpus() -> None:
    processes = Processes(8, 2)
    assert scaling.divide_seconds(8.0, "cpu", processes) == 4
    assert scaling.divide_seconds(8.0, "cuda", processes) == 1


@pytest.mark.parametrize("shard", [2, 4, 8])
def test_shared_weights_take_less_memory_and_more_network(shard: int) -> None:
    whole, shared = Processes(8, 8, NETWORK), Processes(8, 8, NETWORK, shard=shard)
    bytes_of = [scaling.memory(SETTINGS, "cuda", "bf16", 4, each).peak for each in (whole, shared)]
    assert bytes_of[1] < bytes_of[0]
    assert cost(shared).bytes_sent > cost(whole).bytes_sent
    assert cost(shared, "cuda", 1e6).step_seconds == 1e6  # GPUs exchange while they compute


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (lambda: Processes(5, 2), "--processes 4"),
        (lambda: Processes(1, 2), "--processes 2"),
        (lambda: Processes(0), "--processes 1"),
        (lambda: Processes(6, 1, shard=4), "--shard 3"),
        (lambda: scaling.network(0, None), "--link"),
        (lambda: scaling.network(math.inf, None), "--link"),
        (lambda: scaling.network(None, -1.0), "--latency"),
        (lambda: scaling.network(None, math.nan), "--latency"),
    ],
)
def test_impossible_processes_and_networks_are_rejected(wrong: object, hint: str) -> None:
    assert callable(wrong)
    with pytest.raises(OctavoError) as caught:
        wrong()
    assert hint in str(caught.value.hint)


def test_estimate_reports_the_cost_of_several_processes(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["estimate", "--preset", "gpt2", *TINY, "--processes=4", "--nodes=2", "--link=0.001", "--price=2"]
    assert cli.main([*words, "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    expected = {field.name for field in dataclasses.fields(scaling.StepCost)}
    assert output["step_cost"].keys() == expected
    assert output["step_cost"]["bytes_sent"] == pytest.approx(1.5 * 4 * output["parameters"], rel=1e-2)
    assert output["seconds_by_part"]["steps"] == pytest.approx(4 * output["step_cost"]["step_seconds"], abs=0.02)
    assert output["price"] == pytest.approx(output["seconds"] / 3600 * 2 * 2, abs=1e-3)
    assert cli.main(["estimate", "--preset", "gpt2", *TINY, "--processes=3"]) == 2
    assert "4 sequences" in capsys.readouterr().err


def test_the_page_has_the_table_of_the_formulas() -> None:
    page = (Path(__file__).parents[1] / "docs" / "scale.md").read_text(encoding="utf-8")
    assert scale.table() in page
