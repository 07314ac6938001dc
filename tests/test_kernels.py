"""The faster CPU kernels compute what PyTorch's kernels compute."""

import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from octavo import kernels
from octavo.model import GPT
from octavo.settings import resolve

CPU = torch.device("cpu")


def random_tensor(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype).requires_grad_()


def with_gradients(function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> list[torch.Tensor]:
    y = function(*inputs)
    return [y.detach(), *torch.autograd.grad(y.float().square().sum(), inputs)]


@pytest.mark.parametrize("T", [1, 2, 7, 64, 200])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 0.1)])
def test_matmul_attention_and_its_gradients_equal_fused_attention(T: int, dtype: torch.dtype, tolerance: float) -> None:
    q, k, v = (random_tensor(3, 2, T, 8 + i, dtype=dtype)[..., :8] for i in range(3))
    ours = with_gradients(lambda *qkv: kernels.matmul_attention(*qkv, is_causal=True), q, k, v)
    fused = with_gradients(lambda *qkv: F.scaled_dot_product_attention(*qkv, is_causal=True), q, k, v)
    for actual, expected in zip(ours, fused, strict=True):
        torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def test_matmul_attention_is_causal() -> None:
    v = random_tensor(1, 1, 6, 4)
    y = kernels.matmul_attention(random_tensor(1, 1, 6, 4), random_tensor(1, 1, 6, 4), v, is_causal=True)
    for position in range(6):
        (gradient,) = torch.autograd.grad(y[0, 0, position].sum(), v, retain_graph=True)
        assert (gradient[0, 0, position + 1 :] == 0).all()
        assert (gradient[0, 0, : position + 1] != 0).all()


def test_calls_that_matmul_attention_does_not_cover_run_pytorchs_kernel() -> None:
    q = random_tensor(1, 2, 5, 4)
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    torch.testing.assert_close(kernels.matmul_attention(q, q, q, mask), F.scaled_dot_product_attention(q, q, q, mask))
    torch.testing.assert_close(kernels.matmul_attention(q, q, q), F.scaled_dot_product_attention(q, q, q))
    long = random_tensor(1, 1, 600, 4)
    assert torch.equal(
        kernels.matmul_attention(long, long, long, is_causal=True),
        F.scaled_dot_product_attention(long, long, long, is_causal=True),
    )
    torch.manual_seed(0)
    ours = kernels.matmul_attention(q, q, q, dropout_p=0.5, is_causal=True)
    torch.manual_seed(0)
    assert torch.equal(ours, F.scaled_dot_product_attention(q, q, q, dropout_p=0.5, is_causal=True))


