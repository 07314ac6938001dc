"""Fields of other servers' completion requests: rejected, unless ignoring them changes nothing."""

from typing import Any

import pydantic
import pytest

from octavo.server.foreign_fields import HARMLESS, NEUTRAL_VALUES
from octavo.server.requests import CompletionRequest, DetokenizeRequest, StreamOptions, TokenizeRequest

# A value of each field that changes the text or the response of a server that knows it.
OPENAI: dict[str, Any] = {
    "audio": {"voice": "a"},
    "function_call": "auto",
    "functions": [{"name": "f"}],
    "input": "the",
    "max_completion_tokens": 3,
    "max_output_tokens": 3,
    "messages": [{"role": "user", "content": "hi"}],
    "modalities": ["audio"],
    "parallel_tool_calls": True,
    "prediction": {"type": "content", "content": "a"},
    "reasoning_effort": "low",
    "response_format": {"type": "json_object"},
    "suffix": "the end",
    "tool_choice": "auto",
    "tools": [{"type": "function"}],
    "top_logprobs": 2,
    "verbosity": "low",
    "web_search_options": {},
}
VLLM: dict[str, Any] = {
    "cache_salt": "salt",
    "choice": ["a", "b"],
    "guided_choice": ["a", "b"],
    "guided_grammar": "root",
    "guided_json": {},
    "guided_regex": "a+",
    "kv_transfer_params": {"a": 1},
    "length_penalty": 2.0,
    "logits_processors": ["f"],
    "logprob_token_ids": [1],
    "lora": "name",
    "prompt_embeds": "AAAA",
    "regex": "a+",
    "repetition_detection": {"max_pattern_size": 3, "min_count": 2},
    "skip_special_tokens": True,
    "stream_interval": 4,
    "structured_outputs": {"regex": "a+"},
    "thinking_token_budget": 5,
    "truncation_side": "right",
    "use_beam_search": True,
    "vllm_xargs": {"a": 1},
    "watermarking": True,
}
LLAMA_CPP: dict[str, Any] = {
    "adaptive_target": 0.5,
    "dry_base": 1.75,
    "dry_multiplier": 0.8,
    "dynatemp_exponent": 2.0,
    "dynatemp_range": 0.5,
    "grammar": "root ::= [a-z]",
    "input_prefix": "def",
    "json_schema": {"type": "string"},
    "min_keep": 2,
    "mirostat": 2,
    "mirostat_eta": 0.1,
    "mirostat_tau": 5.0,
    "n_cmpl": 2,
    "n_discard": 8,
    "n_indent": 4,
    "n_keep": 8,
    "n_predict": 3,
    "n_probs": 2,
    "post_sampling_probs": True,
    "repeat_last_n": 64,
    "repeat_penalty": 1.3,
    "response_fields": ["content"],
    "return_tokens": True,
    "samplers": ["top_k"],
    "t_max_predict_ms": 100,
    "timings_per_token": True,
    "top_n_sigma": 1.0,
    "typical_p": 0.5,
    "xtc_probability": 0.5,
    "xtc_threshold": 0.1,
}
OTHERS: dict[str, Any] = {  # transformers, text-generation-inference, text-generation-webui, KoboldCpp, Ollama
    "ban_eos_token": True,
    "banned_strings": ["a"],
    "banned_tokens": [1],
    "decoder_input_details": True,
    "details": True,
    "do_sample": False,
    "early_stopping": True,
    "encoder_repetition_penalty": 1.2,
    "epsilon_cutoff": 3,
    "eta_cutoff": 3,
    "greedy": True,
    "guidance_scale": 1.5,
    "inputs": "the",
    "logit_biases": {"5": 1},
    "max_gen_toks": 3,
    "max_length": 3,
    "max_new_tokens": 3,
    "max_time": 1,
    "min_length": 3,
    "min_new_tokens": 3,
    "no_repeat_ngram_size": 2,
    "num_beams": 4,
    "num_ctx": 32,
    "num_predict": 3,
    "num_return_sequences": 2,
    "options": {"temperature": 0},
    "penalty_alpha": 0.6,
    "rep_pen": 1.2,
    "sampler_order": [6, 0],
    "sampler_seed": 5,
    "smoothing_factor": 0.2,
    "stop_sequence": ["a"],
    "stop_sequences": ["a"],
    "stop_strings": ["a"],
    "stopping_strings": ["a"],
    "temp": 0,
    "temprature": 0,
    "tfs_z": 0.9,
    "top_a": 0.2,
    "truncation_length": 8,
    "typical": 0.5,
    "until": ["a"],
    "watermark": True,
}
FOREIGN = OPENAI | VLLM | LLAMA_CPP | OTHERS


def rejection(body: type[pydantic.BaseModel], **fields: Any) -> str:
    """The message with which a request body is rejected."""
    with pytest.raises(pydantic.ValidationError) as caught:
        body.model_validate(fields)
    [error] = caught.value.errors()
    return str(error["msg"])


@pytest.mark.parametrize("name", FOREIGN)
def test_a_field_that_would_change_the_text_is_rejected(name: str) -> None:
    assert name in rejection(CompletionRequest, **{name: FOREIGN[name]})


def test_null_and_values_that_change_nothing_are_accepted() -> None:
    plain = CompletionRequest(prompt="the")
    for name in FOREIGN:
        assert CompletionRequest.model_validate({"prompt": "the", name: None}) == plain
    for name, value in NEUTRAL_VALUES.items():
        assert CompletionRequest.model_validate({"prompt": "the", name: value}) == plain
    for name in HARMLESS:
        for value in (0, "a", {"a": 1}, True):
            assert CompletionRequest.model_validate({"prompt": "the", name: value}) == plain


def test_no_field_is_both_known_and_foreign() -> None:
    assert not CompletionRequest.model_fields.keys() & (HARMLESS | NEUTRAL_VALUES.keys() | FOREIGN.keys())
    assert not HARMLESS & NEUTRAL_VALUES.keys()
    assert len(FOREIGN) > 100


def test_true_is_not_1() -> None:
    """In Python it is, so a comparison of values would accept it."""
    for name, value in {"num_beams": True, "mirostat": False, "use_beam_search": 0, "do_sample": 1}.items():
        rejection(CompletionRequest, **{name: value})


@pytest.mark.parametrize(
    ("name", "ours"),
    {
        "max_new_tokens": "max_tokens",
        "max_completion_tokens": "max_tokens",
        "n_predict": "max_tokens",
        "stop_sequences": "stop",
        "repeat_penalty": "repetition_penalty",
        "min_length": "min_tokens",
        "do_sample": "temperature",
        "banned_tokens": "bad_words",
        "temprature": "temperature",
    }.items(),
)
def test_the_message_has_this_servers_name_of_the_field(name: str, ours: str) -> None:
    assert repr(ours) in rejection(CompletionRequest, **{name: FOREIGN[name]})


def test_the_message_has_the_value_that_is_accepted() -> None:
    assert '{"type": "text"}' in rejection(CompletionRequest, response_format={"type": "json_object"})


def test_other_bodies_have_the_same_rule() -> None:
    assert "content" in rejection(TokenizeRequest, prompt="", content="the")
    assert "messages" in rejection(TokenizeRequest, messages=[])
    assert "skip_special_tokens" in rejection(DetokenizeRequest, tokens=[1], skip_special_tokens=True)
    assert "'include_usage'" in rejection(StreamOptions, includes_usage=True)
    assert StreamOptions.model_validate({"include_obfuscation": False}) == StreamOptions()
