"""Takes the steps one after another, each in a process of its own, and keeps every result at once."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parity.schedule import STEPS, Step

ROOT = Path(__file__).resolve().parents[2]
#: The name under which results of a dry run are kept.
DRY_CARD = "dry run without a card"
#: Seconds left under which no step is begun: even a short one starts Python and torch.
LEAST_SECONDS = 20

#: Of each step, in the file of logs.
_LOG_CHARACTERS = 200_000

Result = dict[str, Any]


@dataclass(frozen=True)
class Setup:
    """Where a run finds and leaves things.

    work: what the next call on the same machine goes on from. out: what comes back; the device tool empties it before
    every call. before: results of another machine to go on from. dry: the stand-in takes the card's place.
    """

    work: Path
    out: Path
    kit: Path | None = None
    before: Path | None = None
    dry: bool = False


def run_steps(setup: Setup, card: str, seconds: float, only: str | None = None, again: bool = False) -> int:
    """Take what is left of the steps within `seconds`. Returns 1 where anything failed or is left, else 0."""
    end, results = time.monotonic() + seconds, _results(setup, card)
    _keep(setup, card, results)
    for step in [step for step in _in_order(results) if only in (None, step.name)]:
        if not again and results.get(step.name, {}).get("ok"):
            print(f"{step.name}: done before")
            continue
        missing = [name for name in step.needs if not results.get(name, {}).get("ok")]
        left = end - time.monotonic()
        if missing:
            print(f"{step.name}: waits for {', '.join(missing)}")
        elif left < _least(step, results):
            print(f"{step.name}: left for the next run")
        else:
            results[step.name] = _taken(step, setup, left if step.patient else min(step.seconds, left))
            _keep(setup, card, results)
            _keep_log(setup, step.name)
            print(f"{step.name}: {json.dumps(results[step.name])[:1000]}", flush=True)
    return 0 if all(results.get(step.name, {}).get("ok") for step in STEPS) else 1


def _least(step: Step, results: Mapping[str, Result]) -> float:
    """Seconds for which a step is begun; a second try in less time than the first could know less than that one."""
    return step.seconds if step.name in results and not step.patient else LEAST_SECONDS


def _in_order(results: Mapping[str, Result]) -> list[Step]:
    """What readies the machine, then what was never taken, then what failed: it may fail again, and take as long."""
    return sorted(STEPS, key=lambda step: (not step.local, step.name in results))


def _results(setup: Setup, card: str) -> dict[str, Result]:
    """Those of this machine, else those to go on from."""
    if (here := result_file(setup.work, card)).is_file():
        return dict(json.loads(here.read_text()))
    if setup.before is None:
        return {"card": {"name": card}}
    local = {step.name for step in STEPS if step.local}
    return {name: found for name, found in json.loads(setup.before.read_text()).items() if name not in local}


def result_file(folder: Path, card: str) -> Path:
    """The one file of all results of a card."""
    return folder / f"{re.sub(r'[^A-Za-z0-9]+', '-', card).strip('-')}.json"


def _keep(setup: Setup, card: str, results: Mapping[str, Any]) -> None:
    """Whole or not at all: the machine may be taken away at any moment."""
    for file in (result_file(folder, card) for folder in (setup.work, setup.out)):
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(results, indent=1) + "\n")
        partial.replace(file)


def _keep_log(setup: Setup, name: str) -> None:
    """The end of a step's log into the one file of logs that comes back from the box."""
    log = (setup.work / f"{name}.log").read_text(errors="replace")[-_LOG_CHARACTERS:]
    with (setup.out / "logs.txt").open("a") as logs:
        logs.write(f"===== {name}\n{log}\n")


def _taken(step: Step, setup: Setup, seconds: float) -> Result:
    """A step's result; no crash or hang of it costs the others anything but its own seconds."""
    setup.work.mkdir(parents=True, exist_ok=True)
    answer, log = setup.work / f"{step.name}.json", setup.work / f"{step.name}.log"
    answer.unlink(missing_ok=True)
    start = time.perf_counter()
    with log.open("a") as output:
        process = subprocess.Popen(
            command(step, setup, answer, seconds),
            cwd=ROOT,
            env=environment(setup),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            process.wait(seconds)
            found = json.loads(answer.read_text()) if answer.is_file() else _died(process.returncode, log)
        except subprocess.TimeoutExpired:
            # What it has found so far is better than nothing.
            found = json.loads(answer.read_text()) if answer.is_file() else {}
            found |= {"ok": False, "error": f"it was not done after {seconds:.0f} s: run again to go on"}
        finally:
            _end(process)
    if not found["ok"]:
        found["hint"] = step.hint.replace("WORK", str(setup.work))
    return {**found, "seconds": round(time.perf_counter() - start, 1), "limit": round(seconds)}


def command(step: Step, setup: Setup, answer: Path, seconds: float) -> Sequence[str]:
    """The process that takes a step."""
    words: list[object] = [sys.executable, "-m", "parity.take", step.name, setup.work]
    words += ["--answer", answer, "--seconds", f"{seconds:.0f}", *(["--dry"] if setup.dry else [])]
    return [str(word) for word in [*words, *(["--kit", setup.kit] if setup.kit else [])]]


def environment(setup: Setup) -> dict[str, str]:
    """This process's own, with the packages and the extension that are kept in the work folder."""
    here = Path(__file__).resolve().parents[1]
    first = [ROOT / "tests" / "standin" / "site"] if setup.dry else [setup.work / "site"]
    path = os.pathsep.join(filter(None, [*map(str, [*first, ROOT, here]), os.environ.get("PYTHONPATH", "")]))
    more = {"PYTHONPATH": path, "TORCH_EXTENSIONS_DIR": str(setup.work / "torch_extensions")}
    return {**os.environ, **more, "XDG_CACHE_HOME": str(setup.work / "cache"), "OMP_WAIT_POLICY": "PASSIVE"}


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a step with all that it started; the build of the extension has a session of its own and goes on."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _died(code: int, log: Path) -> Result:
    return {"ok": False, "error": f"it ended with {code}: {log.read_text()[-1500:]}"}
