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
    """Factor for weight (k, n) that gives the least error over all tiles, estimated on two strata of them.

    Outliers that clip decide the scale at high widths, so the tiles with the largest values are always looked at and
    count for themselves alone. Five trials around the Gaussian optimum on about an eighth of the tiles cost less than
    the encode itself; a parabola through the best three places the minimum between them.
    """
    rms = weight.square().mean().sqrt().item()
    if rms == 0.0:
        return 1.0
    prior = _BEST_RMS[codebook][bits] / rms
    tiles = _all_tiles(weight)
    picked, shares = _strata(np.abs(tiles).max(axis=1))
    sample = tiles[picked] * np.float32(_DRIFT.get(bits, 1.0))
    errors = [float(shares @ _tile_errors(sample, prior * step, bits, codebook)) for step in _STEPS]
    return prior * _minimum(errors)


def _all_tiles(weight: torch.Tensor) -> npt.NDArray[np.float32]:
    """Every tile of weight (k, n): (k n / 256, 256)."""
    return np.concatenate([rows_to_tiles(rows.contiguous()) for rows in weight.split(16)])


def _strata(peaks: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Indices of the tiles to try and each one's share of all tiles, from the tiles' largest magnitudes."""
    count = min(max(4, len(peaks) // 8), _MAX_TILES)
    extremes = max(1, count // 4)
    order = np.argsort(-peaks, kind="stable")
    # Tiles in order of their peaks, at even distances: every size has its turn.
    rest = order[extremes:][np.linspace(0, len(peaks) - extremes, count - extremes, endpoint=False).astype(int)]
    picked = np.concatenate([order[:extremes], rest])
    weights = np.full(len(picked), (len(peaks) - extremes) / len(rest))
    weights[:extremes] = 1.0
    return picked, weights / len(peaks)


def _tile_errors(
    tiles: npt.NDArray[np.float32], scale: float, bits: float, codebook: Codebook
) -> npt.NDArray[np.float64]:
    """Mean squared error of each tile (m,), in the tiles' own units."""
    scaled = tiles * np.float32(scale)
    error = decode_states(encode_tiles(scaled, bits, codebook), codebook) - scaled
    return np.asarray(np.mean(error**2, axis=1, dtype=np.float64) / scale**2)


def _minimum(errors: list[float]) -> float:
    best = int(np.argmin(errors))
    if best in (0, len(errors) - 1):
        return _STEPS[best]
    left, middle, right = errors[best - 1 : best + 2]
    curvature = left - 2 * middle + right
    offset = 0.5 * (left - right) / curvature if curvature > 0 else 0.0
    return _STEPS[best] + offset * (_STEPS[best + 1] - _STEPS[best])
