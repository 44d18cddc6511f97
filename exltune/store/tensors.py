"""Finished tensors of a quantization under way, one small file each: a kill loses at most the tensor in work."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open

from exltune.exl3.tensors import read_header, save_tensors
from exltune.exl3.writer import PendingTensor
from exltune.store.files import made

if TYPE_CHECKING:
    import torch

    from exltune.exl3.linear import QuantizedLinear
    from exltune.exl3.quantizer import QuantStats


@dataclass(frozen=True)
class TensorNote:
    """The facts of a finished tensor beside its weights."""

    stats: QuantStats
    rare: bool


class TensorStore:
    """Quantized linears by key and bits in a directory of their own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __contains__(self, item: tuple[str, float]) -> bool:
        return self._path(*item).is_file()

    def put(self, key: str, bits: float, linear: QuantizedLinear, stats: QuantStats, *, rare: bool = False) -> None:
        """Store a linear; it is there whole or not at all. rare: an expert that few tokens reach by itself."""
        path = self._path(key, bits)
        temporary = path.with_suffix(".partial")
        note = {"proxy_err": stats.proxy_err, "rfn": stats.rfn, "feedback": stats.feedback, "rare": rare}
        with made(self.directory):
            save_tensors(temporary, linear.tensors(key), {"note": json.dumps(note)})
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)

    def pending(self, key: str, bits: float) -> list[PendingTensor]:
        """The tensors of a stored linear, to be loaded when they are written. Raises: CorruptFileError."""
        path = self._path(key, bits)
        entries = read_header(path)
        return [PendingTensor(name, entries[name].nbytes, _loader(path, name)) for name in sorted(entries)]

    def note(self, key: str, bits: float) -> TensorNote:
        """The notes of a stored linear."""
        from exltune.exl3.quantizer import QuantStats

        with safe_open(self._path(key, bits), framework="pt") as handle:
            note = json.loads(handle.metadata()["note"])
        return TensorNote(QuantStats(note["proxy_err"], note["rfn"], note["feedback"]), note["rare"])

    def remove(self) -> None:
        """Remove the store and all that is in it."""
        shutil.rmtree(self.directory, ignore_errors=True)
        with suppress(OSError):
            self.directory.parent.rmdir()

    def _path(self, key: str, bits: float) -> Path:
        return self.directory / f"{key}@{bits:g}.safetensors"


def _loader(path: Path, name: str) -> Callable[[], torch.Tensor]:
    def load() -> torch.Tensor:
        with safe_open(path, framework="pt") as handle:
            tensor: torch.Tensor = handle.get_tensor(name)
            return tensor

    return load
