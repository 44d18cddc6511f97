"""exltune's tests with the marker gpu, on exllamav3's own kernels."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from parity.runner import ROOT
from parity.take import Task

#: As many as share a card without waiting for each other's start.
_PROCESSES = 6
_OUTCOME = re.compile(r"^(?:\[gw\d+\] \[ *\d+%\] )?(PASSED|FAILED|ERROR|SKIPPED) (\S+)", re.MULTILINE)
#: The dry run takes a few of them, on the stand-in: all of them run in the test command anyway.
_DRY = ROOT / "tests" / "integration" / "test_exllamav3_runtime.py"
_FEW = "windows"


def take(task: Task) -> dict[str, Any]:
    log = task.work / "pytest.log"
    words = [sys.executable, "-m", "pytest", "-v", "-o", "addopts=-rfEs --tb=short", "-o", "filterwarnings=default"]
    words += ["-p", "no:cacheprovider", *_selection(task.dry)]
    environment = os.environ if task.dry else {**os.environ, "EXLTUNE_TESTS_NATIVE": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=output, stderr=output)
        try:
            process.wait(max(1.0, task.end - time.monotonic() - 5))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return outcomes(log.read_text(errors="replace"), process.returncode)


def _selection(dry: bool) -> list[str]:
    if dry:
        return ["-m", "gpu and not slow", "-k", _FEW, str(_DRY)]
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "pytest.mark.gpu" in path.read_text()]
    return ["-n", str(_PROCESSES), "--dist", "load", "-m", "gpu", *map(str, files)]


def outcomes(log: str, code: int) -> dict[str, Any]:
    """Counts, and the names of what failed, from pytest's lines with -v; also of a run that was ended early."""
    found: dict[str, set[str]] = {"PASSED": set(), "FAILED": set(), "ERROR": set(), "SKIPPED": set()}
    for line in log.splitlines():
        if match := _OUTCOME.match(line):
            found[match[1]].add(match[2])
        elif match := re.match(r"^(\S+::\S+) (PASSED|FAILED|ERROR|SKIPPED)", line):
            found[match[2]].add(match[1])
    failed = sorted(found["FAILED"] | found["ERROR"])
    return {
        "ok": code == 0 and bool(found["PASSED"]),
        **({} if code == 0 else {"error": f"pytest ended with {code}; {len(failed)} failed"}),
        **{name.lower(): len(names) for name, names in found.items()},
        "names_of_failed": [Path(name).name for name in failed],
        "reasons": [line[:300] for line in log.splitlines() if re.match(r"^(E   |FAILED|ERROR) ?", line)][-60:],
    }
