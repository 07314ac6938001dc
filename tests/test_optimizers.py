"""AdamW and Muon: arithmetic, parameters, and use with PyTorch's schedulers and checkpoints."""

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from octavo.loss import next_token_loss
from octavo.model import GPT
from octavo.settings import resolve
from octavo.training.layout import Layout
from octavo.training.optimizers import AdamW, Muon, Optimizer, build_optimizers, load_state_tensors, state_tensors
from octavo.training.optimizers.muon import as_squares, fast_orthogonalize, orthogonalize

SMALL = dict(n_layer=2, n_head=2, n_embd=16, block_size=12, vocab_size=20)


def seeded(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def layout_of(model: GPT) -> Layout:
    return Layout(dict(model.named_parameters()))


# Arithmetic


def test_orthogonalize_keeps_singular_vectors_and_equalizes_singular_values() -> None:
    x = seeded(3, 16, 16)
    u, values, v = torch.linalg.svd(x)
    assert values.max() / values.min() > 20
    equalized = torch.linalg.svdvals(orthogonalize(x))
    assert 0.3 < equalized.min() < equalized.max() < 1.3
    # The singular vectors are the same: in their basis, the result is diagonal.
    rotated = u.mT @ orthogonalize(x) @ v.mT
    torch.testing.assert_close(rotated, torch.diag_embed(torch.diagonal(rotated, dim1=-2, dim2=-1)), atol=1e-3, rtol=0)


def test_orthogonalize_ignores_the_scale_of_a_gradient() -> None:
    x = seeded(2, 8, 8)
    torch.testing.assert_close(orthogonalize(1000 * x), orthogonalize(x), atol=1e-4, rtol=0)


@pytest.mark.parametrize("width", [16, 32, 96, 128, 256, 288])  # the C code computes multiples of 32 up to 256
def test_orthogonalize_in_bf16_matches_float64(width: int) -> None:
    squares = seeded(3, width, width).bfloat16()
    exact = orthogonalize(squares.double())
    difference = (fast_orthogonalize(squares.clone()) - exact).norm() / exact.norm()
    assert difference < 0.02
    assert difference < 1.1 * (orthogonalize(squares) - exact).norm() / exact.norm()


@pytest.mark.parametrize("width", [48, 64])
def test_orthogonalize_has_the_same_bits_for_any_number_of_threads_and_squares(width: int) -> None:
    squares = seeded(5, width, width).bfloat16()
    expected = fast_orthogonalize(squares.clone())
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads % 2 + 1)
        assert torch.equal(fast_orthogonalize(squares.clone()), expected)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(fast_orthogonalize(squares[i : i + 1].clone())[0], expected[i]) for i in range(5))


def test_orthogonalize_of_zeros_is_zero() -> None:
    assert not fast_orthogonalize(torch.zeros(2, 32, 32, dtype=torch.bfloat16)).any()


