"""Checked files: the first use of a type by several threads."""

import subprocess
import sys

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
    """msgspec itself crashes, so this runs in a process of its own."""
    result = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (0, "")
