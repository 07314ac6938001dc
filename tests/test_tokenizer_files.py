"""`tokenizer.json` of other programs or attackers: no text is lost, and memory and time are bounded."""

import json
from pathlib import Path
from typing import Any

import pytest

from octavo.errors import OctavoError
from octavo.tokenizers import build, load

TEXT = "the cat sat on the mat, and the rat sat on the hat.\n" * 12


def edit_tokenizer(folder: Path, spec: str, **changes: Any) -> Path:
    """Save a tokenizer in `folder`, and change keys of its `tokenizer.json`."""
    build(spec, TEXT).save(folder)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    return folder


@pytest.mark.parametrize("spec", ["char", "byte", "word:300", "bpe:300"])
def test_truncation_and_padding_in_a_file_change_no_ids(spec: str, tmp_path: Path) -> None:
    changes = {
        "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": 9},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "a",
        },
    }
    tokenizer, loaded = build(spec, TEXT), load(edit_tokenizer(tmp_path, spec, **changes))
    assert loaded.fingerprint == tokenizer.fingerprint
    for text in ("a", "the cat", TEXT[:200]):
        assert loaded.encode(text).tolist() == tokenizer.encode(text).tolist()


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


@pytest.mark.parametrize("spec", ["word:300", "bpe:300"])
def test_a_file_whose_pre_tokenizer_grows_the_text_is_rejected(spec: str, tmp_path: Path) -> None:
    nested = {
        "type": "Sequence",
        "pretokenizers": [BYTE_LEVEL, {"type": "Sequence", "pretokenizers": [BYTE_LEVEL] * 40}],
    }
    with pytest.raises(OctavoError, match="more than one ByteLevel"):
        load(edit_tokenizer(tmp_path, spec, pre_tokenizer=nested))


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)+$", "(x+x+)+y"])
def test_a_pattern_that_takes_too_long_is_an_error(pattern: str, tmp_path: Path) -> None:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    splitter = {"type": "Sequence", "pretokenizers": [split, BYTE_LEVEL]}
    tokenizer = load(edit_tokenizer(tmp_path, "bpe:300", pre_tokenizer=splitter))
    text = ("x" if "x" in pattern else "a") * 60 + "!"
    with pytest.raises(OctavoError, match="cannot encode the text"):
        tokenizer.encode(text)
    with pytest.raises(OctavoError, match="cannot encode the text"):
        tokenizer.encode_words([text])
