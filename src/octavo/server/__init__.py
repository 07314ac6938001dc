"""`octavo serve`: models behind OpenAI's completions API, and the page that shows what they do.

The path of a request to the logits and back:

    connection.py     uvicorn's HTTP/1.1 protocol, with a deadline for every state of a connection
    middleware/       checks of hosts, origins, API keys and sizes; its __init__.py states their order
    app.py            the routes
    completions.py    OpenAI's JSON <-> TextRequest and TextPiece; chat.py the same for conversations
    text_batch.py     the completions of a request, awaited in the event loop
                      from here on octavo.generation: stream.py, worker.py (a thread), engine.py, a decoder
    text_response.py  the response: one JSON object, or server-sent events

`follow.py` loads the models, and newer checkpoints while requests are answered. `lens_api.py` computes views in its own
threads; `runs_api.py` and `static_page.py` read files.
"""

import contextlib
import dataclasses
import functools
import gc
import ipaddress
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from octavo import byte_order_mark
from octavo.checkpoint import Checkpoint
from octavo.errors import OctavoError
from octavo.interop import hub
from octavo.runs import Run, RunLike
from octavo.server import log
from octavo.server.app import build_app
from octavo.server.client import RateLimits
from octavo.server.connection import ACCEPTED_AT_ONCE, Server
from octavo.server.follow import ModelUpdater, find_run_and_pointer, load_model
from octavo.server.limits import Limits
from octavo.server.served_model import ServedModel
from octavo.server.settings import ServeSettings
from octavo.settings import expand_home, unknown_name_error

KEY_VARIABLE = "OCTAVO_API_KEY"
MIN_KEY_LENGTH = 16  # characters; a shorter key could be guessed
_OTHER_FILES = 64  # that the process has open besides connections, such as checkpoints
_KEY_FILE_HINT = "--api-key-file F, with a key on each line"
_NEW_KEY = 'python -c "import secrets; print(secrets.token_urlsafe(32))"'


def serve(
    run: RunLike | Sequence[RunLike],
    *,
    on_ready: Callable[[list[str], str], object] = lambda models, url: None,
    on_notice: Callable[[str], object] = log.LOGGER.warning,
    **settings: Any,
) -> None:
    """Serve one or several runs until SIGTERM or Ctrl-C. `settings` are the fields of `ServeSettings`.

    `on_ready` is called with the models' names and the URL once the server accepts requests, `on_notice` for each
    fallback of an engine and each chat template that cannot be used. The log is written to stderr. A run without a
    checkpoint is shown as it trains, and its model is served from the first checkpoint on. Raises `OctavoError` if no
    run is given or one cannot be loaded, if the address cannot be used, or if other machines can reach it and there is
    no API key.
    """
    names = [field.name for field in dataclasses.fields(ServeSettings)]
    if misspelled := settings.keys() - set(names):
        raise unknown_name_error("setting", min(misspelled), names)
    options, limits = ServeSettings(**settings), _limit_connections(Limits(), _raise_file_limit())
    on_notice = functools.cache(on_notice)  # the same fallback of several models is one notice
    # With Python's default of 5 ms, an engine thread that returns from C waits that long until the event loop releases
    # the GIL.
    sys.setswitchinterval(0.0005)
    requested = name_models(list(run) if isinstance(run, Sequence) and not isinstance(run, str) else [run])
    if not requested:
        raise OctavoError("there is no run to serve", "one run, or a list of at least one")
    keys = read_keys(options.api_key_file)
    # `served_runs`: the run of each requested model that belongs to one. `pending`: those without a checkpoint yet.
    served_runs = {name: found for name, run_like in requested.items() if (found := find_run_and_pointer(run_like)[0])}
    pending = {name: found for name, found in served_runs.items() if not _has_checkpoint(found)}
    models: dict[str, ServedModel] = {}
    stopped = threading.Event()
    updater = ModelUpdater(models, pending, options, on_notice=on_notice, on_change=log.LOGGER.info)
    with (
        _freeze_imported_objects(),
        log.logging_to_stderr(options.log_format, options.log_level),
        listen(options.host, options.port, allow_remote=bool(keys)) as listener,
    ):
        try:
            for name, run_like in requested.items():
                if name not in pending:
                    models[name] = load_model(name, run_like, options, on_notice)
            app = build_app(
                models,
                limits,
                options.host,
                keys=keys,
                rate_limits=RateLimits(requests=options.rate_limit, tokens=options.token_limit),
                root_path=options.root_path,
                allow_hosts=options.allow_hosts,
                allow_origins=options.allow_origins,
                pending=pending,
                runs=served_runs,
                docs=options.docs,
            )
            threading.Thread(target=updater.run, args=(stopped,), name="follow", daemon=True).start()
            address = f"[{options.host}]" if ":" in options.host else options.host
            url = f"http://{address}:{listener.getsockname()[1]}/v1"
            server = Server(app.asgi, app.drain, limits, lambda: on_ready(list(requested), url))
            server.run(sockets=[listener])
        finally:
            stopped.set()
            updater.close()
            for model in list(models.values()):
                model.worker.close()


