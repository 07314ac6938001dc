"""Pickles that create a file when they are unpickled, in the notations and the calls that attackers use.

A payload is a tree of calls. `encode` writes it as a pickle, with one of the opcodes that call a function.
"""

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Name:
    """An imported name."""

    module: str
    name: str


@dataclass(frozen=True)
class Call:
    """A call of a function. A parameter may be a call itself."""

    function: "Name | Call"
    parameters: tuple[Any, ...] = ()


def call(module: str, name: str, *parameters: Any) -> Call:
    return Call(Name(module, name), parameters)


def calls(marker: str) -> dict[str, Call]:
    """Calls that create the file or folder `marker`, by a name for each."""
    mkdir = Name("os", "mkdir")
    code = f"import os; os.mkdir({marker!r})"
    os_module = call("importlib", "import_module", "os")
    return {
        "os.mkdir": Call(mkdir, (marker,)),
        "os.makedirs": call("os", "makedirs", marker),
        "os's own module": call(os.name, "mkdir", marker),
        "os.system": call("os", "system", f'mkdir "{marker}"'),
        "os.symlink": call("os", "symlink", "nowhere", marker),
        "os.open": call("os", "open", marker, os.O_CREAT),
        "subprocess.run": call("subprocess", "run", ("mkdir", marker)),
        "subprocess.getoutput": call("subprocess", "getoutput", f'mkdir "{marker}"'),
        "exec": call("builtins", "exec", code),
        "eval": call("builtins", "eval", f"__import__('os').mkdir({marker!r})"),
        "tarfile": call("tarfile", "open", marker, "w"),
        "open": call("builtins", "open", marker, "w"),
        "io.FileIO": call("_io", "FileIO", marker, "w"),
        "getattr": Call(call("builtins", "getattr", os_module, "mkdir"), (marker,)),
        "methodcaller": Call(call("operator", "methodcaller", "mkdir", marker), (os_module,)),
        "attrgetter": Call(Call(call("operator", "attrgetter", "mkdir"), (os_module,)), (marker,)),
        "partial": Call(call("functools", "partial", mkdir, marker)),
        "list of a map": call("builtins", "list", call("builtins", "map", mkdir, (marker,))),
        "pathlib.Path.touch": call("pathlib", "Path.touch", call("pathlib", "Path", marker)),
        "timeit": call("timeit", "timeit", code, "pass", Name("time", "time"), 1),
        "os.mknod": call("os", "mknod", marker),
        "logging": call("logging", "FileHandler", marker),
        "zipfile": call("zipfile", "ZipFile", marker, "w"),
        "gzip": call("gzip", "open", marker, "w"),
        "shutil.copyfile": call("shutil", "copyfile", __file__, marker),
        "numpy.memmap": call("numpy", "memmap", marker, "u1", "w+", 0, 4),
        "numpy.savetxt": call("numpy", "savetxt", marker, (1,)),
        "torch.save": call("torch", "save", 1, marker),
        "a pickle in a pickle": call("pickle", "loads", encode(Call(mkdir, (marker,)))),
        "Octavo itself": call("octavo.files", "write_atomic", call("pathlib", "Path", marker), "x"),
    }


def encode(value: Any, opcode: str = "STACK_GLOBAL") -> bytes:
    """`value` as a pickle. `opcode` is the one by which functions are imported or called."""
    return b"\x80\x04" + _encode(value, opcode) + b"."


OPCODES = ("STACK_GLOBAL", "GLOBAL", "INST", "OBJ")


def _encode(value: Any, opcode: str) -> bytes:
    match value:
        case Name(module, name) if opcode == "STACK_GLOBAL":
            return _encode(module, opcode) + _encode(name, opcode) + b"\x93"
        case Name(module, name):
            return f"c{module}\n{name}\n".encode()
        case Call(function, parameters):
            encoded = b"".join(_encode(parameter, opcode) for parameter in parameters)
            if opcode == "INST" and isinstance(function, Name):
                return b"(" + encoded + f"i{function.module}\n{function.name}\n".encode()
            if opcode == "OBJ":
                return b"(" + _encode(function, opcode) + encoded + b"o"
            return _encode(function, opcode) + b"(" + encoded + b"tR"
        case dict():
            items = b"".join(_encode(key, opcode) + _encode(item, opcode) for key, item in value.items())
            return b"(" + items + b"d"
        case tuple():
            return b"(" + b"".join(_encode(item, opcode) for item in value) + b"t"
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case bytes():
            return b"B" + struct.pack("<I", len(value)) + value
        case int():
            return f"I{value}\n".encode()
    raise TypeError(type(value))


_META = {"stoi": {"a": 0, "b": 1}, "itos": {0: "a", 1: "b"}}  # as in nanoGPT's meta.pkl

# Where the payload is in an otherwise valid file.
PLACES: dict[str, Callable[[Any, str], bytes]] = {
    "the whole": encode,
    "a value": lambda payload, opcode: encode(_META | {"vocab_size": payload}, opcode),
    "a key": lambda payload, opcode: encode(_META | {payload: 1}, opcode),
    "thrown away": lambda payload, opcode: b"\x80\x04" + _encode(payload, opcode) + b"0" + encode(_META)[2:],
}

NAMES = list(calls(""))
