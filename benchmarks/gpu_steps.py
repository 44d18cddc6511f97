"""The steps of gpu_parity.py, each run by it in a process of its own; one that fails says why in its answer."""

from __future__ import annotations

import argparse
import json
import lzma
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "glm4moe"
EXTENSION = "exllamav3_ext.so"
#: What comes back from some boxes is limited by file.
_PART_BYTES = 15 << 20
_TILES = 4096

Result = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("work", type=Path)
    parser.add_argument("--answer", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=540.0)
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("--save", type=Path)
    args = parser.parse_args()
    try:
        found = {"ok": True, **STEPS[args.step](args)}
    except Exception as error:  # noqa: BLE001 - a script's edge: the answer is what is looked at
        traceback.print_exc()
        found = {"ok": False, "error": f"{type(error).__name__}: {error}"[-2000:]}
    args.answer.write_text(json.dumps(found))


def _run(*words: object, **more: str) -> str:
    """Output of a command; its last lines are the error if it fails."""
    done = subprocess.run(
        [str(word) for word in words],
        cwd=ROOT,
        env={**os.environ, **more},
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout, done.stderr, sep="\n", flush=True)
    if done.returncode:
        raise RuntimeError(f"{words[:4]} ended with {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")
    return done.stdout


def _exltune(*words: object) -> str:
    return _run(sys.executable, "-c", "from exltune.cli import main; main()", *words)


def install(args: argparse.Namespace) -> Result:
    """Wheels into the work folder, an extension that was packed before, and what is there then."""
    site = args.work / "site"
    if args.wheels is not None:
        wheels = sorted(args.wheels.glob("*.whl"))
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--upgrade", "--target", site]
        _run(*pip, *wheels)
        unpacked(args.wheels, site)
    code = (
        "import torch, importlib.metadata as m, json; print(json.dumps({'torch': torch.__version__, 'cuda': "
        "torch.version.cuda, 'exllamav3': m.version('exllamav3'), 'transformers': m.version('transformers'), "
        "'devices': torch.cuda.device_count(), 'vram_bytes': torch.cuda.mem_get_info()[1]}))"
    )
    found = json.loads(_run(sys.executable, "-c", code).splitlines()[-1])
    start_build(args.work)
    return {**found, "cores": os.cpu_count()}


def packed(extension: Path, folder: Path) -> list[Path]:
    """An extension compressed into parts; lzma's fastest setting takes a minute for 100 MB."""
    folder.mkdir(parents=True, exist_ok=True)
    content = lzma.compress(extension.read_bytes(), preset=1)
    parts = [content[at : at + _PART_BYTES] for at in range(0, len(content), _PART_BYTES)]
    paths = [folder / f"{EXTENSION}.xz.{number:02}" for number in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        path.write_bytes(part)
    return paths


def unpacked(folder: Path, site: Path) -> None:
    """The extension out of its parts, if there are any."""
    parts = sorted(folder.glob(f"{EXTENSION}.xz.*"))
    if parts:
        site.mkdir(parents=True, exist_ok=True)
        (site / EXTENSION).write_bytes(lzma.decompress(b"".join(part.read_bytes() for part in parts)))


def start_build(work: Path) -> None:
    """Build, or just load, the extension in a process that outlives this one; its end stands in a file."""
    if (work / "extension.started").is_file():
        return
    done, failed, started = (work / f"extension.{end}" for end in ("done", "failed", "started"))
    code = (
        f"import os, pathlib, traceback\npathlib.Path({str(started)!r}).write_text(str(os.getpid()))\n"
        f"try:\n    import exllamav3.ext\n    pathlib.Path({str(done)!r}).touch()\n"
        f"except BaseException:\n    pathlib.Path({str(failed)!r}).write_text(traceback.format_exc())"
    )
    failed.unlink(missing_ok=True)
    started.write_text(str(os.getpid()))
    with (work / "extension.build.log").open("w") as log:
        words = ["setsid", "--fork", sys.executable, "-c", code]
        subprocess.run(words, stdout=log, stderr=log, cwd=ROOT, check=True)


def _gone(started: Path) -> bool:
    """Whether the process that builds is no more."""
    try:
        os.kill(int(started.read_text()), 0)
    except ProcessLookupError:
        return True
    return False


def extension(args: argparse.Namespace) -> Result:
    """Wait for exllamav3's extension; a run that finds it unfinished says so, the next one waits on."""
    start_build(args.work)
    done, failed, end = args.work / "extension.done", args.work / "extension.failed", time.monotonic() + args.seconds
    started = args.work / "extension.started"
    while not done.is_file() and not failed.is_file() and not _gone(started) and time.monotonic() < end - 15:
        time.sleep(0.5)
    if not done.is_file() and (failed.is_file() or _gone(started)):
        started.unlink()
        log = failed if failed.is_file() else args.work / "extension.build.log"
        raise RuntimeError(f"the build ended: {log.read_text()[-1500:] or 'it was killed, by the lack of memory?'}")
    if not done.is_file():
        raise RuntimeError("it is still being built: run the same command again, at once, to wait on")
    built = sorted(Path(os.environ["TORCH_EXTENSIONS_DIR"]).rglob("exllamav3_ext.so"))
    if args.save is not None and built:
        return {"packed": [path.name for path in packed(built[0], args.save)]}
    return {"built_here": bool(built)}


def disk(args: argparse.Namespace) -> Result:
    """How fast the work folder's disk writes and reads: what streaming a model waits for."""
    from gpu_throughput import forget, read_only

    file, block = args.work / "disk.bin", os.urandom(64 << 20)
    start = time.perf_counter()
    with file.open("wb") as handle:
        for _ in range(64):
            handle.write(block)
        os.fsync(handle.fileno())
    wrote = time.perf_counter() - start
    forget([file])
    seconds, nbytes = read_only([file])
    file.unlink()
    return {"write_bytes_per_second": nbytes / wrote, "read_bytes_per_second": nbytes / seconds}


def tests(args: argparse.Namespace) -> Result:
    """The engine's tests on exllamav3 itself; other versions of packages may warn here."""
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "pytest.mark.gpu" in path.read_text()]
    words = ("-m", "pytest", "-m", "gpu", "-q", "-o", "addopts=-rsf", "-o", "filterwarnings=default", *files)
    out = _run(sys.executable, *words, EXLTUNE_TESTS_NATIVE="1")
    summary = out.strip().splitlines()[-1]
    if " passed" not in summary:
        raise RuntimeError(f"no test ran: {summary}")
    return {"summary": summary}