@contextlib.contextmanager
def _freeze_imported_objects() -> Iterator[None]:
    """Leave what exists now, mostly imported code, out of garbage collection.

    A finished request is a reference cycle. Python collects old cycles only once they are a quarter of all old objects.
    The imported modules have 200,000 objects, so thousands of finished requests, or 10 MB, would wait.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _limit_connections(limits: Limits, files: int) -> Limits:
    """The limits of a process that may open `files` files: asyncio logs a traceback for each that it can't open."""
    spare = files - limits.refused_connections - 4 * ACCEPTED_AT_ONCE - _OTHER_FILES
    return dataclasses.replace(limits, connections=max(1, min(limits.connections, spare)))


def _raise_file_limit(wanted: int = 4096) -> int:
    """Let this process open more files, if the system permits it: macOS allows 256. Returns how many it may open."""
    try:
        import resource  # not on Windows
    except ImportError:
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return wanted
    return wanted if soft == resource.RLIM_INFINITY else soft


def _has_checkpoint(run: Run) -> bool:
    return bool(run.best or run.last)


def read_keys(path: str | Path | None) -> dict[str, str]:
    """The API keys in a file and in the environment, by name; never from the command line, which others can read.

    A line of the file has a key, or a name and a key. Key N is called `key-N` if it has no name.
    """
    content = ""
    if path is not None:
        try:
            content = byte_order_mark.decode(Path(path).read_bytes())
        except (OSError, UnicodeDecodeError) as error:
            reason = (
                error.strerror
                if isinstance(error, OSError)
                else "it is neither UTF-8 nor UTF-16 with a byte order mark"
            )
            raise OctavoError(f"the key file {path} cannot be read: {reason}", _KEY_FILE_HINT) from None
    lines = [
        (number, line.split())
        for number, line in enumerate(content.splitlines(), start=1)
        if line.strip() and not line.startswith("#")
    ]
    if path is not None and not lines:
        raise OctavoError(f"the key file {path} has no key", _KEY_FILE_HINT)
    keys: dict[str, str] = {}
    if key := os.environ.get(KEY_VARIABLE, "").strip():
        keys[KEY_VARIABLE] = key
    for count, (number, line) in enumerate(lines, start=1):
        if len(line) > 2:
            raise OctavoError(
                f"line {number} of the key file {path} has more than a name and a key", "NAME KEY, or KEY"
            )
        name = line[0] if len(line) == 2 else f"key-{count}"
        if not re.fullmatch(r"[\w.@-]{1,64}", name):
            raise OctavoError(f"line {number} of the key file {path} has no valid name", "letters, digits and ._@-")
        if name in keys:
            raise OctavoError(f"line {number} of the key file {path} has the name of an earlier key", "another name")
        keys[name] = line[-1]
    for name, key in keys.items():
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise OctavoError(
                f"the API key {name} has characters that an HTTP header cannot carry", "letters and digits"
            )
        if len(key) < MIN_KEY_LENGTH:
            raise OctavoError(
                f"the API key {name} has {len(key)} characters, at least {MIN_KEY_LENGTH} are needed", _NEW_KEY
            )
    return keys


def listen(host: str, port: int, allow_remote: bool = True) -> socket.socket:
    """A listening socket. Unless `allow_remote`, the host must be an address that only this machine can reach.

    `serve` calls it before models are loaded, so that a port in use is reported at once and early clients wait.
    """
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        if not allow_remote and not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
            raise OctavoError(
                f"other machines can reach {host}, and there is no API key", f"{_KEY_FILE_HINT}, or {KEY_VARIABLE}"
            )
        listener = socket.socket(family, kind, protocol)
        if os.name == "posix":  # on Windows this option would share a port that is in use
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
        return listener
    except (OSError, UnicodeError) as error:
        if listener is not None:
            listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise OctavoError(
            f"cannot listen on {host[:80]}:{port}: {reason}", "another --port (0: any free port), or another --host"
        ) from None


def name_models(requested: Sequence[RunLike]) -> Mapping[str, RunLike]:
    """Map each model's name to what is loaded for it.

    The name is NAME for `NAME=PATH` and for `hf:OWNER/NAME`; otherwise it is the name of the run's folder, or of the
    checkpoint's folder if it belongs to no run.
    """
    names: dict[str, RunLike] = {}
    for given in requested:
        name, run_like = _split_name(given)
        if name is None and (run := find_run_and_pointer(run_like)[0]) is not None:
            name = run.folder.resolve().name
        elif name is None:
            folder = run_like.folder if isinstance(run_like, (Run, Checkpoint)) else run_like
            name = Path(str(folder).removeprefix(hub.PREFIX)).resolve().name
        if name in names:
            raise OctavoError(
                f"{names[name]} and {run_like} would have the same name, {name!r}", f"another name: OTHER={run_like}"
            )
        names[name] = run_like
    return names


def _split_name(run: RunLike) -> tuple[str | None, RunLike]:
    """NAME and PATH of `NAME=PATH`; None and the run itself if it has no name, or there is a file of this name."""
    match = None if isinstance(run, (Run, Checkpoint)) else re.fullmatch(r"([\w.+-]+)=(.+)", str(run))
    if match is None or os.path.exists(str(run)):
        return None, run
    return match[1], expand_home(match[2])
