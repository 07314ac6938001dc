"""The examples of docs/scale.md for supervisors of several machines: their files parse, and so do their commands."""

import configparser
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser

from octavo import cli
from test_docs import parse_blocks

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
BLOCKS = {block.language: block.text for block in parse_blocks(PAGE.read_text(encoding="utf-8"))}
VARIABLE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"


def check_command(command: str) -> None:
    """torchrun and octavo accept a command; what a shell or a supervisor inserts is replaced by a number."""
    command = re.sub(r"\$\(\([^)]*\)\)|%i", "1", command)
    words = shlex.split(re.sub(r"\"?\$\([^)]*\)\"?|'\"\$\w+\"'|\"?\$\w+\"?", "1", command).replace("\\\n", " "))
    options = get_args_parser().parse_args(words[1:])
    assert words[0].endswith("torchrun")
    assert (options.rdzv_backend, options.nnodes, options.module) == ("c10d", "2", True)
    assert options.rdzv_conf == "is_host=1"
    assert int(options.max_restarts) > 0
    arguments = cli.parse(options.training_script_args)
    assert options.training_script == "octavo"
    assert arguments.continue_run
    assert arguments.out


def test_the_unit_of_systemd_starts_torchrun() -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(BLOCKS["ini"].replace("\\\n", " "))
    check_command(unit["Service"]["ExecStart"])
    assert f"{VARIABLE}=1" in unit["Service"]["Environment"]
    assert unit["Service"]["Restart"] == "on-failure"


def test_the_script_of_slurm_is_correct_bash() -> None:
    script = BLOCKS["bash"]
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    command = re.search(r"bash -c '(torchrun.*?--continue)'", script, re.DOTALL)
    assert command is not None
    check_command(command[1])
    assert f"export {VARIABLE}=1" in script


def test_the_jobset_of_kubernetes_starts_torchrun_in_every_pod() -> None:
    jobset = yaml.safe_load(BLOCKS["yaml"])
    [job] = jobset["spec"]["replicatedJobs"]
    [container] = job["template"]["spec"]["template"]["spec"]["containers"]
    [command] = container["args"]
    check_command(command.removeprefix("exec "))
    assert {"name": VARIABLE, "value": "1"} in container["env"]
    first = f"{jobset['metadata']['name']}-{job['name']}-0-0.{jobset['metadata']['name']}:29400"
    assert f"--rdzv-endpoint={first}" in command
    assert job["template"]["spec"]["parallelism"] == job["template"]["spec"]["completions"] == 2


@pytest.mark.torture  # it needs systemd
def test_systemd_accepts_the_unit() -> None:
    verify = shutil.which("systemd-analyze")
    assert verify, "systemd-analyze is missing: install systemd"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "octavo@1.service")
        path.write_text(BLOCKS["ini"].replace("/shared/venv/bin/torchrun", "/bin/true"), encoding="utf-8")
        result = subprocess.run([verify, "verify", "--man=no", path], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "octavo@" not in result.stderr
