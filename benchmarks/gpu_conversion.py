"""Weights per second of the engine's conversion, on random weights of a real model's shapes.

    python benchmarks/gpu_conversion.py [--config tests/fixtures/configs/glm-4.5-air.json --experts 8] [--work DIR]

A layer with some of its experts is converted by exllamav3, once. The rate counts from the first linear
that is done to the last: starting, and capturing the first layer's Hessians, are told apart.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from gpu_throughput import cut
from random_model import write_random_model

from exltune.engines.base import ConvertJob
from exltune.engines.exllamav3.engine import ExllamaEngine

ROOT = Path(__file__).resolve().parent.parent
#: exllamav3 asks for a tokenizer, and encodes nothing with it.
_TOKENIZER = ROOT / "models" / "glm4moe"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "tests" / "fixtures" / "configs" / "glm-4.5-air.json")
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--bits", type=float, default=3.0)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "exltune-conversion")
    args = parser.parse_args()
    config = cut(json.loads(args.config.read_text()), 1, vocabulary=4096)
    config |= {"first_k_dense_replace": 0, "n_routed_experts": args.experts}
    found = conversion_rate(args.work, config, torch.device("cuda", 0), (16, 2048), args.bits)
    print(json.dumps(found, indent=1))


def conversion_rate(
    work: Path, config: Mapping[str, Any], device: torch.device, tokens: tuple[int, int], bits: float
) -> dict[str, float]:
    """Convert a random model calibrated on random tokens (rows, T); what was converted before is made anew."""
    write_random_model(work, config, ())
    for file in _TOKENIZER.glob("tokenizer*"):
        shutil.copy(file, work / "model")
    for name in ("out", "convert"):
        shutil.rmtree(work / name, ignore_errors=True)
    (work / "out").mkdir()
    engine = ExllamaEngine(work / "model", {}, devices=[device])
    ids = torch.randint(0, engine.inventory.vocab_size, tokens, generator=torch.Generator().manual_seed(0))
    job = ConvertJob(bits=bits, head_bits=6.0, codebook="mul1", out=work / "out", work_dir=work / "convert")
    seen: list[tuple[float, int]] = []
    start = perf_counter()
    engine.convert(job, ids, lambda done, _total, _what: seen.append((perf_counter(), done)))
    seconds = perf_counter() - start
    (first, before), (last, done) = seen[0], seen[-1]
    return {
        "weights": done,
        "seconds": seconds,
        "seconds_to_first_linear": first - start,
        "weights_per_second": (done - before) / (last - first) if last > first else 0.0,
        "weights_per_second_in_all": done / seconds,
    }


if __name__ == "__main__":
    main()