def encoder(args: argparse.Namespace) -> Result:
    """The CPU encoder against quantize_tiles: how many indices differ, and what that is worth in distortion."""
    import numpy as np
    import torch
    from exllamav3.modules.quant.exl3_lib.quantize import quantize_tiles
    from half_costs import compared

    tiles = np.random.default_rng(0).standard_normal((_TILES, 256), dtype=np.float32)
    found: Result = {}
    for bits in (1, 2, 3, 3.5, 4, 5, 6, 8):
        _, states = quantize_tiles(torch.from_numpy(tiles).cuda(), {"K": bits, "mul1": True})
        found[f"{bits:g}"] = compared(tiles, states.cpu().numpy().view(np.uint16), bits)
    return {"tiles": _TILES, "bits": found}


def conversion(args: argparse.Namespace) -> Result:
    """Base quants through the engine, and how fast they came."""
    start = time.perf_counter()
    _exltune("quantize", MODEL, "--out", args.work / "quants", "--bits", "2,3,4", "--engine", "exllamav3")
    size = sum(file.stat().st_size for file in MODEL.glob("*.safetensors")) / 2
    return {"weights_per_second": 3 * size / (time.perf_counter() - start)}


def scores(args: argparse.Namespace) -> Result:
    """Both engines on the same quants, held-out texts and mixes: KL of each, and how far they are apart."""
    evaluations: dict[str, Any] = {}
    quants = sorted((args.work / "quants").glob("*bpw_H6"))
    for engine in ("reference", "exllamav3"):
        words = ["evaluate", MODEL, *quants, "--engine", engine, "--rows", "64", "--json"]
        evaluations[engine] = {row["name"]: row for row in json.loads(_exltune(*words))["rows"]}
    return {"evaluations": evaluations, "kl_ratio": ratios(*evaluations.values())}


def ratios(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, float]:
    """KL(ref‖quant) on the GPU over that on the CPU, by quant."""
    return {name: theirs[name]["kl_ref_quant"] / row["kl_ref_quant"] for name, row in ours.items()}


def throughput(args: argparse.Namespace) -> Result:
    """gpu_throughput.py on layers of GLM-4.7's shapes."""
    out = args.work / "throughput.out.json"
    _run(sys.executable, ROOT / "benchmarks" / "gpu_throughput.py", "--work", args.work / "random", "--out", out)
    return dict(json.loads(out.read_text()))


def demo(args: argparse.Namespace) -> Result:
    """The whole chain on the demo's model, with the engine that auto takes here."""
    out = _exltune("demo", "--out", args.work / "demo", "--json")
    return {"verdict": json.loads(out)["verdict"]}


STEPS: Mapping[str, Callable[[argparse.Namespace], Result]] = {
    step.__name__: step for step in (install, disk, extension, tests, encoder, conversion, scores, throughput, demo)
}


if __name__ == "__main__":
    main()
