"""An EXL3 model directory, as exllamav3 loads it."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exltune.errors import MissingTensorError, QuantMismatchError
from exltune.exl3.codebooks import Codebook
from exltune.exl3.tensors import TensorFiles, read_json
from exltune.schema.mix import UNQUANTIZED_BITS

if TYPE_CHECKING:
    import torch

    from exltune.exl3.linear import QuantizedLinear

_TRELLIS = ".trellis"


class QuantDir:
    """Reads an EXL3 directory lazily.

    Raises: all that `TensorFiles` raises, and QuantMismatchError for a directory that is not EXL3.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.files = TensorFiles(self.path)
        self.keys = tuple(sorted(n.removesuffix(_TRELLIS) for n in self.files.entries if n.endswith(_TRELLIS)))
        if not self.keys:
            raise QuantMismatchError(
                "it holds no EXL3 tensors", where=str(self.path), fix="Give a directory that exltune or exllamav3 wrote"
            )

    def __contains__(self, key: str) -> bool:
        return f"{key}{_TRELLIS}" in self.files

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json. Raises: CorruptFileError."""
        return read_json(self.path / "config.json")

    def bits(self, key: str) -> float:
        """Bits per weight of a linear; 16 where it is stored unquantized. Raises: MissingTensorError."""
        if key not in self and f"{key}.weight" in self.files:
            return UNQUANTIZED_BITS
        return self.files.entry(f"{key}{_TRELLIS}").shape[-1] / 16

    def codebook(self, key: str) -> Codebook:
        """Codebook of a linear, named by the marker stored beside it."""
        if f"{key}.mul1" in self.files:
            return "mul1"
        return "mcg" if f"{key}.mcg" in self.files else "3inst"

    def shape(self, key: str) -> tuple[int, int]:
        """Padded (in, out) of a quantized linear."""
        rows, columns, _ = self.files.entry(f"{key}{_TRELLIS}").shape
        return rows * 16, columns * 16

    def nbytes(self, key: str) -> int:
        """Bytes of all tensors of a linear."""
        return sum(self.files.entry(name).nbytes for name in self.files.of_module(key))

    def load(self, key: str) -> QuantizedLinear:
        """A quantized linear. Raises: MissingTensorError, CorruptFileError."""
        from exltune.exl3.linear import QuantizedLinear

        if f"{key}.suh" not in self.files and f"{key}.su" in self.files:
            raise MissingTensorError(
                f"{key} has packed signs (su, sv), a form older than exllamav3 1.0",
                where=str(self.path),
                fix="Convert the model again with a current exllamav3",
            )
        name = f"{key}.bias"
        bias: torch.Tensor | None = self.files.get(name) if name in self.files else None
        trellis, suh, svh = (self.files.get(f"{key}.{part}") for part in ("trellis", "suh", "svh"))
        return QuantizedLinear(trellis, suh, svh, self.codebook(key), bias)
