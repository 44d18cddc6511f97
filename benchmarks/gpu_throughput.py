"""Tokens per second of the exllamav3 engine and of what it builds, on random weights of a real model's shapes.

    python benchmarks/gpu_throughput.py [--config tests/fixtures/configs/glm-4.5-air.json] [--layers 3] [--work DIR]

Some layers of a model are written with random weights and random base quants: timing needs no more. 3 layers of
GLM-4.5-Air are here one dense and two of 128 experts, with 32768 of its words: 20 GB on disk, all told (33 GB of
GLM-4.7). Printed as JSON, every
figure with those that it follows from:
scoring: one mix, and 32 random ones in one pass, against reading the same weights and doing nothing with them.
serving: prefill and decode of the uniform 3-bit quant and of two mixes of the same bytes: one of layers at 2 and at 4
bits, whose kernels stay fused, and one whose k and v differ, and
so do gate and up where they may.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from random_model import write_random_model

from exltune.assembly import splice_model
from exltune.engines.base import ScoreStats
from exltune.engines.exllamav3.engine import ExllamaEngine
from exltune.engines.exllamav3.runtime import import_exllamav3
from exltune.exl3.directory import QuantDir
from exltune.inventory import load_inventory
from exltune.schema.inventory import Inventory, Role
from exltune.schema.mix import Choice, Mix

ROOT = Path(__file__).resolve().parent.parent
WIDTHS = (2.0, 3.0, 4.0)
#: Tokens in a page of the cache.
_PAGE = 256
Result = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "tests" / "fixtures" / "configs" / "glm-4.5-air.json")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "exltune-throughput")
    parser.add_argument("--mixes", type=int, default=32)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--row-length", type=int, default=256)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    config = cut(json.loads(args.config.read_text()), args.layers)
    devices = [torch.device("cuda", 0)]
    found = throughput(args.work, config, devices, args.mixes, (args.rows, args.row_length))
    text = json.dumps(found, indent=1)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n")


def cut(config: Mapping[str, Any], layers: int, vocabulary: int = 32768) -> dict[str, Any]:
    """The config of a model's first layers, one of them dense if it has any."""
    fewer = {"num_hidden_layers": layers, "vocab_size": min(config["vocab_size"], vocabulary)}
    dense = {"first_k_dense_replace": 1} if config.get("first_k_dense_replace") else {}
    return {**config, **fewer, **dense}


def throughput(
    work: Path,
    config: Mapping[str, Any],
    devices: Sequence[torch.device],
    mixes: int,
    tokens: tuple[int, int],
    prompt: int = 2048,
    keep: Callable[[Result], None] = lambda found: None,
) -> Result:
    """All figures; what was written to `work` is used again. `keep` is called with what is known so far."""
    found: Result = {"shapes": {key: config[key] for key in ("num_hidden_layers", "hidden_size", "vocab_size")}}
    if devices[0].type != "cuda":
        found["meaningless"] = "there was no GPU: the stand-in for exllamav3's kernels ran on a CPU"
    start = perf_counter()
    quants = write_random_model(work, config, WIDTHS)
    found["writing_seconds"] = perf_counter() - start
    keep(found)
    found["scoring"] = scoring(work / "model", quants, devices, mixes, tokens)
    keep(found)
    found["serving"] = serving(work, quants, devices[0], prompt)
    return found


