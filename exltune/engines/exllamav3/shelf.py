"""Stored tensors of base quants, by group: read once for all devices and all mixes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from exltune.engines.streaming.weights import SIMULATED, finite, other_shape
from exltune.exl3.directory import QuantDir
from exltune.exl3.tensors import TensorFiles, read_json
from exltune.schema.inventory import Inventory, LinearSpec
from exltune.schema.mix import REFERENCE, Choice

GroupChoice = tuple[str, Choice]

#: Full name -> tensor, as exllamav3 reads them from a file.
Stored = Mapping[str, Tensor]


class Shelf:
    """Opens quant directories when they are first used; nothing of them is kept here."""

    def __init__(self, quants: Mapping[Choice, Path], inventory: Inventory) -> None:
        self.paths = {choice: Path(path) for choice, path in quants.items()}
        self.specs = {spec.key: spec for spec in inventory.linears}
        self.groups = {group.id: group for group in (*inventory.groups, inventory.head)}
        self._files: dict[Choice, TensorFiles] = {}

    def add(self, quants: Mapping[Choice, Path]) -> None:
        """Know further quants; a choice of another path than before is opened anew."""
        for choice, path in quants.items():
            if choice != REFERENCE and self.paths.get(choice) != Path(path):
                self.paths[choice] = Path(path)
                self._files.pop(choice, None)

    def files(self, choice: Choice) -> TensorFiles:
        """The tensors of a quant. Raises: QuantMismatchError for a directory that holds none."""
        if choice not in self._files:
            path = self.paths[choice]
            noted = read_json(path / "config.json").get("quantization_config") or {}
            simulated = noted.get("quant_method") == SIMULATED
            self._files[choice] = TensorFiles(path) if simulated else QuantDir(path).files
        return self._files[choice]

    def nbytes(self, pair: GroupChoice) -> int:
        """Bytes of a group at a choice, from headers alone."""
        files = self.files(pair[1])
        return sum(files.entry(name).nbytes for name in self._names(files, pair[0]))

    def read(self, pairs: Iterable[GroupChoice]) -> dict[GroupChoice, Stored]:
        """Tensors of groups at choices in main memory, each read once.

        Raises: MissingTensorError, NonFiniteError, QuantMismatchError for other shapes, CorruptFileError.
        """
        wanted = list(dict.fromkeys(pairs))
        return {pair: self._read(pair) for pair in wanted}

    def _names(self, files: TensorFiles, group: str) -> list[str]:
        return [name for key in self.groups[group].tensors for name in files.of_module(key)]

    def _read(self, pair: GroupChoice) -> Stored:
        group, choice = self.groups[pair[0]], pair[1]
        files = self.files(choice)
        tensors = _load(files, self._names(files, group.id))
        for key in group.tensors:
            tensors |= _checked(self.specs[key], tensors, files)
        return tensors


def _load(files: TensorFiles, names: Iterable[str]) -> dict[str, Tensor]:
    """Tensors by name; a shard is opened once for all of them, its header being long."""
    by_file: dict[Path, list[str]] = {}
    for name in names:
        by_file.setdefault(files.entry(name).file, []).append(name)
    tensors: dict[str, Tensor] = {}
    for file, wanted in by_file.items():
        with safe_open(file, framework="pt", device="cpu") as handle:
            tensors |= {name: handle.get_tensor(name) for name in wanted}
    return tensors


def _checked(spec: LinearSpec, tensors: Stored, files: TensorFiles) -> dict[str, Tensor]:
    """A linear's tensors that have to be changed for exllamav3; raises for those that it would run without a word."""
    bias = finite(_stored(files, tensors, f"{spec.key}.bias"), f"{spec.key}.bias", files.path) if spec.bias else None
    trellis = tensors.get(f"{spec.key}.trellis")
    if trellis is None:
        return _as_padded(spec, _stored(files, tensors, f"{spec.key}.weight"), bias, files.path)
    shape = (trellis.shape[0] * 16, trellis.shape[1] * 16)
    if shape != (spec.padded_in, spec.padded_out):
        raise other_shape(spec, shape, files.path)
    for name in (f"{spec.key}.suh", f"{spec.key}.svh"):
        if name in tensors:
            finite(tensors[name], name, files.path)
    return {}


def _as_padded(spec: LinearSpec, weight: Tensor, bias: Tensor | None, path: Path) -> dict[str, Tensor]:
    """A linear stored unquantized (out, in), as fp16 of the padded shape; the view spares exllamav3 a copy."""
    if tuple(weight.shape) != (spec.out_features, spec.in_features):
        raise other_shape(spec, tuple(weight.shape), path)
    padded = torch.zeros(spec.padded_in, spec.padded_out, dtype=torch.half)
    padded[: spec.in_features, : spec.out_features] = weight.T
    found = {f"{spec.key}.weight": finite(padded, f"{spec.key}.weight", path).T}
    if bias is not None:
        found[f"{spec.key}.bias"] = torch.zeros(spec.padded_out, dtype=torch.half)
        found[f"{spec.key}.bias"][: spec.out_features] = bias
    return found


def _stored(files: TensorFiles, tensors: Stored, name: str) -> Tensor:
    files.entry(name)
    return tensors[name]
