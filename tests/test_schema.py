"""Checked files: the first use of a type by several threads, and JSON without a type."""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import settings as options
from hypothesis import strategies as st

from octavo.schema import decode_json

# Each type is used for the first time by four threads at once.
_PROGRAM = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
import msgspec
from octavo import schema

sys.setswitchinterval(1e-6)
with ThreadPoolExecutor(4) as pool:
    for _ in range(200):
        Inner = msgspec.defstruct("Inner", [(f"field{i}", int, 0) for i in range(8)])
        Outer = msgspec.defstruct("Outer", [("inner", dict[str, Inner])])
        start = threading.Barrier(4)

        def check(i):
            start.wait()
            if i % 2:
                return schema.check({"inner": {"a": {"field1": 1}}}, Outer, "name", "hint")
            return schema.parse_json(b'{"inner": {"a": {"field1": 1}}}', Outer, "name", "hint")

        assert all(each.inner["a"].field1 == 1 for each in pool.map(check, range(4)))
"""


def test_several_threads_can_use_a_type_for_the_first_time_at_once() -> None:
    """msgspec itself crashes, so this runs in another process."""
    result = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (0, "")


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters())
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner))
ODD = [
    "{",
    "}",
    "[",
    "]",
    '"',
    ":",
    ",",
    "\\",
    "\\ud83d",
    "\\ude00",
    "\\u0041",
    "\\x",
    "01",
    "-",
    "1e999",
    "NaN",
    "\ufeff",
    "\0",
    "\t",
    " ",
    "a",
]


@options(derandomize=True, deadline=None, max_examples=400)
@given(value=VALUES, is_ascii=st.booleans())
def test_decoded_json_is_that_of_the_standard_library(value: Any, is_ascii: bool) -> None:
    text = json.dumps(value, ensure_ascii=is_ascii)
    assert repr(decode_json(text)) == repr(json.loads(text))


@options(derandomize=True, deadline=None, max_examples=500)
@given(text=st.lists(st.sampled_from(ODD)).map("".join))
def test_text_that_is_not_json_has_the_error_of_the_standard_library(text: str) -> None:
    for document in (text, f'{{"text": "{text}"}}', f"[{text}]"):
        assert _outcome(decode_json, document) == _outcome(json.loads, document)


def _outcome(decode: Callable[[str], Any], text: str) -> str:
    try:
        return repr(decode(text))
    except ValueError as error:
        return str(error)
