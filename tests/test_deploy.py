"""The files in deploy/: what they say to Octavo, Prometheus and the proxies is true."""

import configparser
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from octavo import cli
from octavo.server.client import Client, RateLimits
from octavo.server.limits import Limits
from octavo.server.metrics import Metrics
from serving import fast_models

DEPLOY = Path(__file__).parents[1] / "deploy"


def read(name: str) -> str:
    return (DEPLOY / name).read_text(encoding="utf-8")


def read_yaml(name: str) -> Any:
    return yaml.safe_load(read(name))


@pytest.fixture(scope="module")
def unit() -> configparser.RawConfigParser:
    class Repeated(dict):  # systemd's settings may be repeated; each adds a line
        def __setitem__(self, name: str, value: Any) -> None:
            super().__setitem__(name, self.get(name, []) + value if isinstance(value, list) else value)

    unit = configparser.RawConfigParser(strict=False, dict_type=Repeated, delimiters="=")
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(read("octavo.service"))
    return unit


# The commands


def test_every_command_is_one_that_octavo_parses(unit: configparser.RawConfigParser) -> None:
    dockerfile = [line for line in read("Dockerfile").splitlines() if line.startswith(("ENTRYPOINT", "CMD"))]
    entry, default = (json.loads(line.partition(" ")[2]) for line in dockerfile)
    composed = [
        re.sub(r"\$\{\w+:?[^}]*\}", "x", word) for word in read_yaml("compose.yaml")["services"]["octavo"]["command"]
    ]
    started = shlex.split(unit["Service"]["ExecStart"].replace("$OPTIONS", ""))
    assert started[0] == "/opt/octavo/bin/octavo"
    for command in ([*entry, *default], [*entry, *composed], started):
        arguments = cli.parse(command[1:])
        assert arguments.log_format == "json"
        assert arguments.runs


def test_the_container_has_no_rights_it_does_not_need() -> None:
    dockerfile = read("Dockerfile")
    user = re.search(r"^USER (\d+)$", dockerfile, re.MULTILINE)
    assert user is not None
    assert int(user[1]) > 0
    assert dockerfile.index("USER") < dockerfile.index("ENTRYPOINT")
    assert "download.pytorch.org/whl/cpu" in dockerfile
    [health] = re.findall(r"CMD (\[.*urllib.*\])", dockerfile)
    assert "/ready" in json.loads(health)[2]
    compile(json.loads(health)[2], "healthcheck", "exec")
    service = read_yaml("compose.yaml")["services"]["octavo"]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(volume.endswith(":ro") for volume in service["volumes"] if not volume.startswith("cache:"))
    assert "ports" not in service  # only the proxy is reached from outside


def test_the_image_has_the_tested_versions() -> None:
    dockerfile = read("Dockerfile")
    [pinned] = re.findall(r"grep '(.+)' constraints\.txt", dockerfile)
    constraints = (DEPLOY.parent / "constraints.txt").read_text(encoding="utf-8")
    assert re.findall(rf"{pinned}[\d.]+$", constraints, re.MULTILINE)
    assert dockerfile.index("COPY constraints.txt") < dockerfile.index("-r torch.txt") < dockerfile.index("COPY src")
    assert "pip install --no-cache-dir -c constraints.txt ." in dockerfile
    bases = re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)
    assert len(set(bases)) == 1  # the libraries of the first stage run in the second


def test_what_compose_names_is_there() -> None:
    compose = read_yaml("compose.yaml")
    used = {secret for service in compose["services"].values() for secret in service.get("secrets", [])}
    assert used == compose["secrets"].keys()
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            if source.startswith("./"):
                assert (DEPLOY / source).is_file()
            elif not source.startswith("$"):
                assert source in compose["volumes"]
    assert (DEPLOY / "../" / compose["services"]["octavo"]["build"]["dockerfile"]).resolve().is_file()
    ignored = read("Dockerfile.dockerignore").splitlines()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", read("Dockerfile"), re.MULTILINE)
    for path in " ".join(copied).split():
        assert f"!{path}" in ignored
        assert (DEPLOY.parent / path).exists()


