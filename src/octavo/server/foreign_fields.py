"""Fields of other servers and clients that this API does not have: the accepted ones, and advice on the others.

If a field that changes the text were ignored, a client would get another text than it asked for. So an unknown field
is an error, unless it changes neither the text nor the response: at any value (`HARMLESS`), or at the value that asks
for what this server does anyway (`NEUTRAL_VALUES`).
"""

import difflib
import json
from collections.abc import Collection
from typing import Any

HARMLESS = frozenset(
    (
        "add_special_tokens",  # GPT-2 has none to add
        "cache_control",  # of a message: what a provider should cache
        "cache_prompt",  # a cached prompt gives the same text
        "include_obfuscation",  # padding of OpenAI's stream events, against an attack on encrypted connections
        "metadata",
        "priority",
        "prompt_cache_key",
        "prompt_cache_retention",
        "request_id",
        "safety_identifier",
        "service_tier",
        "session_id",
        "spaces_between_special_tokens",  # no spaces are added between tokens
        "store",
    )
)
NEUTRAL_VALUES: dict[str, Any] = {
    "add_generation_prompt": True,
    "annotations": [],
    "chat_template_kwargs": {},
    "continue_final_message": False,
    "do_sample": True,
    "dry_multiplier": 0,
    "dynatemp_range": 0,
    "early_stopping": False,
    "functions": [],
    "grammar": "",
    "length_penalty": 1,
    "logits_processors": [],
    "min_length": 0,
    "mirostat": 0,
    "mirostat_mode": 0,
    "modalities": ["text"],
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "repeat_penalty": 1,
    "response_format": {"type": "text"},
    "skip_special_tokens": False,
    "stream_interval": 1,
    "suffix": "",
    "tfs_z": 1,
    "timings_per_token": False,
    "tool_calls": [],
    "tool_choice": "none",
    "tools": [],
    "top_a": 0,
    "truncation_side": "left",
    "typical_p": 1,
    "use_beam_search": False,
    "watermark": False,
    "watermarking": False,
    "xtc_probability": 0,
}
_NAMES = {  # what the field is called here
    "ban_eos_token": "ignore_eos",
    "do_sample": "temperature",  # 0: greedy
    "eos_token_id": "stop_token_ids",
    "input": "prompt",
    "inputs": "prompt",
    "max_completion_tokens": "max_tokens",
    "max_gen_toks": "max_tokens",
    "max_length": "max_tokens",
    "max_new_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "min_length": "min_tokens",
    "min_new_tokens": "min_tokens",
    "n_cmpl": "n",
    "n_predict": "max_tokens",
    "n_probs": "logprobs",
    "num_predict": "max_tokens",
    "num_return_sequences": "n",
    "rep_pen": "repetition_penalty",
    "repeat_penalty": "repetition_penalty",
    "return_tokens": "return_token_ids",
    "sampler_seed": "seed",
    "stop_sequence": "stop",
    "stop_sequences": "stop",
    "stop_strings": "stop",
    "stopping_strings": "stop",
    "temp": "temperature",
    "top_logprobs": "logprobs",
    "truncate": "truncate_prompt_tokens",
    "truncation_length": "truncate_prompt_tokens",
    "until": "stop",
} | dict.fromkeys(("bad_words_ids", "banned_strings", "banned_tokens", "custom_token_bans"), "bad_words")
_REASONS = {
    "suffix": "GPT-2 generates from left to right: it cannot generate what comes before a suffix",
    "messages": "a conversation is for /v1/chat/completions; send a prompt here",
    "prompt": "a prompt is for /v1/completions; send messages here",
}


def check_unknown_field(name: str, value: Any, known: Collection[str]) -> None:
    """Raise `ValueError` for a field that a body does not have, unless ignoring it changes nothing."""
    if value is None or name in HARMLESS or (name in NEUTRAL_VALUES and _is_same(value, NEUTRAL_VALUES[name])):
        return
    shown = name[:40]
    if name in _REASONS:
        raise ValueError(f"{shown}: {_REASONS[name]}")
    if _NAMES.get(name) in known:
        raise ValueError(f"there is no field {shown!r}; here it is {_NAMES[name]!r}")
    if name in NEUTRAL_VALUES:
        raise ValueError(f"{shown}: this server supports no other value than {json.dumps(NEUTRAL_VALUES[name])}")
    if near := difflib.get_close_matches(shown, known, 1, 0.85):
        raise ValueError(f"there is no field {shown!r}; did you mean {near[0]!r}?")
    raise ValueError(f"there is no field {shown!r}, and ignoring it could change the text")


def _is_same(value: Any, neutral: Any) -> bool:
    """Equality in JSON, where true is not 1."""
    return isinstance(value, bool) == isinstance(neutral, bool) and bool(value == neutral)