def scoring(
    model: Path, quants: Mapping[Choice, Path], devices: Sequence[torch.device], count: int, shape: tuple[int, int]
) -> Result:
    """One mix and `count` mixes on tokens of this shape (rows, T), each with files that are read from the disk."""
    inventory = load_inventory(model)
    ids = torch.randint(0, inventory.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    mixes = random_mixes(inventory, sorted(quants), count)
    ExllamaEngine(model, quants, devices=devices).score(mixes[:2], ids[:1])  # Kernels are tuned at their first call.
    needed = {"one": [model, quants[mixes[0].choices[inventory.head.id]]], "many": [model, *quants.values()]}
    files = {name: [file for path in paths for file in path.glob("*.safetensors")] for name, paths in needed.items()}
    reading = {name: read_only(some) for name, some in files.items()}
    one, many = (_scored(model, quants, devices, some, ids, files["many"]) for some in (mixes[:1], mixes))
    forward = one.forward_seconds / one.layer_forwards
    head = one.head_seconds / one.head_forwards
    counted = many.load_seconds + 1.2 * (forward * many.layer_forwards + head * many.head_forwards)
    return {
        "tokens": ids.numel(),
        "reading": {name: {"seconds": seconds, "bytes": nbytes} for name, (seconds, nbytes) in reading.items()},
        "one": _told(one, reading["one"][0]),
        "many": _told(many, reading["many"][0]),
        "seconds_per_layer_forward": forward,
        "many_over_counted": many.total_seconds / counted,
        "many_over_one": many.total_seconds / one.total_seconds,
        "reading_dominates_one": reading["one"][0] > one.total_seconds / 2,
    }


def random_mixes(inventory: Inventory, choices: Sequence[Choice], count: int) -> list[Mix]:
    """The lowest uniform mix, then mixes whose every group is drawn: they share hardly any state."""
    draw, groups = random.Random(0), [group.id for group in (*inventory.groups, inventory.head)]
    uniform = Mix(name="0", choices=dict.fromkeys(groups, choices[0]))
    return [
        uniform,
        *(Mix(name=f"{number}", choices={g: draw.choice(choices) for g in groups}) for number in range(1, count)),
    ]


def read_only(files: Iterable[Path]) -> tuple[float, int]:
    """Seconds and bytes of reading files from the disk into one buffer."""
    buffer, nbytes = bytearray(64 << 20), 0
    forget(files := list(files))
    start = perf_counter()
    for file in files:
        with file.open("rb", buffering=0) as handle:
            while got := handle.readinto(buffer):
                nbytes += got
    return perf_counter() - start, nbytes


def forget(files: Iterable[Path]) -> None:
    """Drop files from the page cache, as far as the system does as it is told."""
    for file in files:
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _scored(
    model: Path,
    quants: Mapping[Choice, Path],
    devices: Sequence[torch.device],
    mixes: Sequence[Mix],
    ids: torch.Tensor,
    files: Iterable[Path],
) -> ScoreStats:
    """A new engine each time: an old one keeps the reference's states."""
    engine = ExllamaEngine(model, quants, devices=devices)
    forget(files)
    engine.score(mixes, ids)
    return engine.stats


def _told(stats: ScoreStats, reading: float) -> Result:
    pace = stats.tokens * stats.mixes / stats.total_seconds
    return {"tokens_per_second_and_mix": pace, "reading_share": reading / stats.total_seconds, **vars(stats)}


def serving(work: Path, quants: Mapping[Choice, Path], device: torch.device, prompt: int) -> Result:
    """Prefill of `prompt` tokens and decode of the token behind them, of quants of the same bytes."""
    inventory = load_inventory(quants["3"])
    layouts = {"mixed_fused": by_layer(inventory), "mixed_unfused": by_half(inventory)}
    places = {"uniform": quants["3"]}
    for name, bits in layouts.items():
        places[name] = work / name
        if not (places[name] / "config.json").is_file():
            places[name].mkdir(parents=True, exist_ok=True)
            sources = {float(choice): QuantDir(path) for choice, path in quants.items()}
            settings = {"bits": 3, "head_bits": 6, "codebook": "mul1"}
            splice_model(places[name], inventory, bits, sources, QuantDir(quants["3"]), settings)
    return {name: _served(path, inventory, device, prompt) for name, path in places.items()}


def by_layer(inventory: Inventory) -> dict[str, float]:
    """Layers of one shape are paired, one at 2 bits and one at 4; a layer without a partner stays at 3."""
    shapes: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for layer in range(inventory.layers):
        dims = ((spec.in_features, spec.out_features) for spec in inventory.linears if spec.layer == layer)
        shapes.setdefault(tuple(dims), []).append(layer)
    bits: dict[int | None, float] = {}
    for layers in shapes.values():
        for low, high in zip(layers[::2], layers[1::2], strict=False):
            bits |= {low: 2.0, high: 4.0}
    return {spec.key: bits.get(spec.layer, 3.0) for spec in _budgeted(inventory)}


def by_half(inventory: Inventory) -> dict[str, float]:
    """k and gate at 2 bits, v and up, which are as large, at 4: exllamav3 cannot fuse them.

    Routed experts stay at 3: their gate and up must share a width (exllamav3_ext/libtorch/blocksparse_mlp.cpp).
    """
    ends = {"k_proj": 2.0, "gate_proj": 2.0, "v_proj": 4.0, "up_proj": 4.0}
    return {
        spec.key: 3.0 if spec.role is Role.EXPERTS_GATE_UP else ends.get(spec.key.rpartition(".")[2], 3.0)
        for spec in _budgeted(inventory)
    }


def _budgeted(inventory: Inventory) -> list[Any]:
    return [spec for spec in inventory.linears if not spec.role.fp16 and spec.key not in inventory.head.tensors]


def _served(path: Path, inventory: Inventory, device: torch.device, prompt: int) -> Result:
    exllamav3 = import_exllamav3()
    model = exllamav3.Model.from_config(exllamav3.Config.from_directory(str(path)))
    context = -(-(prompt + 1) // _PAGE) * _PAGE
    cache = exllamav3.Cache(model, max_num_tokens=context, max_batch_size=1)
    model.load(device, progressbar=False)
    try:
        params = {"attn_mode": "flash_attn", "cache": cache, "batch_shape": (1, context), "last_tokens_only": 1}
        prefill = _seconds(model, inventory, device, prompt, {**params, "past_len": 0})
        decode = _seconds(model, inventory, device, 1, {**params, "past_len": prompt}, repeats=30)
    finally:
        model.unload()
    size = sum(QuantDir(path).nbytes(spec.key) for spec in _budgeted(inventory))
    return {"bytes": size, "prefill_tokens_per_second": prompt / prefill, "decode_tokens_per_second": 1 / decode}


@torch.inference_mode()
def _seconds(
    model: Any,
    inventory: Inventory,
    device: torch.device,
    count: int,
    params: Mapping[str, Any],
    repeats: int = 7,
) -> float:
    """Median of a forward of `count` tokens, after the first ones, in which kernels are tuned and graphs captured."""
    ids = torch.randint(0, inventory.vocab_size, (1, count), generator=torch.Generator().manual_seed(0))
    found = []
    for _ in range(repeats):
        start = perf_counter()
        model.forward(ids, dict(params))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(perf_counter() - start)
    return median(found[2 + repeats // 10 :])


if __name__ == "__main__":
    main()