def test_the_unit_is_hardened_and_waits_for_requests_in_progress(unit: configparser.RawConfigParser) -> None:
    """`systemd-analyze security --offline=true deploy/octavo.service` gives it 1.1 of 10 (2026-11-29)."""
    service = unit["Service"]
    assert service["User"] not in ("", "root")
    for name in ("NoNewPrivileges", "PrivateTmp", "PrivateDevices", "ProtectHome", "RestrictSUIDSGID"):
        assert service[name] == "true"
    assert (service["ProtectSystem"], service["CapabilityBoundingSet"]) == ("strict", "")
    assert int(service["TimeoutStopSec"]) > Limits().request_seconds


# The proxies


def test_the_proxies_stream_and_wait_as_long_as_octavo_does() -> None:
    nginx, caddy = read("nginx.conf"), read("Caddyfile")
    assert nginx.count("{") == nginx.count("}")
    assert caddy.count("{") == caddy.count("}")
    assert re.search(r"proxy_buffering\s+off;", nginx)
    assert re.search(r"flush_interval -1", caddy)
    timeouts = re.findall(r"proxy_(?:read|send)_timeout (\d+)s|response_header_timeout (\d+)s", nginx + caddy)
    assert len(timeouts) == 3
    assert all(int(first or second) > Limits().request_seconds for first, second in timeouts)
    assert re.search(r"client_max_body_size 1m;", nginx)
    assert Limits().body_bytes == 1 << 20
    for prefix_removed in (
        r"location /octavo/ \{",
        r"proxy_pass http://octavo/;",
        r"proxy_set_header Host \$http_host;",
    ):
        assert re.search(prefix_removed, nginx)
    assert "handle_path /octavo/*" in caddy


# Monitoring


def served_metrics(folder: Path) -> set[str]:
    """The names of all series in `/metrics`, also those that have no value yet."""
    metrics = Metrics()
    metrics.count_request("/health", 200)
    metrics.token_timer("small").count_token()
    metrics.count_prompts("small", 1, 1)
    client = Client("ann", "", RateLimits(), metrics)
    client.admit()
    client.count_tokens(1, 1)
    metrics.count_rejection("ann")
    models = fast_models(folder)
    for model in models.values():
        model.worker.close()
    page = metrics.render(models).decode()
    described = re.findall(r"^# TYPE (\S+) (\S+)", page, re.MULTILINE)
    names = {name for name, kind in described if kind != "histogram"}
    return names | {f"{name}_bucket" for name, kind in described if kind == "histogram"}


def test_dashboard_and_alerts_use_only_metrics_that_octavo_has(char_model: Path) -> None:
    rules = [rule for group in read_yaml("alerts.yml")["groups"] for rule in group["rules"]]
    panels = json.loads(read("grafana.json"))["panels"]
    expressions = [rule["expr"] for rule in rules]
    expressions += [target["expr"] for panel in panels for target in panel["targets"]]
    names = served_metrics(char_model)
    used = {name for expression in expressions for name in re.findall(r"\boctavo_\w+", expression)}
    assert used <= names
    shown = {
        name for panel in panels for target in panel["targets"] for name in re.findall(r"octavo_\w+", target["expr"])
    }
    assert names == shown  # nothing is measured that is not shown
    for rule in rules:
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in ("info", "warning", "critical")


def test_prometheus_reads_what_compose_gives_it() -> None:
    config, compose = read_yaml("prometheus.yml"), read_yaml("compose.yaml")
    [job] = config["scrape_configs"]
    assert job["authorization"]["credentials_file"].removeprefix("/run/secrets/") in compose["secrets"]
    assert job["static_configs"][0]["targets"] == ["octavo:8000"]
    assert "--allow-host=octavo" in compose["services"]["octavo"]["command"]
    mounted = [volume.split(":")[1] for volume in compose["services"]["prometheus"]["volumes"]]
    assert {f"/etc/prometheus/{name}" for name in ("prometheus.yml", *config["rule_files"])} < set(mounted)


def test_grafana_has_its_source_and_its_dashboard_from_the_start() -> None:
    services = read_yaml("compose.yaml")["services"]
    mounted = dict(volume.split(":")[1::-1] for volume in services["grafana"]["volumes"])
    [source] = read_yaml(mounted["/etc/grafana/provisioning/datasources/octavo.yml"])["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    assert services["prometheus"]["profiles"] == services["grafana"]["profiles"]
    [provider] = read_yaml(mounted["/etc/grafana/provisioning/dashboards/octavo.yml"])["providers"]
    assert provider["type"] == "file"
    assert json.loads(read(mounted[f"{provider['options']['path']}/octavo.json"]))["title"] == "Octavo"
