"""Write a model directory that exllamav3 loads: shards, index, config.json, quantization_config.json."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exltune.exl3.directory import QuantDir
from exltune.exl3.tensors import read_json, save_tensors

if TYPE_CHECKING:
    import torch

DEFAULT_SHARD_BYTES = 8192 * 1024**2
_CODEBOOK_MARKERS = ("mul1", "mcg")
#: exllamav3 keeps these in fp32 when it loads them, so nothing is gained by rounding.
KEPT_IN_FP32 = ("e_score_correction_bias",)
_LEFT_BEHIND = (".safetensors", ".bin", ".ckpt", ".pth", ".pt", ".gguf")
#: Files of every directory written here beside config.json.
QUANTIZATION_CONFIG = "quantization_config.json"
_REWRITTEN = ("config.json", QUANTIZATION_CONFIG, "model.safetensors.index.json", "README.md")
#: exltune's notes beside a quant are true of that quant alone.
_NOTES = ("exltune.json", "recipe.yaml")
#: The exllamav3 release whose format this is; stored as `version`, as its own converter does.
FORMAT_VERSION = "1.6.5"


@dataclass(frozen=True)
class PendingTensor:
    """A tensor to be written, loaded only when its shard is."""

    name: str
    nbytes: int
    load: Callable[[], torch.Tensor]


def write_tensors(out: Path, tensors: Iterable[PendingTensor], shard_bytes: int = DEFAULT_SHARD_BYTES) -> None:
    """Write tensors in order into one or more shards, with an index where there are several."""
    shards = list(_into_shards(tensors, shard_bytes))
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_tensors(out / name, {t.name: t.load().contiguous() for t in shard}, {"format": "pt"})
        weight_map |= {t.name: name for t in shard}
    if len(shards) > 1:
        total = sum(t.nbytes for shard in shards for t in shard)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=4))


def _into_shards(tensors: Iterable[PendingTensor], shard_bytes: int) -> Iterator[list[PendingTensor]]:
    shard: list[PendingTensor] = []
    size = 0
    for tensor in tensors:
        if shard and size + tensor.nbytes > shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append(tensor)
        size += tensor.nbytes
    if shard:
        yield shard


def copy_side_files(source: Path, out: Path) -> None:
    """Copy tokenizer, chat template and the like; weights, configs, notes and the source's README stay behind."""
    for file in sorted(source.iterdir()):
        hidden = file.name.startswith(".")
        if file.is_file() and not hidden and file.suffix not in _LEFT_BEHIND and file.name not in _REWRITTEN + _NOTES:
            shutil.copyfile(file, out / file.name)


def write_configs(source: Path, out: Path, quantization: Mapping[str, Any]) -> None:
    """config.json with `quantization_config`, and quantization_config.json with every tensor's storage beside it.

    The head is always written apart from the embedding, so a model that tied them is untied in the output.
    """
    config = read_json(source / "config.json")
    original = config.get("quantization_config")
    settings = {"quant_method": "exl3", "version": FORMAT_VERSION}
    settings |= {key: _whole(value) for key, value in quantization.items()}
    if original is not None and original.get("quant_method") != "exl3":
        settings["original_quantization_config"] = original
    if "tie_word_embeddings" in config:
        config["tie_word_embeddings"] = False
    if "num_local_experts" in config and "num_experts" not in config:
        # exllamav3's Qwen3Moe reads num_experts; newer transformers writes num_local_experts and reads both.
        config["num_experts"] = config["num_local_experts"]
    config["quantization_config"] = settings
    (out / "config.json").write_text(json.dumps(config, indent=4))
    storage = {**settings, "tensor_storage": tensor_storage(QuantDir(out))}
    (out / QUANTIZATION_CONFIG).write_text(json.dumps(storage, indent=4))


def _whole(value: object) -> Any:
    """3.0 -> 3: exllamav3 writes whole bits as integers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def tensor_storage(quant: QuantDir) -> dict[str, Any]:
    """The stored tensors of every module, in exllamav3's form (conversion/quant_config.py)."""
    modules: dict[str, Any] = {}
    for name, entry in quant.files.entries.items():
        key = name.rpartition(".")[0]
        described = {"shape": list(entry.shape), "n_bytes": entry.nbytes, "dtype": _TORCH_NAMES[entry.dtype]}
        modules.setdefault(key, {"stored_tensors": {}})["stored_tensors"][name] = described
    for key in quant.keys:
        bits = quant.bits(key)
        modules[key] |= {"quant_format": "exl3", "bits_per_weight": int(bits) if bits.is_integer() else bits}
        codebook = quant.codebook(key)
        if codebook in _CODEBOOK_MARKERS:
            import torch

            multiplier = quant.files.get(f"{key}.{codebook}").view(torch.uint32).item()
            modules[key][f"{codebook}_multiplier"] = multiplier
    return modules


_TORCH_NAMES = {
    "F16": "torch.float16",
    "BF16": "torch.bfloat16",
    "F32": "torch.float32",
    "I16": "torch.int16",
    "I32": "torch.int32",
    "I64": "torch.int64",
    "U8": "torch.uint8",
}