@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (64, 16), (16, 64), (32, 48)])
def test_as_squares_divides_a_matrix_into_its_squares(shape: tuple[int, int]) -> None:
    matrix = seeded(*shape)
    squares = as_squares(matrix, 16)
    assert squares.shape == (shape[0] // 16, shape[1] // 16, 16, 16)
    for row, column in ((0, 0), (shape[0] // 16 - 1, shape[1] // 16 - 1)):
        rows, columns = (slice(16 * i, 16 * (i + 1)) for i in (row, column))
        assert torch.equal(squares[row, column], matrix[rows, columns])


def test_muon_is_orthogonalized_nesterov_momentum_with_decoupled_decay() -> None:
    first, second = seeded(16, 16), seeded(16, 16).mT.contiguous()
    matrix = torch.nn.Parameter(seeded(16, 16).clone())
    expected = matrix.detach().clone()
    muon = Muon([matrix], lr=0.1, weight_decay=0.5, momentum=0.9)
    mean = torch.zeros(16, 16)
    for gradient in (first, second):
        matrix.grad = gradient.clone()
        muon.step()
        mean = 0.9 * mean + 0.1 * gradient
        look_ahead = 0.1 * gradient + 0.9 * mean
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * orthogonalize(look_ahead[None])[0]
    torch.testing.assert_close(matrix.detach(), expected, atol=1e-5, rtol=0)


def test_adamw_matches_pytorchs_unfused_adamw() -> None:
    ours, theirs = ([torch.nn.Parameter(seeded(5, 3).clone()), torch.nn.Parameter(seeded(4).clone())] for _ in range(2))

    def groups(parameters: list[torch.nn.Parameter]) -> list[dict[str, object]]:
        return [{"params": [p], "weight_decay": d} for p, d in zip(parameters, (0.3, 0.0), strict=True)]

    fused = AdamW(groups(ours), lr=0.01, betas=(0.8, 0.9), fused=True)
    reference = torch.optim.AdamW(groups(theirs), lr=0.01, betas=(0.8, 0.9))
    for step in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.sin(a.detach() * (step + 1))
            b.grad = torch.sin(b.detach() * (step + 1))
        fused.step()
        reference.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


# Parameters


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("momentum", [0.3, 0.95])  # torch.lerp computes those below and above 0.5 in different ways
def test_muon_in_c_has_the_bits_of_pytorch(
    weight_decay: float, momentum: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = [seeded(64, 64), seeded(192, 64), seeded(64, 256)]
    results, used = [], []
    for in_c in (True, False):
        if not in_c:
            monkeypatch.setattr("octavo.kernels.muon.is_elementwise_supported", lambda squares, tensors: False)
        matrices = [torch.nn.Parameter(matrix.clone()) for matrix in start]
        options = {"lr": 0.07, "weight_decay": weight_decay, "momentum": momentum, "dtype": torch.bfloat16}
        muon, gradients = Muon(matrices, **options), torch.Generator().manual_seed(1)
        for _ in range(3):
            for matrix in matrices:
                matrix.grad = torch.randn(matrix.shape, generator=gradients)
            used.append(bool(muon._matrices_in_c(matrices, torch.empty(8, 64, 64, dtype=torch.bfloat16))))
            muon.step()
        results.append([*matrices, *(muon.state[matrix]["momentum"] for matrix in matrices)])
    assert used == [True] * 3 + [False] * 3
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))


def test_muon_gets_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    model = GPT(resolve(**SMALL))
    muon, adamw = build_optimizers(layout_of(model), resolve(weight_decay=0.3))
    names = {id(p): name for name, p in model.named_parameters()}
    by_muon = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    by_adamw = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert by_muon == {n for n in names.values() if n.endswith(("attn.weight", "proj.weight", "fc.weight"))}
    assert by_muon | by_adamw == set(names.values())
    assert not by_muon & by_adamw


@pytest.mark.parametrize("shapes", [[(16,)], [()], [(16, 16), (16, 24)], [(2, 4, 4)]])
def test_muon_raises_for_parameters_that_cannot_be_split_into_squares(shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="multiples of the smallest side"):
        Muon([torch.nn.Parameter(torch.ones(shape)) for shape in shapes])


@pytest.mark.parametrize("optimizer", [AdamW, Muon])
def test_a_parameter_without_gradient_does_not_change(optimizer: type[AdamW | Muon]) -> None:
    trained, frozen = (torch.nn.Parameter(seeded(8, 8)) for _ in range(2))
    before = frozen.detach().clone()
    trained.grad = torch.ones(8, 8)
    optimizer([trained, frozen], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(frozen, before)
    assert not torch.equal(trained, before)


# PyTorch's tools


@pytest.fixture(params=["muon", "adamw"])
def model_and_optimizers(request: pytest.FixtureRequest) -> tuple[GPT, list[Optimizer]]:
    settings = resolve(**SMALL, optimizer=request.param)
    model = GPT(settings, torch.Generator().manual_seed(0))
    return model, build_optimizers(layout_of(model), settings)


def update(model: GPT, optimizers: list[Optimizer], step: int) -> None:
    ids = torch.randint(0, 20, (4, 13), generator=torch.Generator().manual_seed(step))
    next_token_loss(model(ids[:, :-1]), ids[:, 1:]).backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def test_param_groups_have_every_default(model_and_optimizers: tuple[GPT, list[Optimizer]]) -> None:
    for optimizer in model_and_optimizers[1]:
        assert isinstance(optimizer, torch.optim.Optimizer)
        for group in optimizer.param_groups:
            assert optimizer.defaults.keys() < group.keys()


def test_a_learning_rate_scheduler_of_pytorch_works(model_and_optimizers: tuple[GPT, list[Optimizer]]) -> None:
    model, optimizers = model_and_optimizers
    initial = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    schedulers = [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step) for optimizer in optimizers]
    for step in range(3):
        update(model, optimizers, step)
        for scheduler in schedulers:
            scheduler.step()
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    assert rates == pytest.approx([rate / 8 for rate in initial])
    before = copy.deepcopy(model.state_dict())
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = 0.0
    update(model, optimizers, 3)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_training_after_a_state_dict_round_trip_is_bit_identical(
    model_and_optimizers: tuple[GPT, list[Optimizer]], tmp_path: Path
) -> None:
    model, optimizers = model_and_optimizers
    for step in range(3):
        update(model, optimizers, step)
    restored_model = copy.deepcopy(model)
    restored = [type(o)(parameter_groups(restored_model, model, o), lr=0.123) for o in optimizers]
    torch.save([optimizer.state_dict() for optimizer in optimizers], tmp_path / "state.pt")
    for optimizer, state in zip(restored, torch.load(tmp_path / "state.pt", weights_only=True), strict=True):
        optimizer.load_state_dict(state)
    for step in range(3, 6):
        update(model, optimizers, step)
        update(restored_model, restored, step)
    for name, value in model.state_dict().items():
        assert torch.equal(value, restored_model.state_dict()[name]), name


def parameter_groups(copied: GPT, model: GPT, optimizer: Optimizer) -> list[dict[str, object]]:
    """The parameter groups of an optimizer without options, of a copy of its model."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [{"params": [copied.get_parameter(names[p]) for p in group["params"]]} for group in optimizer.param_groups]


def test_state_tensors_round_trip(model_and_optimizers: tuple[GPT, list[Optimizer]]) -> None:
    model, optimizers = model_and_optimizers
    update(model, optimizers, 0)
    tensors = {name: value.clone() for name, value in state_tensors(optimizers, layout_of(model)).items()}
    assert {"step.transformer.wte.weight", "exp_avg.transformer.wte.weight"} < tensors.keys()
    assert ("momentum.transformer.h.0.mlp.c_fc.weight" in tensors) == isinstance(optimizers[0], Muon)
    fresh = build_optimizers(layout_of(model), resolve(**SMALL, optimizer="muon" if len(optimizers) == 2 else "adamw"))
    load_state_tensors(fresh, layout_of(model), tensors)
    restored = state_tensors(fresh, layout_of(model))
    assert restored.keys() == tensors.keys()
    for name, value in tensors.items():
        assert torch.equal(restored[name], value), name


@pytest.mark.filterwarnings("ignore")  # torch.distributed warns that it is not initialized
def test_torch_distributed_checkpoint_saves_and_loads_the_state(
    model_and_optimizers: tuple[GPT, list[Optimizer]], tmp_path: Path
) -> None:
    model, optimizers = model_and_optimizers
    update(model, optimizers, 0)
    expected = {name: value.clone() for name, value in state_tensors(optimizers, layout_of(model)).items()}
    dcp.save({"optimizers": get_optimizer_state_dict(model, optimizers)}, checkpoint_id=tmp_path, no_dist=True)
    update(model, optimizers, 1)
    state = {"optimizers": get_optimizer_state_dict(model, optimizers)}
    dcp.load(state, checkpoint_id=tmp_path, no_dist=True)
    set_optimizer_state_dict(model, optimizers, state["optimizers"])
    for name, value in state_tensors(optimizers, layout_of(model)).items():
        assert torch.equal(value, expected[name]), name
