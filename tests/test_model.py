"""The model is GPT-2: compared with a plain reference and with transformers. Its shape comments are true."""

import ast
import io
import math
import re
import tokenize
from collections.abc import Callable, Container
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import octavo.model
from octavo.errors import OctavoError
from octavo.model import GPT, KVCache
from octavo.settings import ModelSettings, resolve
from reference import gpt2

SMALL = {"n_layer": 2, "n_head": 3, "n_embd": 24, "block_size": 16, "vocab_size": 29}
pytestmark = pytest.mark.usefixtures("one_thread")
law = hypothesis.settings(derandomize=True, deadline=None, max_examples=30)


def random_model(settings: ModelSettings, seed: int = 0) -> GPT:
    """A model with weights, biases and norms so large that an error in any of them changes the logits."""
    model = GPT(settings).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        mean = 1.0 if ".ln_" in name and name.endswith("weight") else 0.0
        nn.init.normal_(parameter, mean, 0.2, generator=generator)
    return model


def random_ids(batch: int, length: int, vocab_size: int = 29, seed: int = 0) -> Tensor:
    """(B, T)"""
    return torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=0, atol=tolerance)


# Equality with GPT-2


@st.composite
def model_settings(draw: st.DrawFn) -> ModelSettings:
    n_head = draw(st.integers(1, 4))
    return ModelSettings(
        n_layer=draw(st.integers(1, 3)),
        n_head=n_head,
        n_embd=n_head * draw(st.integers(8, 12)),  # a layer norm of two or three numbers is ill-conditioned
        block_size=draw(st.integers(2, 16)),
        vocab_size=draw(st.integers(2, 40)),
        bias=draw(st.booleans()),
        activation=draw(st.sampled_from(["gelu_new", "gelu"])),
    )


@law
@hypothesis.given(settings=model_settings(), data=st.data())
def test_logits_and_gradients_equal_the_plain_reference(settings: ModelSettings, data: st.DataObject) -> None:
    model = random_model(settings)
    idx = random_ids(2, data.draw(st.integers(2, settings.block_size), label="length"), settings.vocab_size)
    weights = {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}

    ours = model(idx)
    theirs = torch.stack([gpt2(weights, settings, ids) for ids in idx])
    assert_close(ours, theirs)

    for logits in (ours, theirs):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), idx[:, 1:].flatten()).backward()
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, weights[name].grad)


def test_the_comparison_distinguishes_the_two_gelus() -> None:
    exact, tanh = (ModelSettings(**SMALL, activation=name) for name in ("gelu", "gelu_new"))
    weights = dict(random_model(exact).named_parameters())
    ids = random_ids(1, 16)[0]
    difference = (gpt2(weights, exact, ids) - gpt2(weights, tanh, ids)).abs().max().item()
    assert difference > 1e-4  # ten times the tolerance of the comparison above


@pytest.mark.parametrize("activation", ["gelu_new", "gelu"])
def test_logits_equal_those_of_transformers_with_the_same_weights(activation: str) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = random_model(ModelSettings(**SMALL, activation=activation))
    shape = {name: SMALL[name] for name in ("n_layer", "n_head", "n_embd", "vocab_size")}
    theirs = GPT2LMHeadModel(GPT2Config(**shape, n_positions=16, activation_function=activation)).eval()
    linear = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # transformers stores them as Conv1D: (in, out)
    theirs.load_state_dict({k: w.T if k.endswith(linear) else w for k, w in model.state_dict().items()})
    idx = random_ids(3, 16)
    assert_close(model(idx), theirs(idx).logits)


PUBLISHED = {  # parameters with 50,257 tokens and 1,024 positions
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
}


