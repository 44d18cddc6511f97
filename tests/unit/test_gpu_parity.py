"""The parity script as far as a machine without a GPU can take it: it refuses, and its steps resume."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import types
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu_parity.py"


@pytest.fixture
def script() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_parity", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_a_gpu_nothing_is_measured(
    script: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["gpu_parity.py", "--out", str(tmp_path / "gpu")])
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code == 2
    assert "there is no CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "gpu").exists()


def test_steps_resume_after_one_that_failed(
    script: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken: list[str] = []

    def good(_args: argparse.Namespace) -> dict[str, int]:
        taken.append("good")
        return {"answer": 42}

    def broken(_args: argparse.Namespace) -> dict[str, int]:
        taken.append("broken")
        if taken.count("broken") == 1:
            raise RuntimeError("not yet")
        return {}

    monkeypatch.setattr(script, "STEPS", {"broken": broken, "good": good})
    monkeypatch.setattr(script, "_card", lambda: "NVIDIA X1 (80 GB)")
    monkeypatch.setattr(sys, "argv", ["gpu_parity.py", "--out", str(tmp_path)])
    codes = []
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            script.main()
        codes.append(ended.value.code)
    assert codes == [1, 0]
    assert taken == ["broken", "good", "broken"]
    found = json.loads((tmp_path / "NVIDIA-X1-80-GB.json").read_text())
    assert found["good"]["answer"] == 42
    assert found["broken"]["ok"]
