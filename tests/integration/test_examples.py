"""The scripts of examples/: all are listed, small, and run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py"))


def run(name: str, *arguments: object) -> str:
    """What a script prints, as a user runs it."""
    quiet = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **quiet}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where 01 works, and 05 after it."""
    return tmp_path_factory.mktemp("examples")


@pytest.fixture(scope="module")
def chain(folder: Path, moe_model: Path) -> str:
    """What 01 prints."""
    return run("01_whole_chain.py", moe_model, folder)


def test_all_are_listed_and_small() -> None:
    assert re.findall(r"\((\w+\.py)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8")) == SCRIPTS
    assert len(SCRIPTS) == 5
    for name in SCRIPTS:
        assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) < 60


@pytest.mark.slow
def test_whole_chain(chain: str, folder: Path) -> None:
    assert "| 3bpw_H6 | " in chain
    assert "| tuned | " in chain
    assert sorted(path.name for path in (folder / "quants").iterdir() if path.is_dir()) == [
        f"{bits}bpw_H6" for bits in (2, 3, 4)
    ]
    assert json.loads((folder / "measurement.json").read_text())["exltune"]["level"] == 2
    assert (folder / "tuned" / "config.json").is_file()


def test_will_it_fit() -> None:
    lines = run("02_will_it_fit.py").splitlines()
    assert lines[0].startswith("cache fp16: does not fit")
    assert any(line.startswith("  it would with: cache ") for line in lines)
    assert lines[-1].startswith("cache 5,4: fits")


def test_gpus_and_context() -> None:
    lines = run("03_gpus_and_context.py").splitlines()
    found = [re.fullmatch(r"(\d+) tokens: ([\d.]+) bpw by \S+, cache \S+", line) for line in lines]
    bpw = [float(one[2]) for one in found if one is not None]
    assert len(bpw) == 3
    assert bpw == sorted(bpw, reverse=True)


@pytest.mark.slow
def test_own_engine() -> None:
    assert re.search(r"^\d+ passed in ", run("04_own_engine.py", "-p", "no:cacheprovider"), re.MULTILINE)


@pytest.mark.slow
def test_evaluate_quants(chain: str, folder: Path, moe_model: Path) -> None:
    shown = run("05_evaluate_quants.py", moe_model, folder)
    assert [line.split(" | ")[0] for line in shown.splitlines() if "bpw_H6" in line] == [
        f"| {bits}bpw_H6" for bits in (2, 3, 4)
    ]
    assert (folder / "quants.png").read_bytes().startswith(b"\x89PNG")
