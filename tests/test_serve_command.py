"""`octavo serve`: settings, address, API keys and shutdown."""

import contextlib
import gc
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import octavo
from octavo import native_library
from octavo.errors import OctavoError
from octavo.model import GPT
from octavo.server import listen, name_models, read_keys
from octavo.server.connection import Server
from serving import Response, RunningServer, completion_request, exchange_bytes, run_server, slow_model, wait_until

# Notices


def test_the_same_fallback_of_two_models_is_one_notice(
    char_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(char_model, tmp_path / "copy")
    monkeypatch.setattr(Server, "run", lambda self, sockets: None)
    monkeypatch.setenv("OCTAVO_NATIVE", "0")
    native_library.load_library.cache_clear()
    notices: list[str] = []
    try:
        octavo.serve([char_model, tmp_path / "copy"], port=0, device="cpu", on_notice=notices.append)
    finally:
        native_library.load_library.cache_clear()
    [notice] = notices
    assert "OCTAVO_NATIVE=0" in notice


# Garbage


def test_only_what_serving_creates_is_garbage_collected(char_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Python collects old cycles, such as finished requests, once they are a quarter of the objects it looks at.
    observed: dict[str, int] = {}

    def run(self: Server, sockets: list[socket.socket]) -> None:
        collectable = gc.get_objects()
        observed["objects"] = len(collectable)
        observed["models"] = sum(type(each) is GPT for each in collectable)  # replaced by newer checkpoints

    monkeypatch.setattr(Server, "run", run)
    octavo.serve([char_model], port=0, device="cpu")
    assert observed["models"] == 1
    assert observed["objects"] < len(gc.get_objects()) / 4
    assert gc.get_freeze_count() == 0


# File descriptors


def test_the_server_may_open_more_files_than_the_shell_allows(
    char_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip("resource")  # not on Windows
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    observed: list[int] = []
    monkeypatch.setattr(
        Server, "run", lambda self, sockets: observed.append(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    )
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        octavo.serve([char_model], port=0, device="cpu")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert observed == [4096 if hard == resource.RLIM_INFINITY else min(hard, 4096)]


def test_connections_for_which_there_are_no_files_are_refused_without_errors(char_model: Path, own_cache: Path) -> None:
    pytest.importorskip("resource")  # not on Windows
    command = ["sh", "-c", 'ulimit -n 300; exec "$@"', "sh", sys.executable, "-m", "octavo", "serve", str(char_model)]
    pipe = subprocess.PIPE
    with subprocess.Popen([*command, "--port", "0", "--json"], stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            port = int(json.loads(process.stdout.readline())["url"].rpartition(":")[2].removesuffix("/v1"))
            with contextlib.ExitStack() as stack:
                for _ in range(500):
                    stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            server = RunningServer(port, None, {"small": None}, None)  # type: ignore[arg-type, dict-item]
            wait_until(lambda: is_answered(server))
            process.terminate()
            assert process.wait(30) == 0
        finally:
            process.kill()
        assert "Traceback" not in process.stderr.read()


def is_answered(server: RunningServer) -> bool:
    try:
        return server.request("GET", "/health").status == 200
    except (ConnectionError, http.client.HTTPException):  # refused and closed before the request was sent
        return False


# Shutdown


def test_a_draining_server_completes_its_requests_and_refuses_new_ones(char_model: Path) -> None:
    with run_server({"slow": slow_model(char_model)}) as server, ThreadPoolExecutor(4) as pool:
        accepted = [pool.submit(server.complete, max_tokens=40) for _ in range(4)]
        wait_until(lambda: server.models["slow"].worker.engine.running == 4)
        server.server.handle_exit(15, None)
        assert server.request("GET", "/ready").status == 503
        assert server.request("GET", "/health").status == 200
        refused = server.complete()
        assert refused.status == 503
        assert int(refused.headers["retry-after"]) > 0
        assert refused.headers["connection"] == "close"
        for each in accepted:
            response: Response = each.result()
            assert response.status == 200
            assert len(response.json["choices"][0]["text"]) == 40
        wait_until(lambda: server.server.should_exit)


def test_a_second_signal_stops_the_server_without_waiting(char_model: Path) -> None:
    with run_server({"slow": slow_model(char_model, seconds=0.2)}) as server, ThreadPoolExecutor(1) as pool:
        request = pool.submit(exchange_bytes, server, completion_request(server, max_tokens=60), wait=60)
        wait_until(lambda: server.models["slow"].worker.engine.running == 1)
        server.server.handle_exit(2, None)
        server.server.handle_exit(2, None)
        assert b" 200 " not in request.result()


# Addresses


def test_a_public_address_needs_a_key(char_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OCTAVO_API_KEY", raising=False)
    for host in ("0.0.0.0", "::"):
        with pytest.raises(OctavoError, match="no API key") as caught:
            octavo.serve([char_model], host=host, port=0)
        assert "--api-key-file" in str(caught.value.hint)


def test_a_port_in_use_is_an_error_before_a_model_is_loaded(tmp_path: Path) -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(OctavoError, match=f"127.0.0.1:{port}"):
            octavo.serve(tmp_path / "nothing", port=port)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"port": -1}, "port=-1"),
        ({"port": 70000}, "port=70000"),
        ({"root_path": "octavo"}, "root_path='octavo'"),
        ({"root_path": "/a b"}, "root_path"),
        ({"rate_limit": -1}, "rate_limit=-1"),
        ({"token_limit": -1}, "token_limit=-1"),
        ({"log_format": "xml"}, "log_format='xml'"),
        ({"log_level": "loud"}, "log_level='loud'"),
        ({"chat_template": "nothing.jinja"}, "nothing.jinja"),
        ({"slots": 0}, "slots=0"),
        ({"queue": -1}, "queue=-1"),
        ({"host": "no-such-host.invalid"}, "cannot listen"),
        ({"host": "a" * 300}, "cannot listen"),
        ({"device": "tpu"}, "no device"),
        ({"hots": "localhost"}, "hots"),
    ],
)
def test_invalid_settings_are_errors_with_a_hint(char_model: Path, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(OctavoError, match=expected) as caught:
        octavo.serve([char_model], **{"port": 0} | options)
    assert caught.value.hint


def test_two_models_with_the_same_name_are_an_error(char_model: Path, tmp_path: Path) -> None:
    for other in (tmp_path / "other" / "small", "hf:small", "hf:owner/small"):
        with pytest.raises(OctavoError, match="same name, 'small'"):
            octavo.serve([char_model, other])


def test_serving_no_run_is_an_error() -> None:
    with pytest.raises(OctavoError, match="no run to serve"):
        octavo.serve([], port=0)


# Keys


ONE, TWO, THREE = "first-secret-key", "second-secret-key", "third-secret-key"


def test_keys_come_from_a_file_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# comment\n{ONE}\n\n  ann@example.org   {TWO}  \n", encoding="utf-8")
    monkeypatch.delenv("OCTAVO_API_KEY", raising=False)
    assert read_keys(None) == {}
    assert read_keys(path) == {"key-1": ONE, "ann@example.org": TWO}
    monkeypatch.setenv("OCTAVO_API_KEY", THREE)
    assert read_keys(path) == {"key-1": ONE, "ann@example.org": TWO, "OCTAVO_API_KEY": THREE}
    path.write_text(f"OCTAVO_API_KEY {ONE}\n", encoding="utf-8")  # neither of the two keys may be lost
    with pytest.raises(OctavoError, match=r"line 1 .* name of an earlier key"):
        read_keys(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be"])
def test_a_key_file_may_have_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    """`python -c ... > keys` writes UTF-16 in PowerShell 5."""
    (tmp_path / "keys").write_bytes(f"\ufeff{ONE}\r\n{TWO}\r\n".encode(encoding))
    assert list(read_keys(tmp_path / "keys").values()) == [ONE, TWO]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "cannot be read"),
        (b"\xff", "UTF-8"),
        (b"\xff\xfea", "UTF-16"),
        (b"\xff\xfe", "has no key"),
        (b"\n# none\n", "has no key"),
        ("clé-clé-clé-clé-clé".encode(), "header"),
        (b"a-name a-secret-key-of-it more", "line 1.*more than"),
        (b"short", "5 characters"),
        (b"a secret-key-number-1\na secret-key-number-2", "line 2"),
        (b"a,b secret-key-number-1", "line 1"),
        (b"# names\n\na,b secret-key-number-1", "line 3"),
    ],
)
def test_an_unusable_key_file_is_an_error(tmp_path: Path, content: bytes | None, expected: str) -> None:
    """The error does not show a key."""
    if content is not None:
        (tmp_path / "keys").write_bytes(content)
    with pytest.raises(OctavoError, match=expected) as caught:
        read_keys(tmp_path / "keys")
    assert caught.value.hint
    assert not any(key in str(caught.value) for key in ("clé", "secret-", "short"))


# Names


def test_models_are_named_for_their_folders_or_as_the_command_says(char_model: Path, tmp_path: Path) -> None:
    """A path that has `=` in it is a path if it exists."""
    odd = shutil.copytree(char_model, tmp_path / "lr=3")
    named = name_models([char_model, f"second={char_model}", str(odd), "third=hf:owner/name", "hf:owner/fourth"])
    assert dict(named) == {
        "small": char_model,
        "second": str(char_model),
        "lr=3": str(odd),
        "third": "hf:owner/name",
        "fourth": "hf:owner/fourth",
    }
    with pytest.raises(OctavoError, match="same name, 'small'") as caught:
        name_models([char_model, f"small={char_model}"])
    assert "=" in str(caught.value.hint)


def test_a_folder_of_runs_is_answered_with_their_names(trained_folder: Path) -> None:
    with pytest.raises(OctavoError, match="is a folder of runs") as caught:
        octavo.serve(trained_folder, port=0)
    assert str(trained_folder / "run") in str(caught.value.hint)


# The command


@pytest.fixture
def command(char_model: Path, own_cache: Path) -> Iterator[subprocess.Popen[str]]:
    """`octavo serve` in another process."""
    words = [sys.executable, "-m", "octavo", "serve", str(char_model), "--port", "0", "--json"]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, env=dict(os.environ)) as process:
        yield process
        process.kill()


