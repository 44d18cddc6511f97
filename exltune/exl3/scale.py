"""The global scale: how large a weight should be for the codebook to hit it best."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from exltune.exl3.codebooks import Codebook
from exltune.exl3.ldlq import rows_to_tiles
from exltune.exl3.trellis import decode_states, encode_tiles

#: Best rms of Gaussian tiles, by codebook and bits (benchmarks/distortion.py prints it).
_BEST_RMS: dict[Codebook, dict[float, float]] = {
    "mul1": {1: 1.13, 1.5: 1.03, 2: 1.0, 2.5: 0.96, 3: 0.94, 3.5: 0.92, 4: 0.91, 5: 0.88, 6: 0.84, 7: 0.80, 8: 0.77},
    "mcg": {1: 1.28, 2: 1.19, 3: 1.16, 4: 1.12, 5: 1.07, 6: 1.01, 7: 0.97, 8: 0.92},
    "3inst": {1: 1.3, 2: 1.2, 3: 1.16, 4: 1.12, 5: 1.07, 6: 1.01, 7: 0.97, 8: 0.92},
}
#: Error feedback makes the tiles a little larger than the weight (exllamav3 1.6.5, LDLQ_DRIFT, from Qwen3-8B).
_DRIFT: dict[float, float] = {1: 1.08, 1.5: 1.035, 2: 1.018, 2.5: 1.009, 3: 1.004}
_STEPS = (0.86, 0.93, 1.0, 1.07, 1.14)
_MAX_TILES = 384


def search_scale(weight: torch.Tensor, bits: float, codebook: Codebook) -> float:
    """Factor for weight (k, n) that gives the least error on a sample of its tiles.

    Five trials around the Gaussian optimum on at most an eighth of the tiles cost less than the encode itself;
    a parabola through the best three places the minimum between them.
    """
    rms = weight.square().mean().sqrt().item()
    if rms == 0.0:
        return 1.0
    prior = _BEST_RMS[codebook][bits] / rms
    tiles = _sample(weight) * np.float32(_DRIFT.get(bits, 1.0))
    errors = [_mean_error(tiles, prior * step, bits, codebook) for step in _STEPS]
    return prior * _minimum(errors)


def _sample(weight: torch.Tensor) -> npt.NDArray[np.float32]:
    """Tiles along a wrapped diagonal, so that every part of either axis has its turn: (m, 256)."""
    rows, columns = weight.shape[0] // 16, weight.shape[1] // 16
    count = min(max(4, rows * columns // 8), _MAX_TILES)
    picks = np.linspace(0, max(rows, columns), count, endpoint=False).astype(int)
    shift = np.arange(count) // max(rows, columns)
    tiles = [
        rows_to_tiles(weight[r * 16 : r * 16 + 16, c * 16 : c * 16 + 16].contiguous())
        for r, c in zip(picks % rows, (picks * columns // max(rows, columns) + shift * 3) % columns, strict=True)
    ]
    return np.concatenate(tiles)


def _mean_error(tiles: npt.NDArray[np.float32], scale: float, bits: float, codebook: Codebook) -> float:
    scaled = tiles * np.float32(scale)
    return float(np.mean((decode_states(encode_tiles(scaled, bits, codebook), codebook) - scaled) ** 2)) / scale**2


def _minimum(errors: list[float]) -> float:
    best = int(np.argmin(errors))
    if best in (0, len(errors) - 1):
        return _STEPS[best]
    left, middle, right = errors[best - 1 : best + 2]
    curvature = left - 2 * middle + right
    offset = 0.5 * (left - right) / curvature if curvature > 0 else 0.0
    return _STEPS[best] + offset * (_STEPS[best + 1] - _STEPS[best])
