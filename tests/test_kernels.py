"""The faster ways on a CPU compute what PyTorch's own do."""

import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from octavo import kernels
from octavo.model import GPT
from octavo.settings import resolve

CPU = torch.device("cpu")


def seeded(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype).requires_grad_()


def with_gradients(function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> list[torch.Tensor]:
    y = function(*inputs)
    return [y.detach(), *torch.autograd.grad(y.float().square().sum(), inputs)]


@pytest.mark.parametrize("T", [1, 2, 7, 64, 200])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 0.1)])
def test_attention_and_its_gradients_are_the_fused_kernels(T: int, dtype: torch.dtype, close: float) -> None:
    q, k, v = (seeded(3, 2, T, 8 + i, dtype=dtype)[..., :8] for i in range(3))
    ours = with_gradients(lambda *qkv: kernels.matmul_attention(*qkv, is_causal=True), q, k, v)
    fused = with_gradients(lambda *qkv: F.scaled_dot_product_attention(*qkv, is_causal=True), q, k, v)
    for mine, theirs in zip(ours, fused, strict=True):
        torch.testing.assert_close(mine, theirs, atol=close, rtol=close)


def test_no_position_sees_a_later_one() -> None:
    v = seeded(1, 1, 6, 4)
    y = kernels.matmul_attention(seeded(1, 1, 6, 4), seeded(1, 1, 6, 4), v, is_causal=True)
    for position in range(6):
        (seen,) = torch.autograd.grad(y[0, 0, position].sum(), v, retain_graph=True)
        assert (seen[0, 0, position + 1 :] == 0).all()
        assert (seen[0, 0, : position + 1] != 0).all()


def test_what_the_faster_attention_does_not_know_goes_to_pytorchs() -> None:
    q = seeded(1, 2, 5, 4)
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    torch.testing.assert_close(kernels.matmul_attention(q, q, q, mask), F.scaled_dot_product_attention(q, q, q, mask))
    torch.testing.assert_close(kernels.matmul_attention(q, q, q), F.scaled_dot_product_attention(q, q, q))
    long = seeded(1, 1, 600, 4)
    assert torch.equal(kernels.matmul_attention(long, long, long, is_causal=True),
                       F.scaled_dot_product_attention(long, long, long, is_causal=True))  # fmt: skip
    torch.manual_seed(0)
    ours = kernels.matmul_attention(q, q, q, dropout_p=0.5, is_causal=True)
    torch.manual_seed(0)
    assert torch.equal(ours, F.scaled_dot_product_attention(q, q, q, dropout_p=0.5, is_causal=True))


@pytest.mark.parametrize("p", [0.1, 0.25, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(999, 1001)
    y = kernels.fast_dropout(x, p)
    dropped = (y == 0).float().mean().item()
    assert abs(dropped - p) < 0.002  # 4 standard deviations
    assert abs(y.mean().item() - 1) < 0.01
    assert y.max().item() == pytest.approx(1 / (1 - p), rel=1e-3)
    # No two neighbours go together more often than chance: the bits of one draw are not one another's copies.
    for apart in (1, 2, 3, 4, 1001):
        together = ((y.flatten()[apart:] == 0) & (y.flatten()[:-apart] == 0)).float().mean().item()
        assert abs(together - p * p) < 0.003


def test_dropout_follows_the_global_generator_and_is_off_in_evaluation() -> None:
    x = seeded(5, 7)
    torch.manual_seed(3)
    first = kernels.fast_dropout(x, 0.5)
    torch.manual_seed(3)
    assert torch.equal(first, kernels.fast_dropout(x, 0.5))
    assert not torch.equal(first, kernels.fast_dropout(x, 0.5))
    assert kernels.fast_dropout(x, 0.5, training=False) is x


def test_products_stay_float32_inside_and_the_switch_goes_back() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    x, w = seeded(96, 80), seeded(80, 72)
    exact = x.double() @ w.double()
    with kernels.fast_path(CPU):
        error = (x @ w - exact).abs().max().item()
    assert error < 1e-4  # bf16 would be wrong by 0.1
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_the_switch_goes_back_with_the_last_of_several_threads() -> None:
    """It is the process's: a server looks into one model while another writes."""
    before = torch.backends.mkldnn.matmul.fp32_precision
    entered, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with kernels.fast_path(CPU):
            entered.set()
            leave.wait(30)

    thread = threading.Thread(target=stay)
    with kernels.fast_path(CPU):
        inside = torch.backends.mkldnn.matmul.fp32_precision
        thread.start()
        assert entered.wait(30)
    assert torch.backends.mkldnn.matmul.fp32_precision == inside
    leave.set()
    thread.join(30)
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_a_model_computes_the_same_inside_and_outside() -> None:
    model = GPT(resolve(n_layer=2, n_head=2, n_embd=32, block_size=24, vocab_size=30, activation="gelu"))
    ids = torch.randint(0, 30, (4, 24), generator=torch.Generator().manual_seed(0))

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        F.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = gradients()
    with kernels.fast_path(CPU):
        fast = gradients()
    for a, b in zip(fast, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_the_model_really_takes_the_faster_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    for name in ("matmul_attention", "fast_dropout"):
        own = getattr(kernels, name)
        key = next(k for k, f in kernels.REPLACEMENTS.items() if f is own)

        def noted(*args: object, own: Callable[..., torch.Tensor] = own, name: str = name, **more: object) -> object:
            taken.append(name)
            return own(*args, **more)

        monkeypatch.setitem(kernels.REPLACEMENTS, key, noted)
    model = GPT(resolve(n_layer=1, n_head=1, n_embd=8, block_size=4, vocab_size=9, dropout=0.1))
    with kernels.fast_path(CPU):
        model(torch.tensor([[1, 2, 3]]))
    assert taken == ["fast_dropout", "matmul_attention", "fast_dropout", "fast_dropout"]
