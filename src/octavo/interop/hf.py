"""Write a folder for transformers and the Hugging Face hub, with a model card.

Every checkpoint is such a folder already. This one has nothing that only Octavo reads, so other programs may change it:
no settings, no trainer state, no manifest. The card's section on training comes from octavo.json.
"""

import tomllib
from pathlib import Path

import tomli_w

from octavo import files
from octavo.checkpoint import Checkpoint
from octavo.interop import gpt2_folder
from octavo.settings import Settings, to_toml
from octavo.units import format_bytes


def write(checkpoint: Checkpoint, out: Path, precision: str) -> list[str]:
    """Write a folder with the model, its tokenizer and README.md."""
    with files.atomic_folder(out) as partial:
        gpt2_folder.write_model(partial, checkpoint.model, checkpoint.tokenizer)
        (partial / "README.md").write_text(_model_card(checkpoint, out.name), encoding="utf-8")
    return [f"{out / 'README.md'} names no license: add one before you publish the model"]


def _model_card(checkpoint: Checkpoint, name: str) -> str:
    """The model card: what the hub shows of a model. The first lines are YAML, which the hub searches."""
    settings, tokenizer = checkpoint.settings, checkpoint.tokenizer
    parameters = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    sections = [
        "---\n"
        "# license: the license of the model; required before it is published\n"
        "library_name: transformers\n"
        "pipeline_tag: text-generation\n"
        "tags:\n- gpt2\n- octavo\n"
        "---",
        f"# {name}",
        f"A language model with GPT-2's architecture: {parameters:,} parameters, {settings.n_layer} layers of width "
        f"{settings.n_embd} with {settings.n_head} heads, a context of {settings.block_size:,} tokens, and a "
        f"{tokenizer.kind} tokenizer with {tokenizer.vocab_size:,} tokens.",
        "## Use",
        "```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n'
        f'model = AutoModelForCausalLM.from_pretrained("{name}")\n'
        'inputs = tokenizer("The ", return_tensors="pt")\n'
        f"ids = model.generate(**inputs, max_new_tokens={min(50, settings.block_size // 2)})\n"
        "print(tokenizer.decode(ids[0]))\n"
        "```",
        "## Training",
        _describe_training(checkpoint),
        "## Limits",
        "The model continues a text in the manner of its training text. It was not trained to follow instructions or "
        "to answer questions, and it may repeat passages of that text. What it states may be wrong, and it has the "
        f"biases of its text. It sees the last {settings.block_size:,} tokens, and nothing before them.",
    ]
    return "\n\n".join(sections) + "\n"


def _describe_training(checkpoint: Checkpoint) -> str:
    info, settings = checkpoint.info, checkpoint.settings
    if not isinstance(settings, Settings) or not info.get("data"):
        return "The folder that this model was converted from does not record its training."
    text = info["data"].get("text", {})
    data = [info["data"]["name"]]
    data += [format_bytes(text["bytes"])] if text.get("bytes") else []
    data += [f"{text['documents']:,} documents"] if text.get("documents", 1) > 1 else []
    rows = [("data", ", ".join(data)), ("steps", f"{info['step']:,}"), ("tokens", f"{info['tokens']:,}")]
    losses = (
        ("train_loss", "training loss, nats per token"),
        ("val_loss", "validation loss, nats per token"),
        ("bits_per_byte", "validation loss, bits per byte"),
    )
    rows += [(label, f"{info[key]:.4f}") for key, label in losses if info.get(key) is not None]
    table = "\n".join(["| | |", "|---|---|", *(f"| {label} | {value} |" for label, value in rows)])
    values = tomllib.loads(to_toml(settings))
    del values["data"]["source"]  # a path of this machine
    return f"{table}\n\nThe settings, as a file for `octavo train --config`:\n\n```toml\n{tomli_w.dumps(values)}```"
