"""The model is GPT-2: held against a plain reference, against transformers, and against its own comments."""

import ast
import io
import math
import re
import tokenize
from collections.abc import Callable, Container, Iterator
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
law = hypothesis.settings(derandomize=True, deadline=None, max_examples=30)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors are tiny here; on a busy machine two threads would mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def wide(settings: ModelSettings, seed: int = 0) -> GPT:
    """A model whose weights, biases and norms lie far enough apart that a mistake in any of them shows."""
    model = GPT(settings).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        middle = 1.0 if ".ln_" in name and name.endswith("weight") else 0.0
        nn.init.normal_(parameter, middle, 0.2, generator=generator)
    return model


def texts(batch: int, length: int, vocab_size: int = 29, seed: int = 0) -> Tensor:
    """Ids (B, T)."""
    return torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def assert_near(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=0, atol=tolerance)


# The same function as GPT-2


@st.composite
def shapes(draw: st.DrawFn) -> ModelSettings:
    n_head = draw(st.integers(1, 4))
    return ModelSettings(
        n_layer=draw(st.integers(1, 3)),
        n_head=n_head,
        n_embd=n_head * draw(st.integers(8, 12)),  # a norm over two or three numbers is ill-conditioned
        block_size=draw(st.integers(2, 16)),
        vocab_size=draw(st.integers(2, 40)),
        bias=draw(st.booleans()),
        activation=draw(st.sampled_from(["gelu_new", "gelu"])),
    )


@law
@hypothesis.given(settings=shapes(), data=st.data())
def test_logits_and_gradients_equal_the_plain_reference(settings: ModelSettings, data: st.DataObject) -> None:
    model = wide(settings)
    idx = texts(2, data.draw(st.integers(2, settings.block_size), label="length"), settings.vocab_size)
    weights = {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}

    ours = model(idx)
    theirs = torch.stack([gpt2(weights, settings, ids) for ids in idx])
    assert_near(ours, theirs)

    for logits in (ours, theirs):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), idx[:, 1:].flatten()).backward()
    for name, parameter in model.named_parameters():
        assert_near(parameter.grad, weights[name].grad)


def test_the_reference_tells_the_two_gelus_apart() -> None:
    exact, tanh = (ModelSettings(**SMALL, activation=each) for each in ("gelu", "gelu_new"))
    weights = dict(wide(exact).named_parameters())
    ids = texts(1, 16)[0]
    difference = (gpt2(weights, exact, ids) - gpt2(weights, tanh, ids)).abs().max().item()
    assert difference > 1e-4  # ten times what the comparison above lets through


@pytest.mark.parametrize("activation", ["gelu_new", "gelu"])
def test_transformers_gpt2_with_the_same_weights_gives_the_same_logits(activation: str) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = wide(ModelSettings(**SMALL, activation=activation))
    shape = {name: SMALL[name] for name in ("n_layer", "n_head", "n_embd", "vocab_size")}
    theirs = GPT2LMHeadModel(GPT2Config(**shape, n_positions=16, activation_function=activation)).eval()
    linear = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # theirs are Conv1D: (in, out)
    theirs.load_state_dict({k: w.T if k.endswith(linear) else w for k, w in model.state_dict().items()})
    idx = texts(3, 16)
    assert_near(model(idx), theirs(idx).logits)


PUBLISHED = {  # with all 50,257 tokens and 1,024 positions
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
}


