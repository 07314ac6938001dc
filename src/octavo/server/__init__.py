"""`octavo serve`: models behind OpenAI's completions API, and a page that looks into them; safe to leave running.

client -- connection -- guard -- app -- completions -- worker (a thread) -- engine
          deadlines     who may     what    texts of a request     steps a model
                                   |- look -- octavo.lens (threads)
                                   |- curves, page -- files
"""

import contextlib
import ipaddress
import os
import socket
import sys
import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch

from octavo import runs
from octavo.device import find_device
from octavo.errors import OctavoError
from octavo.generation.engine import Engine
from octavo.runs import Run
from octavo.server.app import build
from octavo.server.connection import Server
from octavo.server.limits import Limits
from octavo.server.worker import Served, Worker

KEY_VARIABLE = "OCTAVO_API_KEY"
_LOOK_AGAIN = 1.0  # seconds, for a first checkpoint
_KEY_FILE = "--api-key-file F, with a key on each line"


def serve(run_names: Sequence[str | Path], ready: Callable[[list[str], str], object] = lambda models, url: None, *,
          host: str = "127.0.0.1", port: int = 8000, api_key_file: str | Path | None = None, quantize: str = "none",
          slots: int = 8, overflow: str = "stop", queue: int = Limits.queue,
          prefix_cache: int = Limits.prefix_bytes >> 20, allow_hosts: Collection[str] = (),
          allow_origins: Collection[str] = (), device: str = "auto",
          notice: Callable[[str], object] = lambda text: None) -> None:  # fmt: skip
    """Serve RUNs until SIGTERM or Ctrl-C. Once requests are taken, `ready` hears the models' names and the URL.

    A run without a checkpoint is shown as it trains, and its model is served once there is one.
    Raises `OctavoError` for a RUN that can't be loaded, an address that can't be had, or one that others can reach
    while there is no API key.
    """
    # An engine's thread that comes back from C would wait 5 ms for the event loop's to let go of the interpreter.
    sys.setswitchinterval(0.0005)
    names = _names(run_names)
    if not 1 <= slots <= 1024:
        raise OctavoError(f"slots={slots} is not a number of texts from 1 to 1024", "--slots 8")
    if not 0 <= queue <= 10**6:
        raise OctavoError(f"queue={queue} is not a number of texts from 0 to a million", "--queue 64")
    if not 0 <= prefix_cache <= 1 << 20:
        raise OctavoError(
            f"prefix_cache={prefix_cache} is not a number of MiB from 0 to a million", "--prefix-cache 256"
        )
    limits = Limits(queue=queue, prefix_bytes=prefix_cache << 20)
    keys = read_keys(api_key_file)
    shown = {name: its for name, run in names.items() if (its := runs.find_run(run))}
    begun = {name: run for name, run in shown.items() if not _has_checkpoint(run)}
    models: dict[str, Served] = {}
    ended = threading.Event()
    with listen(host, port, public=bool(keys)) as listener:
        where = find_device(device)

        def take(name: str) -> None:
            models[name] = load_model(name, names[name], where, limits, quantize, slots, overflow, notice)

        try:
            for name in names:
                if name not in begun:
                    take(name)
            guard = build(models, limits, host, keys=keys, allow_hosts=allow_hosts, allow_origins=allow_origins,
                          begun=begun, runs=shown)  # fmt: skip
            threading.Thread(target=_wait_for, args=(begun, take, ended), daemon=True).start()
            address = f"[{host}]" if ":" in host else host
            url = f"http://{address}:{listener.getsockname()[1]}/v1"
            Server(guard, lambda: ready(list(names), url)).run(sockets=[listener])
        finally:
            ended.set()
            for served in list(models.values()):
                served.worker.close()


def load_model(name: str, run: str | Path, device: torch.device, limits: Limits, quantize: str = "none", slots: int = 8,
         overflow: str = "stop", notice: Callable[[str], object] = lambda text: None) -> Served:  # fmt: skip
    """A RUN, ready to be asked."""
    loaded = runs.load(run, device)
    engine = Engine(loaded.model, slots, vocab_size=loaded.tokenizer.vocab_size, quantize=quantize,
                    prefix_bytes=limits.prefix_bytes)  # fmt: skip
    for text in engine.notes:
        notice(text)
    created = int((loaded.folder / "config.json").stat().st_mtime)
    return Served(name, loaded, Worker(engine, limits.queue), created, overflow, runs.find_run(run))


def _has_checkpoint(run: Run) -> bool:
    return bool(run.best or run.last)


def _wait_for(begun: dict[str, Run], take: Callable[[str], None], ended: threading.Event) -> None:
    """Take the models of runs that have begun to be trained, each when it has a checkpoint."""
    while begun and not ended.wait(_LOOK_AGAIN):
        for name in [each for each, run in begun.items() if _has_checkpoint(run)]:
            with contextlib.suppress(OctavoError):  # training may be about to replace it: the next round will tell
                take(name)
                del begun[name]


def read_keys(path: str | Path | None) -> list[str]:
    """The API keys of a file, one a line, and of the environment: never of the command line, which others can read."""
    lines = [os.environ.get(KEY_VARIABLE, "")]
    if path is not None:
        try:
            lines += Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise OctavoError(f"the key file {path} can't be read: {why}", _KEY_FILE) from None
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if path is not None and not keys:
        raise OctavoError(f"the key file {path} holds no key", _KEY_FILE)
    if not all(key.isascii() and key.isprintable() and " " not in key for key in keys):
        raise OctavoError("an API key has characters that no header can carry", "letters and digits")
    return keys


def listen(host: str, port: int, public: bool = True) -> socket.socket:
    """A socket that listens, before models are loaded: a port in use is told at once, and early clients wait.

    Unless `public`, only at an address that no other machine reaches.
    """
    if not 0 <= port <= 65535:
        raise OctavoError(f"port={port} is not between 0 and 65535", "--port 8000, or 0 for any that is free")
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        if not public and not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
            raise OctavoError(f"{host} can be reached from elsewhere, and there is no API key",
                              f"{_KEY_FILE}, or {KEY_VARIABLE}")  # fmt: skip
        listener = socket.socket(family, kind, protocol)
        if os.name == "posix":  # elsewhere this would share a port that is in use
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
        return listener
    except (OSError, UnicodeError) as error:
        if listener is not None:
            listener.close()
        why = getattr(error, "strerror", None) or str(error)
        raise OctavoError(f"can't listen at {host[:80]}:{port}: {why}",
                          "another --port (0: any that is free), or another --host") from None  # fmt: skip


def _names(run_names: Sequence[str | Path]) -> dict[str, str | Path]:
    """Each RUN under the name by which clients call it: its folder's."""
    names: dict[str, str | Path] = {}
    for run in run_names:
        name = Path(run).resolve().name
        if name in names:
            raise OctavoError(f"{names[name]} and {run} would have one name, {name!r}", "folders of different names")
        names[name] = run
    return names
