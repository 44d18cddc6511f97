"""From a bare GPU box to a verdict on the exllamav3 engine, in steps that each fit a call of ten minutes.

    python benchmarks/gpu_parity.py --collect --wheels .whl                  # where pip works: what the box will lack
    python benchmarks/gpu_parity.py --wheels .whl [--save DIR] [--out DIR]   # on the box, until nothing is left

On the box every step that has no good result yet is taken, and the run ends before --minutes are over: run the same
command again, at once, to go on. exllamav3's extension is built in the background from the first run on, for this card
alone; what needs no extension is done meanwhile. --save packs the extension once it is built, in parts of 15 MiB: put
into the folder of wheels, they spare the next box the build. --step NAME takes one step, --again also those that are
good. The result is one JSON, OUT/<card>.json. Exit codes: 0 all is well, 1 something failed or is left, 2 no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STEPS_FILE = Path(__file__).with_name("gpu_steps.py")
#: In this order; those after `extension` wait for it.
STEPS = ("install", "disk", "extension", "tests", "encoder", "conversion", "scores", "throughput", "demo")
#: Packages that a box with PyTorch, transformers and numba lacks, with what these need in turn.
PACKAGES = (
    *("exllamav3", "marisa-trie", "llguidance", "pydantic", "pydantic-core", "annotated-types"),
    *("typing-inspection", "optuna", "alembic", "mako", "markupsafe", "colorlog", "sqlalchemy", "cmaes"),
    *("httpx2", "httpcore2", "truststore", "tenacity", "plotly", "narwhals", "filelock"),
)
_PLATFORMS = (
    *("manylinux_2_39", "manylinux_2_35", "manylinux_2_34", "manylinux_2_31", "manylinux_2_28"),
    *("manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1"),
)
#: A step that would have less than this is left for the next run.
_LEAST_SECONDS = 45
_HINTS = {
    "install": "give --wheels the folder that --collect filled, for this Python",
    "extension": "see WORK/extension.log; nvcc and c++ must be on the PATH, and torch must be a CUDA build",
    "tests": "see WORK/tests.log",
    "encoder": "quantize_tiles could not be called: see the error",
    "conversion": "see WORK/quants/.exltune/*/convert.log; the same command resumes",
    "scores": "it needs the step conversion",
    "throughput": "free 40 GB under WORK, or see the error",
    "demo": "run `exltune demo --out WORK/demo` to see it; it resumes",
}

Result = dict[str, Any]


def main() -> None:
    args = _arguments()
    if args.collect:
        sys.exit(collect(args.wheels, args.python))
    card = _card()
    if card is None:
        print("there is no CUDA device: nvidia-smi names none. Nothing was measured.", file=sys.stderr)
        sys.exit(2)
    sys.exit(_run_steps(args, card))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, help="folder of wheels; without it what is installed is used")
    parser.add_argument("--collect", action="store_true", help="download wheels into --wheels, and end")
    parser.add_argument("--python", default="3.12", help="Python of the box, for --collect")
    parser.add_argument("--save", type=Path, help="where the built extension is packed to")
    parser.add_argument("--out", type=Path, default=ROOT / "measurements" / "gpu")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "exltune-parity")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--step", choices=STEPS)
    parser.add_argument("--again", action="store_true")
    args = parser.parse_args()
    if args.collect and args.wheels is None:
        parser.error("--collect needs --wheels: where the wheels go")
    return args


def collect(folder: Path, python: str) -> int:
    """Download what a box lacks, for its Python and Linux on x86-64."""
    platforms = [word for name in _PLATFORMS for word in ("--platform", f"{name}_x86_64")]
    words = ["--no-deps", "--only-binary=:all:", "--python-version", python, "--implementation", "cp", *platforms]
    command = [sys.executable, "-m", "pip", "download", "-c", str(ROOT / "constraints.txt"), "-d", str(folder)]
    code = subprocess.run([*command, *words, *PACKAGES], check=False).returncode
    size = sum(file.stat().st_size for file in folder.glob("*")) if folder.is_dir() else 0
    print(f"{folder}: {size / 2**20:.0f} MiB")
    return code


def _card() -> str | None:
    """The first card's name, asked of the driver: torch may not be installed yet."""
    try:
        words = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        names = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return names[0].strip() if names else None


def _run_steps(args: argparse.Namespace, card: str) -> int:
    """Take what is left of the steps, each result kept at once. Returns the exit code."""
    end = time.monotonic() + 60 * args.minutes
    file = args.out / f"{re.sub(r'[^A-Za-z0-9]+', '-', card).strip('-')}.json"
    results: dict[str, Result] = json.loads(file.read_text()) if file.is_file() else {"card": {"name": card}}
    for name in [args.step] if args.step else STEPS:
        if not args.again and results.get(name, {}).get("ok"):
            print(f"{name}: done before")
            continue
        left = end - time.monotonic()
        if left < _LEAST_SECONDS:
            print(f"{name}: left for the next run")
            break
        results[name] = _taken(name, args, left)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{name}: {json.dumps(results[name])[:1500]}", flush=True)
        if name in ("install", "extension") and not results[name]["ok"]:
            break  # Nothing behind it can run.
    return 0 if all(results.get(name, {}).get("ok") for name in STEPS) else 1


def _taken(name: str, args: argparse.Namespace, seconds: float) -> Result:
    """A step's result; it runs in a process of its own, so that no crash or hang of it costs the others."""
    args.work.mkdir(parents=True, exist_ok=True)
    answer, log = args.work / f"{name}.json", args.work / f"{name}.log"
    answer.unlink(missing_ok=True)
    words = [sys.executable, STEPS_FILE, name, args.work, f"--answer={answer}", f"--seconds={seconds:.0f}"]
    words += [f"--{option}={value}" for option in ("wheels", "save") if (value := getattr(args, option)) is not None]
    start = time.perf_counter()
    with log.open("a") as output:
        process = subprocess.Popen(
            list(map(str, words)),
            cwd=ROOT,
            env=environment(args.work),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            process.wait(seconds)
            found = json.loads(answer.read_text()) if answer.is_file() else _died(process.returncode, log)
        except subprocess.TimeoutExpired:
            found = {"ok": False, "error": f"it was not done after {seconds:.0f} s: run again to go on"}
        finally:
            _end(process)
    if not found["ok"]:
        found["hint"] = _HINTS.get(name, "").replace("WORK", str(args.work))
    return {**found, "seconds": round(time.perf_counter() - start, 1)}


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a step with all that it started; the build of the extension has a session of its own and goes on."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _died(code: int, log: Path) -> Result:
    return {"ok": False, "error": f"it ended with {code}: {log.read_text()[-1500:]}"}


def environment(work: Path) -> dict[str, str]:
    """This process's own, with the packages and the extension that are kept in the work folder."""
    path = os.pathsep.join(filter(None, [str(ROOT), str(work / "site"), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "TORCH_EXTENSIONS_DIR": str(work / "torch_extensions")}


if __name__ == "__main__":
    main()
