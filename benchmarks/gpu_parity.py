"""From a bare GPU box to a verdict on the exllamav3 engine, in resumable steps of under ten minutes each.

    python benchmarks/gpu_parity.py [--wheels DIR] [--out measurements/gpu] [--work DIR] [--step NAME] [--again]

Without --step all steps are taken that have no good result yet; one that fails is noted and the next one is tried.
--wheels: where pip finds torch, exllamav3 and the rest without a network; without it what is installed is used.
The result is one JSON, OUT/<card>.json. Exit code 2 where there is no CUDA device.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
#: Seconds for a step; what takes longer is ended, noted, and goes on in the next run where it can.
LIMIT = 570
MODEL = ROOT / "models" / "glm4moe"

Result = dict[str, Any]


def main() -> None:
    args = _arguments()
    card = _card()
    if card is None:
        sys.exit(_refusal())
    file = args.out / f"{re.sub(r'[^A-Za-z0-9]+', '-', card).strip('-')}.json"
    results: dict[str, Result] = json.loads(file.read_text()) if file.is_file() else {"card": {"name": card}}
    for name in [args.step] if args.step else list(STEPS):
        if not args.again and results.get(name, {}).get("ok"):
            print(f"{name}: done before")
            continue
        results[name] = _taken(name, args)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{name}: {json.dumps(results[name])[:2000]}")
    sys.exit(0 if all(results.get(name, {}).get("ok") for name in STEPS) else 1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "measurements" / "gpu")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "exltune-parity")
    parser.add_argument("--step", choices=list(STEPS))
    parser.add_argument("--again", action="store_true")
    return parser.parse_args()


def _card() -> str | None:
    """The first card's name, asked of the driver: torch may not be installed yet."""
    try:
        words = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        names = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return names[0].strip() if names else None


def _refusal() -> int:
    print("there is no CUDA device: nvidia-smi names none. Nothing was measured.", file=sys.stderr)
    return 2


def _taken(name: str, args: argparse.Namespace) -> Result:
    """A step's result; whatever goes wrong in it is a result too."""
    start = time.perf_counter()
    try:
        found = {"ok": True, **STEPS[name](args)}
    except subprocess.TimeoutExpired:
        found = {"ok": False, "error": f"it took more than {LIMIT} s: run again to go on"}
    except Exception as error:  # noqa: BLE001 - a script's edge: the next step may tell more
        found = {"ok": False, "error": f"{type(error).__name__}: {error}"[-2000:]}
    return {**found, "seconds": round(time.perf_counter() - start, 1)}


