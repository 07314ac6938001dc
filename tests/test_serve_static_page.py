"""The page's files over HTTP, and the standalone page, one file that needs no server."""

import base64
import functools
import gzip
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import setuptools.build_meta

import octavo
from lenses import random_checkpoint
from octavo import cli
from octavo.errors import OctavoError
from octavo.server import load_model, static_page
from serving import SETTINGS, RunningServer, run_server
from sites import Runs

TEXT = "the cat sat; <b>كتاب</b> 🦉!"
INDEX = """<!doctype html>
<html lang="en"><head>
<meta charset="utf-8">
<link rel="stylesheet" href="page/style.css">
<script type="importmap">
{"imports": {"octavo/main": "./page/main.js"}}
</script>
<script type="module" src="page/main.js"></script>
</head><body></body></html>
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a page of a few files; `secret.js`, next to the folder, must not be served."""
    folder = tmp_path_factory.mktemp("site") / "page"
    for name, content in (
        ("index.html", INDEX),
        ("style.css", "body { color: red }"),
        ("main.js", "export {};"),
        ("i18n/en/a.json", '{"a": "A"}'),
        ("i18n/ar/a.json", '{"a": "ا"}'),
        ("i18n/ar/b.json", '{"b": "ب"}'),
        (".hidden.js", "no"),
        ("vendor/LICENSE", "MIT"),
        ("../secret.js", "no"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def server(byte_model: Path, root: Path, native_cache: None) -> Iterator[RunningServer]:
    with run_server({"alone": load_model("alone", byte_model, SETTINGS)}, page_root=root) as running:
        yield running


# Files


def test_the_page_is_served_with_its_own_security_policy(server: RunningServer, root: Path) -> None:
    response = server.request("GET", "/")
    assert response.body == (root / "index.html").read_bytes()
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    script = re.search("<script type=.importmap.>(.*?)</script>", INDEX, re.DOTALL)[1]  # type: ignore[index]
    hashed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert response.headers["content-security-policy"].split("; ") == [
        "default-src 'none'",
        f"script-src 'self' 'sha256-{hashed}'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "font-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["referrer-policy"] == "no-referrer"
    cached = server.request("GET", "/", headers={"if-none-match": response.headers["etag"]})
    assert (cached.status, cached.body) == (304, b"")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("main.js", "text/javascript; charset=utf-8"),
        ("style.css", "text/css; charset=utf-8"),
        ("i18n/ar/b.json", "application/json"),
        ("index.html", "text/html; charset=utf-8"),
    ],
)
def test_each_file_has_its_content_type(server: RunningServer, root: Path, name: str, kind: str) -> None:
    response = server.request("GET", f"/page/{name}")
    assert (response.status, response.body, response.headers["content-type"]) == (200, (root / name).read_bytes(), kind)
    assert "default-src 'none'" in response.headers["content-security-policy"]


@pytest.mark.parametrize(
    "path",
    [
        "/page/../secret.js",
        "/page/%2e%2e/secret.js",
        "/page/..%2fsecret.js",
        "/page/%2e%2e%2fsecret.js",
        "/page/nothing.js",
        "/page/i18n/../main.js",
        "/page//main.js",
        "/page/./main.js",
        "/page/.hidden.js",
        "/page/vendor/LICENSE",
        "/page/",
        "/page/i18n",
        "/page/main.js%00",
        "/page/main.js/",
        "/page/MAIN.JS",
        "/page/%2fetc%2fpasswd",
        "/page//etc/passwd",
        "/page/..%5csecret.js",
        "/page/%252e%252e/secret.js",
        "/page/../../app.py",
        "/page",
        "/index.html",
        "/secret.js",
        "//page/main.js",
        "/page%2fmain.js%3f",
    ],
)
def test_no_other_file_is_served(server: RunningServer, path: str) -> None:
    response = server.request("GET", path)
    assert response.status == 404
    assert response.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert response.json["error"]["message"]


def test_the_api_has_the_strictest_security_policy(server: RunningServer) -> None:
    for response in (
        server.request("GET", "/lens"),
        server.request("GET", "/runs"),
        server.post("/lens/next_token", model="alone", text="a"),
        server.request("GET", "/health"),
        server.request("POST", "/"),
    ):
        assert response.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert response.headers["cache-control"] == "no-store"


def test_the_page_needs_no_key_but_requests_to_the_api_do(byte_model: Path, root: Path, native_cache: None) -> None:
    served = load_model("alone", byte_model, SETTINGS)
    with run_server({"alone": served}, page_root=root, keys={"the": "the-key"}) as running:
        for path in ("/", "/page/main.js", "/favicon.ico", "/page/nothing", "/page%2fx"):
            assert running.request("GET", path).status in (200, 204, 404)
        for path in ("/lens", "/runs", "/runs/alone/metrics", "/page", "//", "/v1/models"):
            assert running.request("GET", path).status == 401
        assert running.post("/lens/next_token", text="a").status == 401
        running.headers["authorization"] = "Bearer the-key"
        assert running.post("/lens/next_token", text="a").status == 200
        assert running.request("GET", "/runs").json == {"runs": []}
        for headers in ({"host": "evil.example"}, {"origin": "https://evil.example"}):
            assert running.request("GET", "/", headers=headers).status in (400, 403)


def test_the_shipped_page_is_complete_and_small() -> None:
    """Every file named in the index exists, all are small when compressed, and nothing is loaded from other hosts."""
    files = static_page.page_files(static_page.ROOT)
    index = files["index.html"].read_text(encoding="utf-8")
    modules = [path for name, path in files.items() if re.fullmatch(r"(?!vendor/).*\.js", name)]
    code = "".join(path.read_text(encoding="utf-8") for path in modules)
    paths = set(re.findall(r'"(?:\./)?page/([^"]+)"', index)) | set(re.findall(r'fileUrl\("([^"]+)"', code))
    assert paths <= files.keys()
    # Addresses are relative, so that the page also works below a path.
    assert len(re.findall("(?:src|href)=", index)) == len(re.findall('(?:src|href)="(?:page/|data:)', index))
    assert not re.search(r"""["'`]/(?:page|lens|runs|v1)\b""", index + code)
    policy = static_page.content_security_policy(index.encode(), ("script-src 'self'", ""))
    assert policy.count("'sha256-") == 1  # one inline script: the import map
    assert not re.search(r"\son\w+=|\sstyle=", index)
    sizes = {name: len(gzip.compress(path.read_bytes(), 6)) for name, path in files.items()}
    assert sum(sizes.values()) < 300_000
    languages = {name.split("/")[1] for name in files if name.startswith("i18n/")}
    assert len(languages) == 5
    for language in languages:  # a visitor loads one language
        assert sum(size for name, size in sizes.items() if not re.match(f"i18n/(?!{language}/)", name)) < 190_000


def test_the_wheel_contains_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = Path(__file__).parents[1]
    for name in ("pyproject.toml", "README.md", "LICENSE", "src/octavo/__init__.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(repository / name, tmp_path / name)
    shutil.copytree(repository / "src/octavo/page", tmp_path / "src/octavo/page")
    monkeypatch.chdir(tmp_path)
    wheel = setuptools.build_meta.build_wheel(str(tmp_path))
    shutil.unpack_archive(wheel, "out", "zip")
    expected = {path.relative_to(static_page.ROOT) for path in static_page.ROOT.rglob("*") if path.is_file()}
    assert expected == {p.relative_to("out/octavo/page") for p in Path("out/octavo/page").rglob("*") if p.is_file()}


# The standalone page


def page_data(html: str) -> Any:
    """The JSON data in a standalone page."""
    scripts = re.findall(r'<script type="application/json" id="octavo-static">(.*?)</script>', html, re.DOTALL)
    assert len(scripts) == 1
    assert "<" not in scripts[0]
    return json.loads(scripts[0])


@pytest.mark.parametrize("use_shipped", [False, True])
def test_the_standalone_page_loads_no_other_file(byte_model: Path, root: Path, use_shipped: bool) -> None:
    text = "</script><script>alert(1)</script><!-- <img src=https://evil.example onerror=alert(2)>"
    html = static_page.standalone_page(octavo.load(byte_model), text, root=static_page.ROOT if use_shipped else root)
    assert page_data(html)["text"] == text
    page_without_data = re.sub(r"<script type=.application/json.*?</script>", "", html, flags=re.DOTALL)
    assert "page/" not in re.sub(r"base64,[\w+/=]*", "", page_without_data)
    sources = re.findall(r'(?:src|href)="([^"]*)"|"[\w/]+": "([^"]*)"', page_without_data)
    assert sources
    assert all((one or other).startswith("data:") for one, other in sources)
    [policy] = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', html)
    hashes = [
        base64.b64encode(hashlib.sha256(each.encode()).digest()).decode()
        for each in re.findall(r"<script type=.importmap.>(.*?)</script>", html, re.DOTALL)
    ]
    assert policy.startswith(f"default-src 'none'; script-src data: 'sha256-{hashes[0]}'; ")
    assert "connect-src" not in policy  # so default-src applies
    modules = re.search(r'"octavo/main": "data:text/javascript;charset=utf-8;base64,([^"]*)"', html)
    assert modules
    assert base64.b64decode(modules[1]) == ((static_page.ROOT if use_shipped else root) / "main.js").read_bytes()


def test_the_standalone_page_has_the_views_that_the_server_returns(server: RunningServer, root: Path) -> None:
    loaded = server.models["alone"].checkpoint
    data = page_data(static_page.standalone_page(loaded, TEXT, layer=1, head=2, root=root))
    assert data["text"] == TEXT
    assert data["i18n"] == {"en": {"a": "A"}, "ar": {"a": "ا", "b": "ب"}}
    [model] = data["models"]["models"]
    assert model == server.request("GET", "/lens").json["models"][0]
    pairs = [(i, h) for i in range(3) for h in range(3)]
    for view in ("shapes", "attention"):
        options = [each["options"] for each in data["answers"] if each["view"] == view]
        assert sorted((each["layer"], each["head"]) for each in options) == pairs
        assert options[0] == {"layer": 1, "head": 2}  # the chosen head comes first
    assert set(data["models"]["views"]) == {"tokens", "flow", "shapes", "attention", "next_token", "position"}
    for each in data["answers"]:
        text = {} if each["view"] == "position" else {"text": TEXT}
        assert each["answer"] == server.view(each["view"], **each["options"], **text)


def test_the_standalone_page_of_a_long_text_has_one_layer(tmp_path: Path, root: Path) -> None:
    loaded = random_checkpoint(tmp_path / "long", "byte", block_size=100)
    data = page_data(static_page.standalone_page(loaded, "a long text " * 9, layer=-1, root=root))
    heads = {
        (each["options"]["layer"], each["options"]["head"]) for each in data["answers"] if each["view"] == "attention"
    }
    assert heads == {(2, 0), (2, 1), (2, 2)}
    assert {each["answer"].get("left_out") for each in data["answers"] if each["view"] == "attention"} == {8}


def test_the_word_of_the_standalone_page_is_one_that_the_model_knows(tmp_path: Path, root: Path) -> None:
    for kind, text, block_size, word, at in (
        ("char", "كتاب الكتاب", 16, "كتاب", [1, 10]),
        ("byte", "abc", 4, "cat", [0, 1]),
        ("byte", "abc", 2, "a", [0, 1]),
    ):
        loaded = random_checkpoint(tmp_path / f"{kind}{block_size}", kind, text=text, block_size=block_size)
        data = page_data(static_page.standalone_page(loaded, text, root=root))
        [options] = [each["options"] for each in data["answers"] if each["view"] == "position"]
        assert options == {"word": word, "at": at}


def test_inspect_html_writes_the_standalone_page(
    runs: Runs, byte_model: Path, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(static_page, "standalone_page", functools.partial(static_page.standalone_page, root=root))
    path = tmp_path / "out" / "walk.html"
    folder = runs.letters.folder
    assert cli.main(["inspect", str(folder), "--html", str(path), "--text", "the cat", "--layer", "1"]) == 0
    data = page_data(path.read_text(encoding="utf-8"))
    assert data["models"]["models"][0]["id"] == folder.name
    assert data["text"] == "the cat"
    assert capsys.readouterr().out == ""
    assert cli.main(["inspect", str(byte_model), "tokens", "--html", str(path), "--text", "the cat"]) == 0
    assert "7 tokens" in capsys.readouterr().out
    for words in (["--preset", "gpt2-512", "shapes"], [str(byte_model), "--word", "cat"], [str(tmp_path / "nothing")]):
        assert cli.main(["inspect", *words, "--html", str(path)]) == 2
        assert "try:" in capsys.readouterr().err
    assert cli.main(["inspect", str(byte_model), "--html", str(tmp_path)]) == 2
    with pytest.raises(OctavoError, match="no page"):
        static_page.standalone_page(octavo.load(byte_model), root=tmp_path / "empty")
