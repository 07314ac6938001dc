"""transformers computes from a checkpoint what Octavo does, trains it, and Octavo loads the result.

`bench/transformers_versions.py` runs the same checks with older versions of transformers.
"""

import json
from pathlib import Path

import pytest
import torch
from transformers.utils import chat_template_utils

import octavo
from lenses import LINE, random_checkpoint
from octavo.checkpoint import Checkpoint
from octavo.generation.chat import template_process
from octavo.loss import next_token_loss
from test_chat import CHATML, TALK
from transformers_checks import NEW_TOKENS, Expected, check_folder

TEXTS = [LINE, "the cat", f"the mat. {LINE}"]
SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 128}


def expectation(model: Checkpoint) -> Expected:
    """What Octavo computes from the texts."""
    expected = Expected(texts=TEXTS, ids=[], logits=[], losses=[], greedy=[])
    for text in TEXTS:
        ids = model.tokenizer.encode(text).tolist()
        with torch.no_grad():
            logits = model.model(torch.tensor([ids]))
        loss = next_token_loss(logits[:, :-1], torch.tensor([ids[1:]])) / (len(ids) - 1)
        [sample] = octavo.generate(model, text, max_new_tokens=NEW_TOKENS, temperature=0)
        end = [model.tokenizer.end_of_text] if sample.finish_reason == "end_of_text" else []
        for name, value in (("ids", ids), ("logits", logits[0].tolist()), ("losses", float(loss))):
            expected[name].append(value)
        expected["greedy"].append(sample.token_ids + end)
    return expected


def assert_loads(folder: Path, model: Checkpoint) -> None:
    """Octavo computes from a folder that transformers saved what transformers does, with the same ids."""
    saved, loaded = json.loads(folder.with_suffix(".json").read_text(encoding="utf-8")), octavo.load(folder)
    ids = loaded.tokenizer.encode(saved["text"]).tolist()
    assert ids == model.tokenizer.encode(saved["text"]).tolist()
    assert loaded.tokenizer.beginning_of_text == model.tokenizer.beginning_of_text
    with torch.no_grad():
        logits = loaded.model(torch.tensor([ids]))[0]
    torch.testing.assert_close(logits, torch.tensor(saved["logits"]), rtol=0, atol=1e-5)
    assert not torch.allclose(logits, model.model(torch.tensor([ids]))[0], atol=1e-3)  # it was trained


@pytest.mark.filterwarnings("ignore")  # warnings of transformers, accelerate and peft about each other
@pytest.mark.parametrize(("kind", "bias"), [("char", True), ("byte", False), ("word:400", True), ("bpe:400", False)])
def test_transformers_computes_trains_and_returns_the_same_model(kind: str, bias: bool, tmp_path: Path) -> None:
    model = random_checkpoint(tmp_path / "model", kind, bias=bias, **SHAPE)
    check_folder(model.folder, expectation(model), tmp_path)
    for name in ("trained", "merged"):
        assert_loads(tmp_path / name, model)


# Chat templates

TEMPLATES = {
    "chatml": CHATML,
    "tags on own lines": "{% for m in messages %}\n    {% if m.role == 'user' %}\n[{{ m.content }}]\n"
    "    {% endif %}\n{% endfor %}\nend",
    "roles": "{{ bos_token }}{% for m in messages %}{{ m.role }}{{ loop.last }}{{ eos_token }}{% endfor %}",
    "tojson": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}",
    "loop controls": "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}\n{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "undefined": "{% if tools is defined and tools %}tools{% else %}none{% endif %}{{ nothing }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_is_rendered_as_transformers_does(name: str) -> None:
    messages = [vars(message) for message in TALK]
    values = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True}
    [expected], _ = chat_template_utils.render_jinja_template([messages], chat_template=TEMPLATES[name], **values)
    assert template_process().render(TEMPLATES[name], {"messages": messages} | values) == expected
