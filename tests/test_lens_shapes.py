"""The view `shapes`: shapes, parameters, FLOPs and values are those of a forward pass."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lenses import LINE, Case, assert_near
from octavo import lens
from octavo.errors import OctavoError
from octavo.lens.capture import attend_by_pattern, inference, logits
from octavo.settings import resolve

pytestmark = pytest.mark.usefixtures("one_thread")


def test_shapes_and_parameters_match_the_modules_of_a_forward_pass(case: Case) -> None:
    model, C, T = case.model, case.settings.n_embd, len(case.ids)
    outputs: dict[str, set[tuple[int, ...]]] = {}
    hooks = [
        module.register_forward_hook(
            lambda _, __, out, name=name: outputs.setdefault(name, set()).add(tuple(out.shape))
        )
        for name, module in model.named_modules()
    ]
    model(torch.tensor([case.ids]))
    for hook in hooks:
        hook.remove()
    stages = {stage.name: stage for stage in lens.shapes(case.loaded, LINE).stages}
    blocks = range(case.settings.n_layer)
    for name in ("ln_1", "attn.c_proj", "ln_2", "mlp.c_proj"):
        assert all(outputs[f"transformer.h.{i}.{name}"] == {stages[f"h.{name}"].shape} for i in blocks)
    for name, path in (("wte", "transformer.wte"), ("ln_f", "transformer.ln_f"), ("logits", "lm_head")):
        assert outputs[path] == {stages[name].shape}
    assert all(outputs[f"transformer.h.{i}.attn.c_attn"] == {(1, T, 3 * C)} for i in blocks)
    assert stages["h.attn.c_attn"].shape == (1, case.settings.n_head, T, case.settings.head_size)
    assert all(outputs[f"transformer.h.{i}.mlp.c_fc"] == {stages["h.mlp.c_fc, GELU"].shape} for i in blocks)

    for name, stage in stages.items():
        stage_path = name.split(",")[0]
        modules = [
            m
            for path, m in model.named_modules()
            if path.removeprefix("transformer.") in (stage_path, stage_path.replace("h.", "h.0."))
        ]
        assert stage.parameters == sum(p.numel() for module in modules for p in module.parameters())
        assert stage.times == (case.settings.n_layer if name.startswith(("h.", "x +")) else 1)
    assert sum(s.parameters * s.times for s in stages.values()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("attend", [None, attend_by_pattern])
def test_flops_match_pytorchs_flop_counter(case: Case, attend: Any) -> None:
    """Both count two FLOPs for a multiplication with its addition, matrix products only, attention without mask.

    In `inference`, attention is two batched matrix products, which PyTorch's counter counts.
    """
    with inference(case.model), FlopCounterMode(display=False) as counter:
        logits(case.model, torch.tensor([case.ids]), attend)
    view = lens.shapes(case.loaded, LINE)
    assert view.flops == sum(stage.flops * stage.times for stage in view.stages) == counter.get_total_flops()


@pytest.mark.parametrize(("layer", "head"), [(0, 0), (2, 3), (-1, -1)])
def test_the_values_of_a_stage_match_the_plain_reference(case: Case, layer: int, head: int) -> None:
    view = lens.shapes(case.loaded, LINE, layer=layer, head=head)
    values = {stage.name: stage.values for stage in view.stages}
    layer, head = layer % 4, head % 4
    assert (view.layer, view.head) == (layer, head)
    rows = min(16, len(case.ids))
    assert values["idx"][0].tolist() == case.ids[:16]
    for name, expected in (
        ("x", case.streams[0]),
        ("x + mlp", case.streams[layer + 1]),
        ("h.attn: softmax", case.attention_pattern(layer, head)),
    ):
        assert values[name].shape == (rows, min(16, expected.shape[1]))
        assert_near(values[name], expected[:16, :16], 1e-4)
    columns = view.stages[-1].columns
    assert columns is not None
    logits = case.logits()
    assert columns == logits[-1].topk(min(16, logits.shape[1])).indices.tolist()
    assert_near(values["logits"], logits[:16, columns], 1e-4)


NOTES_SHAPES = """\
idx 1 512 0
wte 1 512 768 38597376
wpe 512 768 393216
x 1 512 768 0
h.ln_1 1 512 768 1536
h.attn.c_attn 1 12 512 64 1771776
h.attn: q kT / sqrt(D) 1 12 512 512 0
h.attn: softmax 1 12 512 512 0
h.attn: weights v 1 12 512 64 0
h.attn.c_proj 1 512 768 590592
x + attention 1 512 768 0
h.ln_2 1 512 768 1536
h.mlp.c_fc, GELU 1 512 3072 2362368
h.mlp.c_proj 1 512 768 2360064
x + mlp 1 512 768 0
ln_f 1 512 768 1536
logits 1 512 50257 0"""


def test_the_shapes_of_gpt2_512_are_those_of_the_notes() -> None:
    """The notes' model has 512 positions, width 768, 12 heads, 12 layers and 50,257 tokens."""
    view = lens.shapes(resolve("gpt2-512", vocab_size=50257))
    rows = [" ".join(map(str, (each.name, *each.shape, each.parameters))) for each in view.stages]
    assert "\n".join(rows) == NOTES_SHAPES
    assert {stage.times for stage in view.stages if stage.name.startswith(("h.", "x +"))} == {12}
    assert view.parameters == 124_046_592
    assert view.flops == 512 * 2 * (12 * 12 * 768**2 + 768 * 50257 + 12 * 2 * 512 * 768)
    assert view.tokens == []
    assert all(stage.values is None for stage in view.stages)


def test_settings_without_a_vocab_size_are_an_error() -> None:
    with pytest.raises(OctavoError, match="vocab_size"):
        lens.shapes(resolve("tiny"))
