"""The parity script as far as a machine without a GPU can take it: it refuses, resumes, waits and packs."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def load() -> Iterator[Callable[[str], Any]]:
    sys.path.insert(0, str(BENCHMARKS))
    names: list[str] = []

    def loaded(name: str) -> Any:
        names.append(name)
        return importlib.import_module(name)

    yield loaded
    sys.path.pop(0)
    for name in names:
        del sys.modules[name]


@pytest.fixture
def script(load: Callable[[str], Any]) -> Any:
    return load("gpu_parity")


def ended(script: Any, monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu_parity.py", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        script.main()
    return int(end.value.code)


def with_steps(script: Any, monkeypatch: pytest.MonkeyPatch, folder: Path, code: str, *names: str) -> None:
    """Steps of a made-up steps file on a made-up card."""
    (folder / "steps.py").write_text(f"import sys, json, pathlib, time\nname, work = sys.argv[1:3]\n{code}")
    monkeypatch.setattr(script, "STEPS_FILE", folder / "steps.py")
    monkeypatch.setattr(script, "STEPS", names)
    monkeypatch.setattr(script, "_card", lambda: "NVIDIA X1 (80 GB)")


ANSWER = "pathlib.Path(work, name + '.json').write_text(json.dumps({'ok': True, 'answer': 42}))\n"


def test_without_a_gpu_nothing_is_measured(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ended(script, monkeypatch, "--out", tmp_path / "gpu") == 2
    assert "there is no CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "gpu").exists()


def test_steps_resume_after_one_that_failed(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "with open(pathlib.Path(work, 'taken'), 'a') as log: log.write(name + ' ')\n"
        "if name == 'tests' and pathlib.Path(work, 'taken').read_text().count('tests') == 1: sys.exit(3)\n" + ANSWER
    )
    with_steps(script, monkeypatch, tmp_path, code, "tests", "demo")
    words = ("--out", tmp_path, "--work", tmp_path)
    assert [ended(script, monkeypatch, *words) for _ in range(3)] == [1, 0, 0]
    assert (tmp_path / "taken").read_text().split() == ["tests", "demo", "tests"]
    found = json.loads((tmp_path / "NVIDIA-X1-80-GB.json").read_text())
    assert found["demo"]["answer"] == 42
    assert found["tests"]["ok"]


def runs(pid: int) -> bool:
    """Whether a process is there and not merely waiting for its parent to look."""
    try:
        return " Z " not in Path("/proc", str(pid), "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_crash_a_hang_and_what_to_do_are_told(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import os, subprocess\nprint('no kernel image', file=sys.stderr, flush=True)\n"
        "if name == 'scores':\n    started = subprocess.Popen(['sleep', '60'])\n"
        "    pathlib.Path(work, 'pid').write_text(str(started.pid))\n    time.sleep(60)\nsys.exit(9)"
    )
    with_steps(script, monkeypatch, tmp_path, code, "tests", "scores")
    monkeypatch.setattr(script, "_LEAST_SECONDS", 0)
    assert ended(script, monkeypatch, "--out", tmp_path, "--work", tmp_path, "--minutes", "0.05") == 1
    found = json.loads((tmp_path / "NVIDIA-X1-80-GB.json").read_text())
    assert found["tests"]["error"].startswith("it ended with 9: no kernel image")
    assert found["tests"]["hint"] == f"see {tmp_path}/tests.log"
    assert "run again to go on" in found["scores"]["error"]
    end = time.monotonic() + 30
    while runs(int((tmp_path / "pid").read_text())):
        assert time.monotonic() < end, "what the step had started is ended with it"
        time.sleep(0.05)


def test_no_step_is_begun_that_would_not_end_in_time(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_steps(script, monkeypatch, tmp_path, ANSWER, "tests")
    assert ended(script, monkeypatch, "--out", tmp_path, "--work", tmp_path, "--minutes", "0.5") == 1
    assert "tests: left for the next run" in capsys.readouterr().out


def test_what_waits_for_the_extension_waits(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_steps(script, monkeypatch, tmp_path, "sys.exit(1)", "extension", "tests")
    assert ended(script, monkeypatch, "--out", tmp_path, "--work", tmp_path) == 1
    assert "tests" not in json.loads((tmp_path / "NVIDIA-X1-80-GB.json").read_text())


def test_wheels_are_collected_for_the_boxs_python(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_more: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        (tmp_path / "one.whl").write_bytes(bytes(3 << 20))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(script.subprocess, "run", run)
    assert ended(script, monkeypatch, "--collect", "--wheels", tmp_path, "--python", "3.13") == 0
    (command,) = commands
    assert command[command.index("--python-version") + 1] == "3.13"
    assert {"--no-deps", "exllamav3", "manylinux_2_28_x86_64"} <= set(command)
    assert "3 MiB" in capsys.readouterr().out


def test_a_built_extension_is_packed_for_the_next_box(load: Callable[[str], Any], tmp_path: Path) -> None:
    steps = load("gpu_steps")
    steps._PART_BYTES = 100
    (tmp_path / "built.so").write_bytes(content := bytes(range(256)) * 4 + b"end")
    parts = steps.packed(tmp_path / "built.so", tmp_path / "parts")
    assert len(parts) > 1
    assert max(part.stat().st_size for part in parts) == 100
    steps.unpacked(tmp_path / "parts", tmp_path / "site")
    assert (tmp_path / "site" / "exllamav3_ext.so").read_bytes() == content


def test_a_build_that_fails_says_why(
    load: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = load("gpu_steps")
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    # Without CUDA, exllamav3 cannot even begin.
    args = argparse.Namespace(work=tmp_path, seconds=120.0, save=None)
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=r"the build ended: (.|\n)*(CUDA_HOME|No CUDA device)"):
        steps.extension(args)
    assert time.monotonic() - start < 100
    assert not (tmp_path / "extension.started").exists()


def test_a_build_that_was_killed_is_noticed(load: Callable[[str], Any], tmp_path: Path) -> None:
    steps = load("gpu_steps")
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    (tmp_path / "extension.started").write_bytes(dead.stdout)
    (tmp_path / "extension.build.log").touch()
    with pytest.raises(RuntimeError, match="it was killed"):
        steps.extension(argparse.Namespace(work=tmp_path, seconds=60.0, save=None))


def test_every_step_has_a_hint_and_a_place(load: Callable[[str], Any], script: Any) -> None:
    steps = load("gpu_steps")
    assert tuple(steps.STEPS) == script.STEPS
    assert set(script._HINTS) >= set(script.STEPS) - {"disk"}


def test_scores_of_both_engines_are_set_against_each_other(load: Callable[[str], Any]) -> None:
    rows = [
        {"2": {"kl_ref_quant": 0.5}, "3": {"kl_ref_quant": 0.1}},
        {"2": {"kl_ref_quant": 0.51}, "3": {"kl_ref_quant": 0.1}},
    ]
    assert load("gpu_steps").ratios(*rows) == {"2": pytest.approx(1.02), "3": 1.0}