def parameter_counts(preset: str, vocab_size: int) -> dict[str, int]:
    with torch.device("meta"):
        model = GPT(resolve(preset, vocab_size=vocab_size))
    return {name: parameter.numel() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_presets_have_the_parameter_counts_of_the_published_models(preset: str) -> None:
    assert sum(parameter_counts(preset, 50257).values()) == PUBLISHED[preset]


def test_baby_has_fewer_parameters_than_nanogpt_baby() -> None:
    assert sum(parameter_counts("baby", 65).values()) == 4_821_248 < 10_646_784
    counts = parameter_counts("nanogpt-baby", 65)
    del counts["transformer.wpe.weight"]  # nanoGPT does not count the position embeddings
    assert sum(counts.values()) == 10_646_784


def test_a_model_without_a_vocabulary_raises() -> None:
    with pytest.raises(OctavoError, match="vocab_size=0"):
        GPT(ModelSettings())


# Causality and the KV cache


def test_logits_depend_on_the_position_itself_and_earlier_ones_only() -> None:
    model = random_model(ModelSettings(**SMALL))
    x = model.embed(random_ids(2, 12)).detach().requires_grad_()
    logits = model.unembed(model.norm(model.blocks(x)))
    for t in range(12):
        (gradient,) = torch.autograd.grad(logits[0, t].sum(), x, retain_graph=True)
        depends_on = (gradient != 0).any(dim=-1)
        assert depends_on[0, : t + 1].all()
        assert not depends_on[0, t + 1 :].any()
        assert not depends_on[1].any()  # the other sequence of the batch


@law
@hypothesis.given(cuts=st.sets(st.integers(1, 15)))
@hypothesis.example(cuts=set(range(1, 16)))  # token by token
@hypothesis.example(cuts={5, 6, 13})
def test_cached_decoding_in_any_chunks_equals_the_full_forward(cuts: set[int]) -> None:
    model = random_model(ModelSettings(**SMALL))
    idx = random_ids(3, 16)
    cache = KVCache(model, batch=3)
    with torch.no_grad():
        logits = [model(chunk, cache) for chunk in idx.tensor_split(sorted(cuts), dim=1)]
        assert_close(torch.cat(logits, dim=1), model(idx))
    assert cache.lengths == [16, 16, 16]


@law
@hypothesis.given(data=st.data())
def test_sequences_of_different_lengths_in_one_cache_do_not_affect_each_other(data: st.DataObject) -> None:
    model = random_model(ModelSettings(**SMALL))
    idx = random_ids(4, 16)
    cache = KVCache(model, batch=4)
    lengths = [0] * 4
    with torch.no_grad():
        expected = model(idx)
        for _ in range(6):
            rows = data.draw(st.lists(st.integers(0, 3), min_size=1, unique=True))
            T = data.draw(st.integers(1, 4))
            rows = [row for row in rows if lengths[row] + T <= 16]
            if not rows:
                continue
            new = torch.stack([idx[row, lengths[row] : lengths[row] + T] for row in rows])
            logits = model(new, cache.select(rows, [lengths[row] for row in rows]))
            for row, row_logits in zip(rows, logits, strict=True):
                assert_close(row_logits, expected[row, lengths[row] : lengths[row] + T])
                lengths[row] += T


def test_a_sequence_longer_than_block_size_raises() -> None:
    model = random_model(ModelSettings(**SMALL))
    with pytest.raises(OctavoError, match=r"17 positions.* 16"):
        model(random_ids(1, 17))


@torch.no_grad()
def test_exceeding_the_cache_raises_and_leaves_it_unchanged() -> None:
    model = random_model(ModelSettings(**SMALL))
    cache = KVCache(model)
    model(random_ids(1, 15), cache)
    with pytest.raises(OctavoError, match=r"17 positions.* 16"):
        model(random_ids(1, 2), cache)
    assert cache.lengths == [15]
    model(random_ids(1, 1), cache)


# Initialization


def test_initial_weights_follow_gpt2() -> None:
    settings = ModelSettings(n_layer=3, n_head=4, n_embd=128, block_size=128, vocab_size=1000)
    for name, parameter in GPT(settings, torch.Generator().manual_seed(0)).named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif ".ln_" in name:
            assert (parameter == 1).all(), name
        else:
            std = 0.02 / math.sqrt(2 * 3) if name.endswith("c_proj.weight") else 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.03), name
            assert parameter.mean().item() == pytest.approx(0, abs=std * 0.03), name


