"""A base quant directory from the model's unquantized tensors and finished linears."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exltune.engines.base import Progress
from exltune.errors import NonFiniteError
from exltune.exl3.tensors import TensorFiles
from exltune.exl3.writer import KEPT_IN_FP32, PendingTensor, copy_side_files, write_configs, write_tensors
from exltune.inventory import read_config, unquantized_tensor_names
from exltune.schema.inventory import Inventory, LinearSpec, Role

if TYPE_CHECKING:
    import torch

LinearTensors = Callable[[str], list[PendingTensor]]

_LAYER = re.compile(r"\.layers\.(\d+)\.")


def assemble_quant(
    model_dir: Path,
    out: Path,
    inventory: Inventory,
    linears: LinearTensors,
    quantization: Mapping[str, Any],
    progress: Progress | None = None,
) -> None:
    """Write an EXL3 directory into the existing empty directory `out`.

    linears: module key -> its stored tensors. quantization: config.json's entry of the quant. progress counts bytes.
    Raises: NonFiniteError for a tensor that fp16 cannot hold, CorruptFileError.
    """
    files = TensorFiles(model_dir)
    plain = [plain_tensor(files, name) for name in unquantized_tensor_names(read_config(model_dir))]
    write_model(model_dir, out, inventory, linears, plain, quantization, progress)


def write_model(
    source: Path,
    out: Path,
    inventory: Inventory,
    linears: LinearTensors,
    plain: Iterable[PendingTensor],
    quantization: Mapping[str, Any],
    progress: Progress | None = None,
) -> None:
    """Write linears and plain tensors in forward order, the source's tokenizer files, and the configs."""
    keys = [spec.key for spec in inventory.linears if spec.role is not Role.ROUTER]
    tensors = list(forward_order(plain, {key: linears(key) for key in keys}, inventory.linears))
    write_tensors(out, tensors if progress is None else _reporting(tensors, progress))
    copy_side_files(source, out)
    write_configs(source, out, quantization)


def _reporting(tensors: Sequence[PendingTensor], progress: Progress) -> Iterator[PendingTensor]:
    """The same tensors; as each is loaded, the bytes up to it are reported."""
    total, done = sum(tensor.nbytes for tensor in tensors), 0

    def load(tensor: PendingTensor, done: int) -> torch.Tensor:
        progress(done, total, tensor.name)
        return tensor.load()

    for tensor in tensors:
        done += tensor.nbytes
        yield replace(tensor, load=partial(load, tensor, done))


def forward_order(
    plain: Iterable[PendingTensor], linears: Mapping[str, list[PendingTensor]], specs: Iterable[LinearSpec]
) -> Iterator[PendingTensor]:
    """Embedding, then layer by layer its plain tensors and linears, then final norm and head."""
    by_layer: dict[int, list[PendingTensor]] = {}
    last = 1 + max((spec.layer for spec in specs if spec.layer is not None), default=0)
    for tensor in plain:
        found = _LAYER.search(tensor.name)
        place = int(found[1]) if found else (-1 if "embed" in tensor.name else last)
        by_layer.setdefault(place, []).append(tensor)
    for key, tensors in linears.items():
        found = _LAYER.search(key)
        by_layer.setdefault(int(found[1]) if found else last, []).extend(tensors)
    for place in sorted(by_layer):
        yield from by_layer[place]


def plain_tensor(files: TensorFiles, name: str) -> PendingTensor:
    """An unquantized tensor in the dtype that exllamav3 would store: fp16, or fp32 for tensors that it keeps so."""
    entry = files.entry(name)
    width = 4 if name.endswith(KEPT_IN_FP32) else 2
    return PendingTensor(name, entry.numel * width, partial(_load_plain, files, name, width))


def half_weight(files: TensorFiles, key: str, weight_name: str, bias: bool) -> list[PendingTensor]:
    """A linear stored unquantized (16 bits): its weight, from `weight_name`, and bias in fp16."""
    names = {f"{key}.weight": weight_name} | ({f"{key}.bias": f"{key}.bias"} if bias else {})
    return [
        PendingTensor(out, files.entry(name).numel * 2, partial(_load_plain, files, name, 2))
        for out, name in names.items()
    ]


def _load_plain(files: TensorFiles, name: str, width: int) -> torch.Tensor:
    import torch

    tensor = files.get(name)
    stored = tensor.to(torch.float32 if width == 4 else torch.float16)
    if not torch.isfinite(stored).all():
        raise NonFiniteError(f"{name} holds NaN, inf or values beyond fp16", where=str(files.path))
    return stored
