"""What loading and using a quant takes of a card, against `exltune plan`.

    python benchmarks/gpu_memory.py QUANT [--context 8192,65536] [--chunk 2048]

For each context and each kind of KV cache: the quant is loaded with the cache, two chunks of a prompt are computed, one
at the start and one at the end of the context, then one token. Weights and cache are exllamav3's own accounting
(util/memory.py), the peak is what torch had reserved at most and what CUDA took beside it.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import exltune
from exltune.engines.exllamav3.runtime import import_exllamav3
from exltune.schema.hardware import CacheBits, Overheads
from exltune.schema.mix import UNQUANTIZED_BITS

CACHES = (CacheBits(k=UNQUANTIZED_BITS, v=UNQUANTIZED_BITS), CacheBits(k=8, v=8), CacheBits(k=5, v=4))
#: A plan wants a card; this one is never full.
_CARD = "1x512GiB"

Cell = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("quant", type=Path)
    parser.add_argument("--context", default="8192,65536")
    parser.add_argument("--chunk", type=int, default=2048)
    args = parser.parse_args()
    contexts = [int(word) for word in args.context.split(",")]
    found = memory_cells(args.quant, torch.device("cuda", 0), contexts, args.chunk)
    print(json.dumps(found, indent=1))


def memory_cells(
    quant: Path,
    device: torch.device,
    contexts: Sequence[int],
    chunk: int,
    caches: Sequence[CacheBits] = CACHES,
    keep: Callable[[list[Cell]], None] = lambda cells: None,
) -> list[Cell]:
    """A cell for each context and cache; `keep` is called with those found so far."""
    cells: list[Cell] = []
    for context in contexts:
        for cache in caches:
            cells.append(_cell(quant, device, context, cache, chunk))
            keep(cells)
    return cells


def _cell(quant: Path, device: torch.device, context: int, cache: CacheBits, chunk: int) -> Cell:
    planned, measured = _planned(quant, context, cache, chunk), _measured(quant, device, context, cache, chunk)
    return {
        "quant": quant.name,
        "context": context,
        "cache": str(cache),
        "chunk": chunk,
        "planned": planned,
        "measured": measured,
        "error_bytes": {
            "weights": planned["weights_bytes"] - measured["weights_bytes"],
            "kv": planned["kv_bytes"] - measured["kv_bytes"],
            "peak": planned["peak_bytes"] - measured["peak_bytes"],
        },
    }


def _planned(quant: Path, context: int, cache: CacheBits, chunk: int) -> dict[str, int]:
    """What the plan expects on the card; free memory that it keeps is no part of a peak."""
    found = exltune.plan(quant, gpus=_CARD, context=context, cache=str(cache), chunk=chunk, slots=1)
    (card,), constants = found.per_gpu, Overheads()
    kept_free = max(constants.reserve_bytes, constants.margin_bytes)
    overhead = card.overhead_bytes - kept_free
    return {
        "weights_bytes": card.weights_bytes,
        "kv_bytes": card.kv_bytes,
        "overhead_bytes": overhead,
        "peak_bytes": card.weights_bytes + card.kv_bytes + overhead,
    }


def _measured(quant: Path, device: torch.device, context: int, cache: CacheBits, chunk: int) -> dict[str, int]:
    exllamav3 = import_exllamav3()
    from exllamav3.util.memory import vram_accounting

    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    model = exllamav3.Model.from_config(exllamav3.Config.from_directory(str(quant)))
    held = _cache(exllamav3, model, context, cache)
    model.load(device, progressbar=False, max_chunk_size=chunk)
    try:
        loaded = torch.cuda.memory_stats(device)["allocated_bytes.all.current"]
        for past in sorted({0, context - chunk}):
            _run(model, held, context, past, chunk)
        _run(model, held, context, chunk, 1)
        (report,) = vram_accounting(model, held, devices=[device])
    finally:
        model.unload()
    return {
        "weights_bytes": report.weights,
        "arena_tail_bytes": report.weights_arena_tail,
        "kv_bytes": report.cache,
        "static_bytes": report.statics,
        "other_bytes": report.other,
        "largest_transient_bytes": report.peak_allocated - loaded,
        "peak_reserved_bytes": report.peak_reserved,
        "non_torch_bytes": report.non_torch,
        "peak_bytes": report.peak_reserved + report.non_torch,
    }


def _cache(exllamav3: Any, model: Any, context: int, bits: CacheBits) -> Any:
    if not bits.quantized:
        return exllamav3.Cache(model, max_num_tokens=context, max_batch_size=1)
    from exllamav3.cache import CacheLayer_quant

    more = {"layer_type": CacheLayer_quant, "k_bits": bits.k, "v_bits": bits.v}
    return exllamav3.Cache(model, max_num_tokens=context, max_batch_size=1, **more)


@torch.inference_mode()
def _run(model: Any, cache: Any, context: int, past: int, count: int) -> None:
    """A forward of `count` tokens behind `past` others, as the generator computes a chunk: logits of the last alone."""
    ids = torch.randint(0, 256, (1, count), generator=torch.Generator().manual_seed(0))
    settings = {"attn_mode": "flash_attn", "cache": cache, "batch_shape": (1, context), "past_len": past}
    model.forward(ids, {**settings, "last_tokens_only": 1})


if __name__ == "__main__":
    main()