def parameters(preset: str, vocab_size: int) -> dict[str, int]:
    with torch.device("meta"):
        model = GPT(resolve(preset, vocab_size=vocab_size))
    return {name: parameter.numel() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_presets_have_as_many_parameters_as_the_published_models(preset: str) -> None:
    assert sum(parameters(preset, 50257).values()) == PUBLISHED[preset]


def test_baby_has_at_most_ten_point_seven_million_parameters() -> None:
    assert sum(parameters("baby", 65).values()) == 4_821_248 <= 10_700_000
    counts = parameters("nanogpt-baby", 65)
    del counts["transformer.wpe.weight"]  # nanoGPT leaves positions out
    assert sum(counts.values()) == 10_646_784


def test_a_model_without_a_vocabulary_is_refused() -> None:
    with pytest.raises(OctavoError, match="vocab_size=0"):
        GPT(ModelSettings())


# Order and time


def test_a_position_reads_itself_and_the_past_and_nothing_else() -> None:
    model = wide(ModelSettings(**SMALL))
    x = model.embed(texts(2, 12)).detach().requires_grad_()
    logits = model.unembed(model.norm(model.blocks(x)))
    for t in range(12):
        (gradient,) = torch.autograd.grad(logits[0, t].sum(), x, retain_graph=True)
        reads = (gradient != 0).any(dim=-1)
        assert reads[0, : t + 1].all()
        assert not reads[0, t + 1 :].any()
        assert not reads[1].any()  # nor another text of the batch


@law
@hypothesis.given(cuts=st.sets(st.integers(1, 15)))
@hypothesis.example(cuts=set(range(1, 16)))  # one by one
@hypothesis.example(cuts={5, 6, 13})
def test_cached_decoding_equals_full_forward_however_the_text_is_cut(cuts: set[int]) -> None:
    model = wide(ModelSettings(**SMALL))
    idx = texts(3, 16)
    cache = KVCache(model, batch=3)
    with torch.no_grad():
        pieces = [model(piece, cache) for piece in idx.tensor_split(sorted(cuts), dim=1)]
        assert_near(torch.cat(pieces, dim=1), model(idx))
    assert cache.lengths == [16, 16, 16]


@law
@hypothesis.given(data=st.data())
def test_texts_of_different_lengths_on_one_cache_get_what_each_gets_alone(data: st.DataObject) -> None:
    model = wide(ModelSettings(**SMALL))
    idx = texts(4, 16)
    cache = KVCache(model, batch=4)
    lengths = [0] * 4
    with torch.no_grad():
        alone = model(idx)
        for _ in range(6):
            rows = data.draw(st.lists(st.integers(0, 3), min_size=1, unique=True))
            T = data.draw(st.integers(1, 4))
            rows = [row for row in rows if lengths[row] + T <= 16]
            if not rows:
                continue
            new = torch.stack([idx[row, lengths[row] : lengths[row] + T] for row in rows])
            logits = model(new, cache.select(rows, [lengths[row] for row in rows]))
            for row, got in zip(rows, logits, strict=True):
                assert_near(got, alone[row, lengths[row] : lengths[row] + T])
                lengths[row] += T


def test_a_text_longer_than_the_block_is_refused() -> None:
    model = wide(ModelSettings(**SMALL))
    with pytest.raises(OctavoError, match=r"17 positions.* 16"):
        model(texts(1, 17))


@torch.no_grad()
def test_a_full_cache_refuses_more_and_stays_as_it_was() -> None:
    model = wide(ModelSettings(**SMALL))
    cache = KVCache(model)
    model(texts(1, 15), cache)
    with pytest.raises(OctavoError, match=r"17 positions.* 16"):
        model(texts(1, 2), cache)
    assert cache.lengths == [15]
    model(texts(1, 1), cache)


# How weights start


def test_weights_start_as_those_of_gpt2() -> None:
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


def test_uniform_embeddings_fill_the_range_one_over_the_root_of_the_width() -> None:
    settings = ModelSettings(n_embd=64, vocab_size=1000, block_size=512, embedding_init="uniform")
    model = GPT(settings, torch.Generator().manual_seed(0))
    bound = 1 / math.sqrt(64)
    for table in (model.transformer.wte.weight, model.transformer.wpe.weight):
        assert table.abs().max() <= bound
        shares = table.histc(bins=8, min=-bound, max=bound) / table.numel()
        assert_near(shares, torch.full((8,), 1 / 8), 0.005)
    assert model.transformer.h[0].attn.c_attn.weight.std().item() == pytest.approx(0.02, rel=0.03)


@pytest.mark.parametrize("embedding_init", ["normal", "uniform"])
def test_the_generator_alone_decides_the_weights(embedding_init: str) -> None:
    def weights(seed: int, global_seed: int) -> Tensor:
        torch.manual_seed(global_seed)
        settings = ModelSettings(**SMALL, embedding_init=embedding_init)
        model = GPT(settings, torch.Generator().manual_seed(seed))
        return nn.utils.parameters_to_vector(model.parameters())

    assert torch.equal(weights(seed=1, global_seed=2), weights(seed=1, global_seed=3))
    assert not torch.equal(weights(seed=1, global_seed=2), weights(seed=2, global_seed=2))


def test_head_and_token_embedding_are_one_parameter() -> None:
    model = GPT(ModelSettings(**SMALL))
    assert model.lm_head.weight is model.transformer.wte.weight
    assert "lm_head.weight" not in dict(model.named_parameters())
    assert "lm_head.weight" in model.state_dict()  # where transformers looks for it


# Dropout


def test_dropout_is_zero_unless_asked_for() -> None:
    assert ModelSettings().dropout == ModelSettings().attention_dropout == 0
    model = wide(ModelSettings(**SMALL))
    idx = texts(2, 16)
    assert torch.equal(model.train()(idx), model.eval()(idx))


@pytest.mark.parametrize("kind", ["dropout", "attention_dropout"])
def test_dropout_acts_in_training_only(kind: str) -> None:
    model = wide(ModelSettings(**SMALL, **{kind: 0.5}))
    idx = texts(2, 16)
    assert torch.equal(model(idx), model(idx))
    model.train()
    assert not torch.equal(model(idx), model(idx))


def stages(model: GPT) -> dict[str, Callable[[], Tensor]]:
    """Each stage of the model by itself, to be run on one and the same input again and again."""
    generator = torch.Generator().manual_seed(0)
    x, heads = (torch.randn(shape, generator=generator) for shape in ((2, 16, 24), (2, 3, 16, 8)))
    first = model.transformer.h[0]
    return {
        "embedding": lambda: model.embed(texts(2, 16)),
        "projection": lambda: torch.stack(first.attn.project(x)),
        "attention": lambda: first.attn.attend(heads, heads, heads),
        "attention branch": lambda: first.attn.output(heads),
        "mlp branch": lambda: first.mlp(x),
        "norm": lambda: model.norm(x),
        "head": lambda: model.unembed(x),
    }


@pytest.mark.parametrize(
    ("kind", "places"),
    [("dropout", {"embedding", "attention branch", "mlp branch"}), ("attention_dropout", {"attention"})],
)
def test_each_dropout_acts_in_its_own_places(kind: str, places: set[str]) -> None:
    model = wide(ModelSettings(**SMALL, **{kind: 0.5}))
    kept = {name: stage() for name, stage in stages(model).items()}
    dropped = {name: stage() for name, stage in stages(model.train()).items()}
    assert {name for name in kept if not torch.equal(kept[name], dropped[name])} == places
    for name in places - {"attention"}:  # half of it is gone, the other half doubled in its place
        gone = dropped[name] == 0
        assert 0.4 < gone.float().mean() < 0.6
        assert torch.equal(dropped[name], torch.where(gone, 0, kept[name] * 2))


# The shape comments


AXIS = r"\s*(?:\d+[A-Z]?|[A-Z])(?:[+*/-](?:\d+[A-Z]?|[A-Z]))*\s*"  # B, 3, 4C, S-T
SHAPE_COMMENT = re.compile(rf"#\s*\(({AXIS}(?:,{AXIS})*),?\s*\)")


def shape_comments(source: str) -> dict[int, list[str]]:
    """The axes of every comment like `# (B, T, 4C)`, by line."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = ((t.start[0], SHAPE_COMMENT.match(t.string)) for t in tokens if t.type == tokenize.COMMENT)
    return {line: found[1].replace(" ", "").split(",") for line, found in comments if found}


class Reporting(ast.NodeTransformer):
    """Rewrites code so that a statement that ends on one of `lines` hands what it made to `report`."""

    def __init__(self, lines: Container[int]) -> None:
        self.lines = lines

    def visit(self, node: ast.AST) -> ast.AST | list[ast.AST]:
        self.generic_visit(node)
        line = getattr(node, "end_lineno", None)
        if line not in self.lines:
            return node
        match node:
            case ast.Return(value=ast.expr() as made):
                node.value = self.report(line, made)
            case ast.Assign(targets=all_made):
                return [node, *(ast.Expr(self.report(line, made)) for made in all_made)]
            case ast.AnnAssign(target=made) | ast.AugAssign(target=made):
                return [node, ast.Expr(self.report(line, made))]
        return node

    def report(self, line: int, made: ast.expr) -> ast.expr:
        return ast.parse(f"report({line}, {ast.unparse(made)})", mode="eval").body


def lies(source: str, walk: Callable[[ModuleType, dict[str, int]], None]) -> list[str]:
    """What the shape comments of `source` get wrong, and which of them nothing reached.

    `walk` runs the code, as the module it is given, and keeps the dict up to date with each letter's size.
    """
    comments = shape_comments(source)
    unchecked, wrong, sizes = set(comments), [], {}

    def report(line: int, made: Any) -> Any:
        unchecked.discard(line)
        said = [eval(re.sub(r"(\d)([A-Z])", r"\1*\2", axis), {}, sizes) for axis in comments[line]]
        for tensor in (made,) if isinstance(made, Tensor) else made:
            if list(tensor.shape) != said:
                wrong.append(f"line {line}: ({', '.join(comments[line])}) is {said}, not {list(tensor.shape)}")
        return made

    module = ModuleType("watched")
    module.report = report
    tree = ast.fix_missing_locations(Reporting(comments).visit(ast.parse(source)))
    exec(compile(tree, "watched", "exec"), module.__dict__)
    walk(module, sizes)
    return wrong + [f"line {line}: ({', '.join(comments[line])}) was never checked" for line in sorted(unchecked)]


def test_every_shape_comment_of_the_model_is_true() -> None:
    def walk(module: ModuleType, sizes: dict[str, int]) -> None:
        """Texts in two pieces, so that no two letters mean the same number; then one of them without a cache."""
        B, C, H, D, V = 2, 20, 5, 4, 11
        settings = ModelSettings(n_layer=2, n_head=H, n_embd=C, block_size=17, vocab_size=V)
        model = module.GPT(settings)
        cache = module.KVCache(model, batch=B)
        for T in (6, 7):
            sizes.update(B=B, T=T, S=cache.lengths[0] + T, C=C, H=H, D=D, V=V)
            model(texts(B, T, V), cache)
        model(texts(B, T, V))
        assert len(set(sizes.values())) == len(sizes)

    source = Path(octavo.model.__file__).read_text(encoding="utf-8")
    assert len(shape_comments(source)) > 10
    assert lies(source, walk) == []


MADE_UP = """\
import torch
def forward(x, more):
    y: torch.Tensor = x + 1  # (B, T)
    z = torch.cat(
        [x, x]
    )  # (B, T): a lie on a closing line
    a, b = x, x.mT  # (B, T): true of the first only
    x += 1  # (2B, T)
    if more:
        x = 2 * x  # (B, T)
    return (
        x.mT
    )  # (T, B)
# (as a remark)
"""


def test_a_lying_shape_comment_would_be_caught() -> None:
    def walk(module: ModuleType, sizes: dict[str, int]) -> None:
        sizes.update(B=2, T=3)
        module.forward(torch.zeros(2, 3), more=False)

    assert lies(MADE_UP, walk) == [
        "line 6: (B, T) is [2, 3], not [4, 3]",
        "line 7: (B, T) is [2, 3], not [3, 2]",
        "line 8: (2B, T) is [4, 3], not [2, 3]",
        "line 10: (B, T) was never checked",
    ]