def test_uniform_embeddings_have_the_bound_one_over_the_square_root_of_n_embd() -> None:
    settings = ModelSettings(n_embd=64, vocab_size=1000, block_size=512, embedding_init="uniform")
    model = GPT(settings, torch.Generator().manual_seed(0))
    bound = 1 / math.sqrt(64)
    for table in (model.transformer.wte.weight, model.transformer.wpe.weight):
        assert table.abs().max() <= bound
        frequencies = table.histc(bins=8, min=-bound, max=bound) / table.numel()
        assert_close(frequencies, torch.full((8,), 1 / 8), 0.005)
    assert model.transformer.h[0].attn.c_attn.weight.std().item() == pytest.approx(0.02, rel=0.03)


@pytest.mark.parametrize("embedding_init", ["normal", "uniform"])
def test_initialization_is_deterministic_given_the_generator(embedding_init: str) -> None:
    def weights(seed: int, global_seed: int) -> Tensor:
        torch.manual_seed(global_seed)
        settings = ModelSettings(**SMALL, embedding_init=embedding_init)
        model = GPT(settings, torch.Generator().manual_seed(seed))
        return nn.utils.parameters_to_vector(model.parameters())

    assert torch.equal(weights(seed=1, global_seed=2), weights(seed=1, global_seed=3))
    assert not torch.equal(weights(seed=1, global_seed=2), weights(seed=2, global_seed=2))


def test_output_head_and_token_embedding_are_one_parameter() -> None:
    model = GPT(ModelSettings(**SMALL))
    assert model.lm_head.weight is model.transformer.wte.weight
    assert "lm_head.weight" not in dict(model.named_parameters())
    assert "lm_head.weight" in model.state_dict()  # transformers expects it there


# Dropout


def test_dropout_is_off_by_default() -> None:
    assert ModelSettings().dropout == ModelSettings().attention_dropout == 0
    model = random_model(ModelSettings(**SMALL))
    idx = random_ids(2, 16)
    assert torch.equal(model.train()(idx), model.eval()(idx))


@pytest.mark.parametrize("kind", ["dropout", "attention_dropout"])
def test_dropout_is_active_in_training_only(kind: str) -> None:
    model = random_model(ModelSettings(**SMALL, **{kind: 0.5}))
    idx = random_ids(2, 16)
    assert torch.equal(model(idx), model(idx))
    model.train()
    assert not torch.equal(model(idx), model(idx))


def steps_of(model: GPT) -> dict[str, Callable[[], Tensor]]:
    """Each step of the model, on a fixed input."""
    generator = torch.Generator().manual_seed(0)
    x, heads = (torch.randn(shape, generator=generator) for shape in ((2, 16, 24), (2, 3, 16, 8)))
    block = model.transformer.h[0]
    return {
        "embedding": lambda: model.embed(random_ids(2, 16)),
        "projection": lambda: torch.stack(block.attn.project(x)),
        "attention": lambda: block.attn.attend(heads, heads, heads),
        "attention branch": lambda: block.attn.output(heads),
        "mlp branch": lambda: block.mlp(x),
        "norm": lambda: model.norm(x),
        "head": lambda: model.unembed(x),
    }


@pytest.mark.parametrize(
    ("kind", "affected"),
    [("dropout", {"embedding", "attention branch", "mlp branch"}), ("attention_dropout", {"attention"})],
)
def test_each_dropout_affects_its_own_steps_only(kind: str, affected: set[str]) -> None:
    model = random_model(ModelSettings(**SMALL, **{kind: 0.5}))
    without = {name: step() for name, step in steps_of(model).items()}
    dropped = {name: step() for name, step in steps_of(model.train()).items()}
    assert {name for name in without if not torch.equal(without[name], dropped[name])} == affected
    for name in affected - {"attention"}:  # half of the values are 0, the others doubled
        is_zero = dropped[name] == 0
        assert 0.4 < is_zero.float().mean() < 0.6
        assert torch.equal(dropped[name], torch.where(is_zero, 0, without[name] * 2))


# Shape comments


AXIS = r"\s*(?:\d+[A-Z]?|[A-Z])(?:[+*/-](?:\d+[A-Z]?|[A-Z]))*\s*"  # B, 3, 4C, S-T
SHAPE_COMMENT = re.compile(rf"#\s*\(({AXIS}(?:,{AXIS})*),?\s*\)")