@pytest.mark.parametrize("p", [0.1, 0.25, 0.9])
def test_dropout_drops_the_fraction_p_and_keeps_the_mean(p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(999, 1001)
    y = kernels.fast_dropout(x, p)
    dropped = (y == 0).float().mean().item()
    assert abs(dropped - p) < 0.002  # 4 standard deviations
    assert abs(y.mean().item() - 1) < 0.01
    assert y.max().item() == pytest.approx(1 / (1 - p), rel=1e-3)
    # Elements are independent, also the four that use the 16-bit parts of one random number.
    for distance in (1, 2, 3, 4, 1001):
        both = ((y.flatten()[distance:] == 0) & (y.flatten()[:-distance] == 0)).float().mean().item()
        assert abs(both - p * p) < 0.003


def test_dropout_uses_the_global_generator_and_is_off_in_evaluation() -> None:
    x = random_tensor(5, 7)
    torch.manual_seed(3)
    first = kernels.fast_dropout(x, 0.5)
    torch.manual_seed(3)
    assert torch.equal(first, kernels.fast_dropout(x, 0.5))
    assert not torch.equal(first, kernels.fast_dropout(x, 0.5))
    assert kernels.fast_dropout(x, 0.5, training=False) is x


def test_matmuls_stay_float32_and_the_global_switch_is_restored() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    x, w = random_tensor(96, 80), random_tensor(80, 72)
    exact = x.double() @ w.double()
    with kernels.fast_path(CPU):
        error = (x @ w - exact).abs().max().item()
    assert error < 1e-4  # bf16 would be off by 0.1
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_the_last_of_concurrent_threads_restores_the_global_switch() -> None:
    """It is one switch per process, and a server computes a view of the lens while it generates text."""
    before = torch.backends.mkldnn.matmul.fp32_precision
    entered, leave = threading.Event(), threading.Event()

    def wait_inside() -> None:
        with kernels.fast_path(CPU):
            entered.set()
            leave.wait(30)

    thread = threading.Thread(target=wait_inside)
    with kernels.fast_path(CPU):
        inside = torch.backends.mkldnn.matmul.fp32_precision
        thread.start()
        assert entered.wait(30)
    assert torch.backends.mkldnn.matmul.fp32_precision == inside
    leave.set()
    thread.join(30)
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_the_allocator_does_what_the_last_call_says(monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[int, int] = {}

    def set_option(option: int, value: int) -> bool:
        options[option] = value
        return True

    monkeypatch.setattr(kernels.allocator, "_mallopt", set_option)
    kernels.keep_freed_memory()
    kept = dict(options)
    kernels.return_freed_memory()
    assert options != kept
    kernels.keep_freed_memory()
    assert options == kept


def test_a_models_gradients_are_the_same_with_and_without_the_fast_path() -> None:
    model = GPT(resolve(n_layer=2, n_head=2, n_embd=32, block_size=24, vocab_size=30, activation="gelu"))
    ids = torch.randint(0, 30, (4, 24), generator=torch.Generator().manual_seed(0))

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        F.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = gradients()
    with kernels.fast_path(CPU):
        fast = gradients()
    for actual, expected in zip(fast, plain, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


def test_the_model_runs_the_replacements(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def record(replacement: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def call(*arguments: object, **options: object) -> torch.Tensor:
            calls.append(replacement.__name__)
            return replacement(*arguments, **options)

        return call

    for function, replacement in list(kernels.REPLACEMENTS.items()):
        monkeypatch.setitem(kernels.REPLACEMENTS, function, record(replacement))
    model = GPT(resolve(n_layer=1, n_head=1, n_embd=8, block_size=4, vocab_size=9, dropout=0.1))
    with kernels.fast_path(CPU):
        model(torch.tensor([[1, 2, 3]]))
    assert calls == ["fast_dropout", "matmul_attention", "fast_dropout", "fast_dropout"]


def test_attention_with_a_mask_does_not_use_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    for with_mask in (False, True):
        with kernels.fast_path(torch.device("cuda"), with_mask):
            assert torch.backends.cuda.cudnn_sdp_enabled() is not with_mask
            assert torch.backends.cuda.flash_sdp_enabled()


def test_one_thread_holds_only_for_the_calling_thread() -> None:
    """A second engine's thread that was born while the first one decoded computed with one thread for good."""
    before, born = torch.get_num_threads(), []
    torch.set_num_threads(3)
    try:
        with kernels.one_thread():
            assert torch.get_num_threads() == 1
            thread = threading.Thread(target=lambda: born.append(torch.get_num_threads()))
            thread.start()
            thread.join()
        assert (torch.get_num_threads(), born) == (3, [3])
    finally:
        torch.set_num_threads(before)


def test_large_tensors_have_huge_pages_where_the_system_has_them() -> None:
    if not os.path.exists("/sys/kernel/mm/transparent_hugepage"):
        assert "THP_MEM_ALLOC_ENABLE" not in os.environ  # PyTorch would warn at every allocation
        return
    tensor = torch.empty(1 << 26)
    address = tensor.data_ptr() + tensor.nbytes // 2
    mappings = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(encoding="utf-8"), flags=re.M)
    for mapping in mappings[1:]:
        start, end = (int(number, 16) for number in mapping.split(" ", 1)[0].split("-"))
        if start <= address < end:
            flags = re.search("^VmFlags:(.*)$", mapping, re.M)
            assert flags is not None
            assert "hg" in flags[1].split()
            return
    raise AssertionError("the tensor is in no mapping")