def test_sigterm_under_load_loses_no_request(command: subprocess.Popen[str]) -> None:
    """Accepted requests get complete responses, later ones are refused, and the exit code is 0."""
    assert command.stdout is not None
    output = json.loads(command.stdout.readline())
    assert output["models"] == ["small"]
    assert output["page"] + "v1" == output["url"]
    port = int(output["url"].rpartition(":")[2].removesuffix("/v1"))
    server = RunningServer(port, None, {"small": None}, None)  # type: ignore[arg-type, dict-item]
    outcomes: list[str] = []
    stopped = threading.Event()

    def send_requests() -> None:
        while not stopped.is_set():
            try:
                response = server.complete(max_tokens=50, n=2)
            except ConnectionRefusedError:
                stopped.set()  # the server no longer listens
            except (ConnectionResetError, BrokenPipeError):
                outcomes.append("not accepted")
            except Exception as error:  # an incomplete response, for example
                outcomes.append(repr(error))
            else:
                complete = response.status == 200 and [len(c["text"]) for c in response.json["choices"]] == [50, 50]
                outcomes.append("complete" if complete else str(response.status))

    threads = [threading.Thread(target=send_requests) for _ in range(8)]
    for each in threads:
        each.start()
    wait_until(lambda: outcomes.count("complete") > 20)
    command.terminate()
    for each in threads:
        each.join(30)
    assert command.wait(30) == 0
    assert set(outcomes) <= {"complete", "503", "not accepted"}
    # At most one for each client: sent, but not read before the server closed the connection.
    assert outcomes.count("not accepted") <= 8
    assert command.stderr is not None
    assert "Traceback" not in command.stderr.read()
