"""The parity script as far as a machine without a GPU can take it: its schedule, its refusals, its steps' processes."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def load() -> Iterator[Callable[[str], Any]]:
    """Modules of benchmarks/, which is no package of exltune."""
    before = set(sys.modules)
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module
    sys.path.pop(0)
    for name in set(sys.modules) - before:
        if str(BENCHMARKS) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


@pytest.fixture
def schedule(load: Callable[[str], Any]) -> Any:
    return load("parity.schedule")


@pytest.fixture
def runner(load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """With made-up steps where a test asks for them: see `with_steps`."""
    return load("parity.runner")


def with_steps(runner: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path, code: str, *steps: Any) -> Any:
    """A setup whose steps run `code`, with `name`, `work` and `answer(**found)` at hand."""
    prelude = (
        "import sys, json, os, pathlib, subprocess, time\nname, work, end = sys.argv[1], sys.argv[2], sys.argv[3]\n"
        "def answer(**found): pathlib.Path(end).write_text(json.dumps(found))\n"
    )
    (folder / "steps.py").write_text(prelude + code)
    monkeypatch.setattr(runner, "STEPS", steps)
    monkeypatch.setattr(
        runner,
        "command",
        lambda step, setup, end, seconds: [sys.executable, str(folder / "steps.py"), step.name, setup.work, end],
    )
    return runner.Setup(work=folder / "work", out=folder / "out")


def results(runner: ModuleType, setup: Any) -> dict[str, Any]:
    return dict(json.loads(runner.result_file(setup.out, "NVIDIA X1 (80 GB)").read_text()))


CARD = "NVIDIA X1 (80 GB)"


def by_call(steps: Sequence[Any], calls: Sequence[int]) -> list[list[str]]:
    """The steps that each call takes for certain, if every step takes all of its seconds; the rest is the last list."""
    found: list[list[str]] = [[]]
    left = list(calls)
    for step in steps:
        while left and step.seconds > left[0]:
            left.pop(0)
            found.append([])
        if left:
            left[0] -= step.seconds
        found[-1].append(step.name)
    return found


def test_all_steps_fit_into_two_calls_even_if_each_takes_all_its_seconds(schedule: Any) -> None:
    first, second = by_call(schedule.STEPS, schedule.CALL_SECONDS)
    assert [*first, *second] == [step.name for step in schedule.STEPS]
    for names, limit, call in zip((first, second), schedule.CALL_SECONDS, (570, 210), strict=True):
        seconds = sum(step.seconds for step in schedule.STEPS if step.name in names)
        assert seconds <= limit < call
    # A machine is lent for 15 minutes, of which its start takes one or two.
    assert 570 + 210 <= 900 - 120
    # What must be known first is known after the first call.
    assert first[:5] == ["install", "extension", "tests", "scores", "throughput"]


def test_a_schedule_that_is_too_long_spills_over(schedule: Any) -> None:
    steps = [schedule.Step(name, 100, "") for name in "abcd"]
    assert by_call(steps, (200, 100)) == [["a", "b"], ["c"], ["d"]]


def test_every_step_has_its_module_and_the_steps_it_needs_come_before_it(
    schedule: Any, load: Callable[[str], Any]
) -> None:
    names = [step.name for step in schedule.STEPS]
    for number, step in enumerate(schedule.STEPS):
        assert callable(load(f"parity.steps.{step.name}").take)
        assert set(step.needs) <= set(names[:number])
        assert step.hint
    files = {path.stem for path in (BENCHMARKS / "parity" / "steps").glob("[!_]*.py")}
    assert files == set(names)


def test_without_a_gpu_nothing_is_measured(tmp_path: Path) -> None:
    words = [sys.executable, str(BENCHMARKS / "gpu_parity.py"), "--out", str(tmp_path / "gpu")]
    done = subprocess.run(words, env={**os.environ, "PATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "there is no CUDA device" in done.stderr
    assert not (tmp_path / "gpu").exists()


def test_steps_resume_after_one_that_failed(
    runner: Any, schedule: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "taken = pathlib.Path(work, 'taken')\nwith taken.open('a') as log: log.write(name + ' ')\n"
        "if name == 'tests' and taken.read_text().count('tests') == 1: sys.exit(3)\nanswer(ok=True, found=42)"
    )
    steps = [schedule.Step("tests", 60, "see WORK/tests.log"), schedule.Step("chain", 60, "look")]
    setup = with_steps(runner, monkeypatch, tmp_path, code, *steps)
    codes = []
    for _ in range(3):
        # The device tool empties it before every call.
        shutil.rmtree(setup.out, ignore_errors=True)
        codes.append(runner.run_steps(setup, CARD, 100))
    assert codes == [1, 0, 0]
    assert (setup.work / "taken").read_text().split() == ["tests", "chain", "tests"]
    assert [step.name for step in runner._in_order({"tests": {"ok": False}})] == ["chain", "tests"]
    assert results(runner, setup)["chain"]["found"] == 42
    assert results(runner, setup)["tests"]["ok"]


def test_results_of_a_machine_that_is_gone_are_gone_on_from(
    runner: Any, schedule: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [
        schedule.Step("install", 60, "see", local=True),
        schedule.Step("tests", 60, "see", ("install",)),
        schedule.Step("scores", 60, "see", ("install",)),
    ]
    setup = with_steps(runner, monkeypatch, tmp_path, "answer(ok=True, taken=name)", *steps)
    before = tmp_path / "before.json"
    elsewhere = {"ok": True, "taken": "elsewhere"}
    before.write_text(json.dumps({"card": {"name": CARD}, "install": elsewhere, "tests": elsewhere}))
    assert runner.run_steps(replace(setup, before=before), CARD, 100) == 0
    found = results(runner, setup)
    # The other machine's packages are not on this one.
    assert [found[step.name]["taken"] for step in steps] == ["install", "elsewhere", "scores"]


def test_a_step_waits_for_those_it_needs(
    runner: Any, schedule: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [schedule.Step("extension", 60, "see"), schedule.Step("tests", 60, "see", ("extension",))]
    setup = with_steps(runner, monkeypatch, tmp_path, "sys.exit(1)", *steps)
    assert runner.run_steps(setup, CARD, 100) == 1
    assert "tests: waits for extension" in capsys.readouterr().out
    assert "tests" not in results(runner, setup)


def runs(pid: int) -> bool:
    """Whether a process is there and not merely waiting for its parent to look."""
    try:
        return " Z " not in Path("/proc", str(pid), "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_crash_a_hang_and_what_to_do_are_told(
    runner: Any, schedule: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "print('no kernel image', file=sys.stderr, flush=True)\n"
        "if name == 'scores':\n    started = subprocess.Popen(['sleep', '60'])\n    answer(ok=False, half=1)\n"
        "    pathlib.Path(work, 'pid').write_text(str(started.pid))\n    time.sleep(60)\nsys.exit(9)"
    )
    steps = [schedule.Step("tests", 60, "see WORK/tests.log"), schedule.Step("scores", 3, "see WORK/scores.log")]
    setup = with_steps(runner, monkeypatch, tmp_path, code, *steps)
    start = time.monotonic()
    assert runner.run_steps(setup, CARD, 100) == 1
    assert time.monotonic() - start < 30, "the limit is the step's own, not the call's"
    found = results(runner, setup)
    assert found["tests"]["error"].startswith("it ended with 9: no kernel image")
    assert found["tests"]["hint"] == f"see {setup.work}/tests.log"
    assert "it was not done after 3 s: run again to go on" in found["scores"]["error"]
    assert found["scores"]["half"] == 1, "what it knew before it was ended is kept"
    assert (setup.out / "logs.txt").read_text().count("no kernel image") == 2
    end = time.monotonic() + 30
    while runs(int((setup.work / "pid").read_text())):
        assert time.monotonic() < end, "what the step had started is ended with it"
        time.sleep(0.05)


def test_no_step_is_begun_that_would_not_end_in_time(
    runner: Any, schedule: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    setup = with_steps(runner, monkeypatch, tmp_path, "answer(ok=True)", schedule.Step("tests", 60, "see"))
    assert runner.run_steps(setup, CARD, 10) == 1
    assert "tests: left for the next run" in capsys.readouterr().out


def test_a_second_try_has_no_less_time_than_the_first(
    runner: Any, schedule: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "answer(ok=False, passed=95)"
    setup = with_steps(runner, monkeypatch, tmp_path, code, schedule.Step("tests", 60, "see"))
    for seconds in (30, 50):
        assert runner.run_steps(setup, CARD, seconds) == 1
        assert results(runner, setup)["tests"]["limit"] == 30
    assert "tests: left for the next run" in capsys.readouterr().out


def test_wheels_are_collected_for_the_boxs_python(
    load: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels, commands = load("parity.wheels"), []
    monkeypatch.setattr(wheels.subprocess, "run", lambda command, **more: commands.append(command))
    wheels.collect(tmp_path / "wheels", "3.13")
    (command,) = commands
    assert command[command.index("--python-version") + 1] == "3.13"
    assert {"--no-deps", "exllamav3", "manylinux_2_28_x86_64"} <= set(command)


def test_whatever_exltune_needs_is_on_the_box_or_carried(load: Callable[[str], Any]) -> None:
    wheels, left, seen = load("parity.wheels"), ["exltune", "cmaes", "hypothesis", "pytest", "pytest-xdist"], set()
    # Asked for by packages, and imported by nothing that runs there.
    never = {"greenlet", "huggingface-hub", "hf-xet", "triton-windows"}
    while left:
        name = canonicalize_name(left.pop())
        if name in seen or name in wheels.BOX_HAS or name in never:
            continue
        seen.add(name)
        for line in importlib.metadata.requires(name) or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": "", "python_version": "3.12"}):
                left.append(requirement.name)
    assert seen - {"exltune"} <= {canonicalize_name(name) for name in wheels.PACKAGES}


BUILT_FOR = {"python": "3.12", "torch": "2.11.0+cu130", "cuda": "13.0", "exllamav3": "1.6.5"}


def test_a_built_extension_is_carried_to_a_box_that_it_fits(load: Callable[[str], Any], tmp_path: Path) -> None:
    extension = load("parity.extension")
    (tmp_path / "code.c").write_text("int answer(void) { return 42; }\n")
    library = tmp_path / "built.so"
    subprocess.run(["cc", "-shared", "-g", "-o", str(library), str(tmp_path / "code.c")], check=True)
    archive = extension.packed(library, tmp_path / "kit" / "extension.xz", BUILT_FOR)
    assert extension.unpacked(archive, tmp_path / "site", BUILT_FOR) is None
    carried = tmp_path / "site" / "exllamav3_ext.so"
    code = f"import ctypes; print(ctypes.CDLL({str(carried)!r}).answer())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"42\n"
    assert carried.stat().st_size < library.stat().st_size, "symbols for debuggers stay behind"
    reason = extension.unpacked(archive, tmp_path / "other", {**BUILT_FOR, "torch": "2.12.0+cu130"})
    assert reason == "it was built for torch 2.11.0+cu130, here 2.12.0+cu130"
    assert extension.unpacked(tmp_path / "none.xz", tmp_path / "other", BUILT_FOR) == "the kit has none"
    assert not (tmp_path / "other").exists()


def test_the_toolkit_is_that_of_the_compiler_behind_a_script(
    load: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "bin" / "nvcc"
    script.parent.mkdir()
    script.write_text(f"#!/bin/sh\necho '#$ _SPACE_= ' >&2\necho '#$ TOP={tmp_path}/toolkit/bin/..' >&2\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    extension = load("parity.extension")
    assert extension.cuda_home() == tmp_path / "toolkit"
    environment = extension.build_environment(sys.executable, tmp_path / "site", tmp_path)
    assert environment["CUDA_HOME"] == str(tmp_path / "toolkit")
    assert "TORCH_CUDA_ARCH_LIST" not in environment, "exllamav3 asks the card for its own"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert extension.cuda_home() is None


def test_a_build_that_fails_says_why(
    load: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extension = load("parity.extension")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "none"))
    start = time.monotonic()
    # Without a card nothing tells for which one to build.
    with pytest.raises(RuntimeError, match=r"the build ended: (.|\n)*(CUDA|nvcc)"):
        extension.wait_for_build(tmp_path, time.monotonic() + 120)
    assert time.monotonic() - start < 100
    assert not (tmp_path / "extension.started").exists()


def test_a_build_that_is_done_is_found_by_all_that_follows(load: Callable[[str], Any], tmp_path: Path) -> None:
    extension = load("parity.extension")
    built = tmp_path / "torch_extensions" / "exllamav3_ext" / extension.NAME
    for path in (built.parent, tmp_path / "site"):
        path.mkdir(parents=True)
    built.write_bytes(b"library")
    for name in ("started", "done"):
        (tmp_path / f"extension.{name}").touch()
    extension.wait_for_build(tmp_path, time.monotonic() + 60)
    assert (tmp_path / "site" / extension.NAME).read_bytes() == b"library"


def test_a_build_that_was_killed_is_noticed(load: Callable[[str], Any], tmp_path: Path) -> None:
    extension = load("parity.extension")
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    (tmp_path / "extension.started").write_bytes(dead.stdout)
    (tmp_path / "extension.build.log").touch()
    with pytest.raises(RuntimeError, match="it was killed"):
        extension.wait_for_build(tmp_path, time.monotonic() + 60)


LOG = """\
tests/a.py::test_one PASSED
[gw1] [ 50%] FAILED tests/a.py::test_two[x]
[gw0] [ 75%] SKIPPED tests/a.py::test_three
E   RuntimeError: no kernel image
FAILED tests/a.py::test_two[x] - RuntimeError
"""


def test_tests_that_were_ended_early_are_told_too(load: Callable[[str], Any]) -> None:
    found = load("parity.steps.tests").outcomes(LOG, -9)
    assert (found["ok"], found["passed"], found["failed"], found["skipped"]) == (False, 1, 1, 1)
    assert found["names_of_failed"] == ["a.py::test_two[x]"]
    assert "E   RuntimeError: no kernel image" in found["reasons"]
    assert not load("parity.steps.tests").outcomes("", 0)["ok"], "no test ran"


def score(*kl: float) -> dict[str, Any]:
    return {"mix": "m", "positions": 2, "kl_ref_mix": kl, "kl_mix_ref": kl, "nll": kl, "top_k": ((0,) * len(kl),) * 5}


def test_scores_of_both_engines_are_paired_by_row(load: Callable[[str], Any]) -> None:
    from exltune.schema.score import Score

    scores = load("parity.steps.scores")
    found = scores.compared(Score(**score(0.2, 0.4)), Score(**score(0.204, 0.402)))
    assert found["kl_ref_mix"] == pytest.approx(0.15)
    assert found["difference"] == pytest.approx(0.0015)
    assert found["standard_error"] == pytest.approx(0.0005)
    assert found["within"]
    assert not scores.compared(Score(**score(0.2, 0.4)), Score(**score(0.21, 0.41)))["within"]


def test_parts_of_a_kit_that_other_versions_made_are_made_again(load: Callable[[str], Any], tmp_path: Path) -> None:
    kit, told = load("parity.kit"), []
    (tmp_path / kit.QUANTS).mkdir()
    for name in (kit.SCORES, kit.EXTENSION):
        (tmp_path / name).touch()
    before = {"made_of": {"rows": 1}, "made_by": {"scores": "score.reference 1", "box": "torch 2.11.0"}}
    kit._check(tmp_path, before, before, told.append)
    assert not told
    # Without a box, nothing is said of its parts.
    now = {**before, "made_by": {"scores": "score.reference 2"}}
    kit._check(tmp_path, before, now, told.append)
    assert "made by score.reference 1, made again by score.reference 2" in told[0]
    # Compiling takes an hour: what no other version decides is kept.
    assert [path.name for path in tmp_path.iterdir()] == [kit.EXTENSION]
    kit._check(tmp_path, before, {**before, "made_by": {"box": "torch 2.12.0"}}, told.append)
    assert "extension.xz: made by torch 2.11.0, made again by torch 2.12.0" in told[1]
    assert not list(tmp_path.iterdir())
    with pytest.raises(RuntimeError, match="a kit of other settings: remove it"):
        kit._check(tmp_path, before, {**before, "made_of": {"rows": 2}}, told.append)


def test_the_kit_says_what_it_lacks(load: Callable[[str], Any], tmp_path: Path) -> None:
    task = load("parity.take").Task(tmp_path, None, tmp_path / "answer.json", time.monotonic(), True)
    with pytest.raises(FileNotFoundError, match=r"the kit has no scores\.json: make one with gpu_parity\.py --prepare"):
        task.carried("scores.json")
