"""What transformers of any version must do with a checkpoint's folder. Nothing of Octavo is imported here, so that
`bench/transformers_versions.py` can run this file where older packages replace those that Octavo needs.

    python tests/transformers_checks.py FOLDER OUT

FOLDER is a checkpoint, beside which FOLDER.json has what Octavo computes, see `Expected`. OUT gets two folders that
transformers saved, `trained` and `merged`, each with a file of its logits beside it.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

NEW_TOKENS = 8


class Expected(TypedDict):
    """What Octavo computes from each of the texts."""

    texts: list[str]
    ids: list[list[int]]
    logits: list[list[list[float]]]  # (T, V) of each text
    losses: list[float]
    greedy: list[list[int]]  # the most likely `NEW_TOKENS` tokens after each text, or fewer and the eos token


class _Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def check_folder(folder: Path, expected: Expected, out: Path) -> None:
    """Raises `AssertionError` at the first difference."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    log = _Messages()
    logging.getLogger("transformers").addHandler(log)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    singles = []
    for text, ids, logits, loss, greedy in zip(*expected.values(), strict=True):
        inputs = tokenizer(text, return_tensors="pt")
        assert list(inputs) == ["input_ids", "attention_mask"]
        assert inputs["input_ids"].tolist() == [ids]
        with torch.no_grad():
            output = model(**inputs, labels=inputs["input_ids"])
        torch.testing.assert_close(output.logits[0], torch.tensor(logits), rtol=0, atol=1e-5)
        torch.testing.assert_close(output.loss, torch.tensor(loss), rtol=0, atol=1e-5)
        generated = model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)[0, len(ids) :].tolist()
        assert generated == greedy, (generated, greedy)
        singles.append(generated)
    assert not [message for message in log.messages if "max_length" in message or "max_new_tokens" in message]
    check_batch(model, tokenizer, expected["texts"], singles)
    train(model, tokenizer, expected["texts"], out / "trained")
    merge_adapter(AutoModelForCausalLM.from_pretrained(folder), tokenizer, expected["texts"], out / "merged")


def check_batch(model: Any, tokenizer: Any, texts: list[str], singles: list[list[int]]) -> None:
    """The texts of a batch that is padded on the left are those of each prompt alone."""
    tokenizer.padding_side = "left"
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    T = inputs["input_ids"].shape[1]
    generated = model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)[:, T:].tolist()
    for row, single in zip(generated, singles, strict=True):
        assert row[: len(single)] == single
        assert set(row[len(single) :]) <= {tokenizer.pad_token_id}


def train(model: Any, tokenizer: Any, texts: list[str], out: Path) -> None:
    """A step of the Trainer, with the collator that pads and makes labels."""
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

    examples = [tokenizer(text, truncation=True) for text in [*texts, texts[0] * 99]]
    assert len(examples[-1]["input_ids"]) == model.config.n_positions
    arguments = TrainingArguments(str(out), max_steps=1, per_device_train_batch_size=4, use_cpu=True, report_to="none")
    arguments.save_strategy = "no"
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    Trainer(model=model, args=arguments, train_dataset=examples, data_collator=collator).train()
    save(model, tokenizer, texts[0], out)


def merge_adapter(model: Any, tokenizer: Any, texts: list[str], out: Path) -> None:
    """A LoRA adapter with random weights, merged into the model."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False
    )
    save(get_peft_model(model, config).merge_and_unload(), tokenizer, texts[0], out)


def save(model: Any, tokenizer: Any, text: str, out: Path) -> None:
    """Save as transformers does, and the logits of a text beside it."""
    model.eval().save_pretrained(out)
    tokenizer.save_pretrained(out)
    inputs = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        logits: Tensor = model(**inputs).logits[0]
    out.with_suffix(".json").write_text(json.dumps({"text": text, "logits": logits.tolist()}), encoding="utf-8")


if __name__ == "__main__":
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    check_folder(folder, json.loads(folder.with_suffix(".json").read_text(encoding="utf-8")), out)
