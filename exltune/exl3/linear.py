"""A quantized linear as it is stored, and its weight in the original basis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from exltune.exl3.codebooks import Codebook, marker
from exltune.exl3.hadamard import rotate_columns, rotate_rows
from exltune.exl3.packing import TENSOR_CORE_PERM_INVERSE, TILE, unpack_states
from exltune.exl3.trellis import decode_states


@dataclass(frozen=True, eq=False)
class QuantizedLinear:
    """W[in, out] = diag(suh) · H · Ŵ · H · diag(svh), dims padded to 128.

    trellis: (in / 16, out / 16, 16 * bits) int16. suh: (in,) fp16. svh: (out,) fp16. bias: (out,) fp16 or None.
    """

    trellis: torch.Tensor
    suh: torch.Tensor
    svh: torch.Tensor
    codebook: Codebook
    bias: torch.Tensor | None = None

    @property
    def bits(self) -> float:
        """Bits per weight of the trellis."""
        return self.trellis.shape[-1] / 16

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors."""
        return sum(tensor.nbytes for tensor in self.tensors("").values())

    def tensors(self, key: str) -> dict[str, torch.Tensor]:
        """Stored tensors by name; the marker's value is never read upstream, its presence names the codebook."""
        named = {f"{key}.suh": self.suh, f"{key}.svh": self.svh, f"{key}.trellis": self.trellis}
        if self.bias is not None:
            named[f"{key}.bias"] = self.bias
        multiplier = marker(self.codebook)
        if multiplier is not None:
            named[f"{key}.{self.codebook}"] = torch.tensor(multiplier, dtype=torch.uint32).view(torch.int32)
        return named

    def dequantize(self) -> torch.Tensor:
        """The weight in the original basis, (in, out) float32."""
        rotated = rotate_rows(rotate_columns(self.dequantize_rotated()))
        return rotated * self.suh.float().unsqueeze(1) * self.svh.float()

    def dequantize_rotated(self) -> torch.Tensor:
        """Ŵ, the codebook values in place, (in, out) float32."""
        rows, columns, words = self.trellis.shape
        packed = self.trellis.numpy().reshape(rows * columns, words)
        tiles = decode_states(unpack_states(packed, self.bits), self.codebook)[:, TENSOR_CORE_PERM_INVERSE]
        grid = torch.from_numpy(np.ascontiguousarray(tiles)).view(rows, columns, 16, 16)
        return grid.permute(0, 2, 1, 3).reshape(rows * 16, columns * TILE // 16)
