"""Named sets of settings."""

from typing import Any

# GPT-2's sizes (width, layers, heads), with learning rates from GPT-3's table 2.1 and nanoGPT's recipe for 124M.
_GPT2: dict[str, Any] = dict(
    optimizer="adamw",
    weight_init="noise",
    schedule="cosine",
    block_size=1024,
    n_layer=12,
    n_head=12,
    n_embd=768,
    tokenizer="gpt2",
    batch_size=480,
    max_steps=20_000,
    learning_rate=6e-4,
    min_learning_rate=6e-5,
    warmup_steps=700,
    beta2=0.95,
    eval_every=500,
    sample_every=1000,
    val_fraction=0.01,
)
# nanoGPT's published recipes, unchanged: config/train_shakespeare_char.py and the CPU command in its README.
_NANOGPT: dict[str, Any] = dict(
    optimizer="adamw",
    weight_init="noise",
    schedule="cosine",
    tokenizer="char",
    bias=False,
    activation="gelu",
    learning_rate=1e-3,
    min_learning_rate=1e-4,
    warmup_steps=100,
    beta2=0.99,
    weight_decay=0.1,
    grad_clip=1.0,
    eval_every=250,
    precision="fp32",
)

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {},  # the defaults: about a minute on two cores of a laptop
    "quick": dict(
        n_layer=2, max_steps=150, max_epochs=8.0, warmup_steps=3, learning_rate=6e-3, beta1=0.8, momentum=0.8
    ),
    "baby": dict(
        block_size=256,
        n_layer=6,
        n_head=4,
        n_embd=256,
        dropout=0.15,
        batch_size=16,
        max_steps=2400,
        max_epochs=10.0,
        curriculum_splits=2,
        curriculum_fraction=0.5,
        muon_learning_rate=0.03,
        muon_weight_decay=0.1,
        eval_every=600,
        sample_every=600,
    ),
    "words": dict(tokenizer="word", n_layer=2, max_steps=1500, max_epochs=8.0, eval_every=250),
    "gpt2-512": _GPT2 | dict(block_size=512),
    "gpt2": _GPT2,
    "gpt2-medium": _GPT2 | dict(n_layer=24, n_head=16, n_embd=1024, learning_rate=3e-4, min_learning_rate=3e-5),
    "gpt2-large": _GPT2 | dict(n_layer=36, n_head=20, n_embd=1280, learning_rate=2.5e-4, min_learning_rate=2.5e-5),
    "gpt2-xl": _GPT2 | dict(n_layer=48, n_head=25, n_embd=1600, learning_rate=2e-4, min_learning_rate=2e-5),
    "finetune": _GPT2
    | dict(
        batch_size=32,
        max_steps=200,
        learning_rate=3e-5,
        min_learning_rate=3e-6,
        schedule="linear",
        warmup_steps=10,
        dropout=0.1,
        eval_every=20,
        sample_every=50,
        val_fraction=0.1,
    ),
    "nanogpt-tiny": _NANOGPT
    | dict(block_size=64, n_layer=4, n_head=4, n_embd=128, batch_size=12, max_steps=2000, sample_every=500),
    "nanogpt-baby": _NANOGPT
    | dict(
        block_size=256,
        n_layer=6,
        n_head=6,
        n_embd=384,
        batch_size=64,
        max_steps=5000,
        dropout=0.2,
        attention_dropout=0.2,
        sample_every=1000,
    ),
}
