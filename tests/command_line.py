"""exltune's command line in this process or in one of its own, and what it left on the disk."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner

from exltune.cli import repeat_data_option
from exltune.cli.app import app

EXECUTABLE = Path(sys.executable).with_name("exltune")
_KILL_AT = Path(__file__).with_name("kill_at.py")
_QUIET = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it said."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object that stands on standard output."""
        content = json.loads(self.stdout)
        assert isinstance(content, dict)
        return content


def exltune(*arguments: object) -> Outcome:
    """Run a command in this process; anything but an orderly end is raised."""
    result = CliRunner().invoke(app, repeat_data_option([str(argument) for argument in arguments]))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


def succeed(*arguments: object) -> dict[str, Any]:
    """The JSON of a command that must succeed."""
    outcome = exltune(*arguments, "--json")
    assert outcome.code == 0, outcome.stderr
    return outcome.json


def start(*arguments: object) -> subprocess.Popen[str]:
    """Start the installed command in a process of its own."""
    return _popen([str(EXECUTABLE), *map(str, arguments)])


def run_until_killed(where: str, number: int, *arguments: object) -> None:
    """Run a command that SIGKILL ends as the `number`th call of `module:function` begins."""
    process = _popen([sys.executable, str(_KILL_AT), where, str(number), *map(str, arguments)])
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == -9, stderr


def _popen(command: list[str]) -> subprocess.Popen[str]:
    env = os.environ | _QUIET
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def contents(folder: Path) -> dict[str, str]:
    """Path in the folder -> sha256 of the file, hidden files included; directories have none."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "directory"
        for path in sorted(folder.rglob("*"))
    }


def fail(code: int, *words: str, here: Path, arguments: tuple[object, ...]) -> Outcome:
    """A command that must fail with this exit code and one message with these words, and leave `here` as it is."""
    before = contents(here)
    outcome = exltune(*arguments, "--json")
    assert outcome.code == code, outcome.stderr
    lines = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert all(word in lines[0] for word in words), lines[0]
    error = outcome.json["error"]
    assert error["exit_code"] == code
    assert f"error: {error['message']}" == lines[0]
    assert contents(here) == before
    return outcome


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """No file may grow beyond this: the system refuses as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_recipe(folder: Path, model: Path, bits: float, **changes: Any) -> Path:
    """A recipe of one bit width for all linears, with changes to its keys and to single tensors."""
    keys = [key for group in succeed("inspect", model)["groups"][:-1] for key in group["tensors"]]
    tensors = dict.fromkeys(keys, bits) | changes.get("tensors", {})
    content = {"target_bpw": 3.5, "head_bits": 6} | changes | {"tensors": tensors}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    return folder / "recipe.yaml"