def shape_comments(source: str) -> dict[int, list[str]]:
    """The axes of every comment like `# (B, T, 4C)`, by line."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = ((t.start[0], SHAPE_COMMENT.match(t.string)) for t in tokens if t.type == tokenize.COMMENT)
    return {line: match[1].replace(" ", "").split(",") for line, match in comments if match}


class InsertChecks(ast.NodeTransformer):
    """Rewrites statements that end on one of `lines` so that they pass their result to `check(line, result)`."""

    def __init__(self, lines: Container[int]) -> None:
        self.lines = lines

    def visit(self, node: ast.AST) -> ast.AST | list[ast.AST]:
        self.generic_visit(node)
        line = getattr(node, "end_lineno", None)
        if line not in self.lines:
            return node
        match node:
            case ast.Return(value=ast.expr() as result):
                node.value = self.check(line, result)
            case ast.Assign(targets=targets):
                return [node, *(ast.Expr(self.check(line, target)) for target in targets)]
            case ast.AnnAssign(target=target) | ast.AugAssign(target=target):
                return [node, ast.Expr(self.check(line, target))]
        return node

    def check(self, line: int, result: ast.expr) -> ast.expr:
        return ast.parse(f"check({line}, {ast.unparse(result)})", mode="eval").body


def wrong_shape_comments(source: str, use: Callable[[ModuleType, dict[str, int]], None]) -> list[str]:
    """The shape comments of `source` that are wrong, and those on lines that were not run.

    `use(module, sizes)` runs the code and keeps the size of every axis letter in `sizes` up to date.
    """
    comments = shape_comments(source)
    unchecked, wrong, sizes = set(comments), [], {}

    def check(line: int, result: Any) -> Any:
        unchecked.discard(line)
        expected = [eval(re.sub(r"(\d)([A-Z])", r"\1*\2", axis), {}, sizes) for axis in comments[line]]
        for tensor in (result,) if isinstance(result, Tensor) else result:
            if list(tensor.shape) != expected:
                wrong.append(f"line {line}: ({', '.join(comments[line])}) is {expected}, not {list(tensor.shape)}")
        return result

    module = ModuleType("module_with_checks")
    module.check = check
    tree = ast.fix_missing_locations(InsertChecks(comments).visit(ast.parse(source)))
    exec(compile(tree, module.__name__, "exec"), module.__dict__)
    use(module, sizes)
    return wrong + [f"line {line}: ({', '.join(comments[line])}) was never checked" for line in sorted(unchecked)]


def test_every_shape_comment_of_the_model_is_true() -> None:
    def use(module: ModuleType, sizes: dict[str, int]) -> None:
        """Run a batch in two chunks, with a different size for every letter, then once without a cache."""
        B, C, H, D, V = 2, 20, 5, 4, 11
        settings = ModelSettings(n_layer=2, n_head=H, n_embd=C, block_size=17, vocab_size=V)
        model = module.GPT(settings)
        cache = module.KVCache(model, batch=B)
        for T in (6, 7):
            sizes.update(B=B, T=T, S=cache.lengths[0] + T, C=C, H=H, D=D, V=V)
            model(random_ids(B, T, V), cache)
        model(random_ids(B, T, V))
        assert len(set(sizes.values())) == len(sizes)

    source = Path(octavo.model.__file__).read_text(encoding="utf-8")
    assert len(shape_comments(source)) > 10
    assert wrong_shape_comments(source, use) == []


WRONG_COMMENTS = """\
import torch
def forward(x, more):
    y: torch.Tensor = x + 1  # (B, T)
    z = torch.cat(
        [x, x]
    )  # (B, T): wrong, on the last line of a statement
    a, b = x, x.mT  # (B, T): true of the first only
    x += 1  # (2B, T)
    if more:
        x = 2 * x  # (B, T)
    return (
        x.mT
    )  # (T, B)
# (not a shape)
"""


def test_a_wrong_shape_comment_is_found() -> None:
    def use(module: ModuleType, sizes: dict[str, int]) -> None:
        sizes.update(B=2, T=3)
        module.forward(torch.zeros(2, 3), more=False)

    assert wrong_shape_comments(WRONG_COMMENTS, use) == [
        "line 6: (B, T) is [2, 3], not [4, 3]",
        "line 7: (B, T) is [2, 3], not [3, 2]",
        "line 8: (2B, T) is [4, 3], not [2, 3]",
        "line 10: (B, T) was never checked",
    ]