def _run(*words: str | Path) -> str:
    """Output of a command; its last lines are the error if it fails."""
    done = subprocess.run(
        [str(word) for word in words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT,
    )
    if done.returncode:
        raise RuntimeError(f"{words[:4]} ended with {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")
    return done.stdout


def _exltune(*words: str | Path) -> str:
    return _run(sys.executable, "-c", "from exltune.cli import main; main()", *words)


def install(args: argparse.Namespace) -> Result:
    """Packages from wheels alone, if a folder of them is given."""
    if args.wheels is not None:
        pip = [sys.executable, "-m", "pip", "install", "--no-index", "--find-links", args.wheels]
        _run(*pip, "-e", f"{ROOT}[exllamav3,dev]", "--no-build-isolation")
    code = (
        "import torch, importlib.metadata as m, json; print(json.dumps({'torch': torch.__version__, 'cuda': "
        "torch.version.cuda, 'exllamav3': m.version('exllamav3'), 'devices': torch.cuda.device_count()}))"
    )
    return dict(json.loads(_run(sys.executable, "-c", code)))


def extension(args: argparse.Namespace) -> Result:
    """exllamav3's extension, built in the background: a run that finds it unfinished says so, the next one waits on."""
    args.work.mkdir(parents=True, exist_ok=True)
    done, log = args.work / "extension.done", args.work / "extension.log"
    if not (args.work / "extension.started").is_file():
        (args.work / "extension.started").touch()
        code = f"import exllamav3.ext, pathlib; pathlib.Path({str(done)!r}).touch()"
        with log.open("w") as file:
            subprocess.Popen([sys.executable, "-c", code], stdout=file, stderr=file, start_new_session=True)
    end = time.monotonic() + LIMIT - 30
    while not done.is_file() and time.monotonic() < end:
        time.sleep(2)
        if "Error" in log.read_text():
            (args.work / "extension.started").unlink()
            raise RuntimeError(log.read_text()[-1500:])
    if not done.is_file():
        raise RuntimeError("it is still being built: run again to wait on")
    return {}


def tests(args: argparse.Namespace) -> Result:
    """The engine's tests, natively."""
    out = _run(sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-o", "addopts=-rs", "tests")
    return {"summary": out.strip().splitlines()[-1]}


def demo(args: argparse.Namespace) -> Result:
    """The whole chain on the demo's model, with the engine that auto takes here."""
    out = _exltune("demo", "--out", args.work / "demo", "--json")
    return {"verdict": json.loads(out)["verdict"]}


def encoder(args: argparse.Namespace) -> Result:
    """The CPU encoder against quantize_tiles: how many indices differ, and what that is worth in distortion."""
    import numpy as np
    import torch
    from exllamav3.modules.quant.exl3_lib.quantize import quantize_tiles

    from exltune.exl3.codebooks import codebook_values
    from exltune.exl3.trellis import encode_tiles

    tiles = np.random.default_rng(0).standard_normal((4096, 256), dtype=np.float32)
    found: Result = {}
    for bits in (1, 2, 3, 3.5, 4, 5, 6, 8):
        values, states = quantize_tiles(torch.from_numpy(tiles).cuda(), {"K": bits, "mul1": True})
        theirs = states.cpu().numpy().view(np.uint16)
        ours = encode_tiles(tiles, bits, "mul1")
        own = codebook_values("mul1")[ours]
        found[f"{bits:g}"] = {
            "indices_differ": float((theirs != ours).mean()),
            "nmse_theirs": float(((values.cpu().numpy() - tiles) ** 2).mean()),
            "nmse_ours": float(((own - tiles) ** 2).mean()),
        }
    return {"bits": found}


def conversion(args: argparse.Namespace) -> Result:
    """Base quants through the engine, and how fast they came."""
    start = time.perf_counter()
    words = ["quantize", MODEL, "--out", args.work / "quants", "--bits", "2,3,4", "--engine", "exllamav3"]
    _exltune(*words)
    size = sum(file.stat().st_size for file in MODEL.glob("*.safetensors")) / 2
    return {"weights_per_second": 3 * size / (time.perf_counter() - start)}


def scores(args: argparse.Namespace) -> Result:
    """Both engines on the same quants, and tokens/s of one mix and of 32."""
    import torch

    from exltune.engines import Engine, open_engine
    from exltune.pipeline.base_quants import find_base_quants, paths_of
    from exltune.schema.mix import Mix

    quants = paths_of(find_base_quants(args.work / "quants", MODEL))
    engines: Mapping[str, Engine] = {name: open_engine(name, MODEL, quants) for name in ("reference", "exllamav3")}
    inventory = engines["reference"].inventory
    groups = [group.id for group in (*inventory.groups, inventory.head)]
    uniform = [Mix(name=choice, choices=dict.fromkeys(groups, choice)) for choice in quants]
    swaps = [Mix(name=g, choices={**dict.fromkeys(groups, "3"), g: "4"}) for g in groups[:31]]
    tokens = torch.randint(0, inventory.vocab_size, (64, 256), generator=torch.Generator().manual_seed(0))
    kl = {
        name: {score.mix: sum(score.kl_ref_mix) / tokens.numel() for score in engine.score(uniform, tokens)}
        for name, engine in engines.items()
    }
    speed = {}
    for name, mixes in (("one", uniform[:1]), ("many", [uniform[0], *swaps])):
        engines["exllamav3"].score(mixes, tokens)  # once to compile and tune kernels
        engines["exllamav3"].score(mixes, tokens)
        stats = engines["exllamav3"].stats
        speed[name] = {"tokens_per_second_and_mix": stats.tokens * stats.mixes / stats.total_seconds, **vars(stats)}
    return {"kl_ref_mix_nats": kl, "speed": speed}


STEPS: Mapping[str, Callable[[argparse.Namespace], Result]] = {
    step.__name__: step for step in (install, extension, tests, demo, encoder, conversion, scores)
}


if __name__ == "__main__":
    main()
