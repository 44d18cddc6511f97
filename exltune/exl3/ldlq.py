"""LDLQ: quantize 16 rows at a time from the last to the first, feeding each block the errors below it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from exltune.exl3.codebooks import Codebook
from exltune.exl3.hessian import BLOCK
from exltune.exl3.packing import TENSOR_CORE_PERM, TENSOR_CORE_PERM_INVERSE, TILE
from exltune.exl3.trellis import decode_states, encode_tiles


def rows_to_tiles(rows: torch.Tensor) -> npt.NDArray[np.float32]:
    """16 rows (16, n) as tiles (n / 16, 256) in tensor-core order."""
    n = rows.shape[1]
    tiles = rows.view(16, n // 16, 16).permute(1, 0, 2).reshape(n // 16, TILE)  # row-major tiles
    return tiles.numpy()[:, TENSOR_CORE_PERM]


def tiles_to_rows(tiles: npt.NDArray[np.float32]) -> torch.Tensor:
    """Inverse of `rows_to_tiles`: (n / 16, 256) -> (16, n)."""
    count = len(tiles)
    row_major = torch.from_numpy(tiles[:, TENSOR_CORE_PERM_INVERSE])
    return row_major.view(count, 16, 16).permute(1, 0, 2).reshape(16, count * 16)


def ldlq(
    weight: torch.Tensor, feedback: torch.Tensor | None, bits: float, codebook: Codebook
) -> tuple[torch.Tensor, npt.NDArray[np.uint16]]:
    """Quantized weight (k, n) and its states (k / 16, n / 16, 256).

    weight: (k, n) float32 in the rotated basis. feedback: (k, k), `RotatedHessian.feedback`, or None for plain
    rounding. Source: QuIP# (Tseng et al. 2024), algorithm 3; exllamav3 1.6.5, ldlq().
    """
    k, n = weight.shape
    quantized = torch.empty_like(weight)
    error = torch.zeros_like(weight)
    states = np.empty((k // BLOCK, n // 16, TILE), dtype=np.uint16)
    for block in range(k // BLOCK - 1, -1, -1):
        low, high = block * BLOCK, (block + 1) * BLOCK
        rows = weight[low:high]  # (16, n)
        if feedback is not None and high < k:
            rows = rows + feedback[high:, low:high].T @ error[high:]
        states[block] = encode_tiles(rows_to_tiles(rows.contiguous()), bits, codebook)
        quantized[low:high] = tiles_to_rows(decode_states(states[block], codebook))
        error[low:high] = weight[low:high] - quantized[low:high]
    return quantized, states


def proxy_error(weight: torch.Tensor, quantized: torch.Tensor, matrix: torch.Tensor | None) -> float:
    """tr(Eᵀ H E) / tr(Wᵀ H W) with E = W - quantized; plain relative squared error where H is None."""
    error = weight - quantized
    if matrix is None:
        return float(error.square().sum() / weight.square().sum().clamp_min(1e-30))
    top = torch.einsum("kn,kj,jn->", error, matrix, error)
    return float(top / torch.einsum("kn,kj,jn->", weight, matrix, weight).clamp_min(1e-30))
