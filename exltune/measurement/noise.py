"""How far the means of swaps over few rows are off, and how much of that they share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

#: The variance of one swap's rows is believed as if the mean variance of all had been seen on so many rows more.
_BELIEF_ROWS = 16


def row_covariance(units: Sequence[int], rows: Sequence[Floats]) -> Floats:
    """Covariance (swaps, swaps) of the logs of the swaps' mean KL(reference‖mix), over the draw of the rows.

    units: which unit each swap is of. rows: the KL of each swap's rows; all begin at the same first row, so that a mean
    over n rows and one over N > n share the first n: their covariance is that of a row, over N. A hard row is hard
    for all swaps, and more alike for those of one unit.
    """
    relative = [values / max(float(values.mean()), 1e-12) - 1 for values in rows]
    common, of_unit = _shared_variances(units, relative)
    own = np.array([float(values @ values) / max(len(values) - 1, 1) for values in relative])
    counts = np.array([len(values) for values in rows])
    believed = (counts * own + _BELIEF_ROWS * _typical(own, counts)) / (counts + _BELIEF_ROWS)
    alike = np.equal.outer(np.asarray(units), np.asarray(units))
    shared = np.where(alike, common + of_unit, common)
    np.fill_diagonal(shared, np.maximum(believed, common + of_unit))
    return np.asarray(shared / np.maximum.outer(counts, counts))


def _shared_variances(units: Sequence[int], relative: Sequence[Floats]) -> tuple[float, float]:
    """Relative variance of a row that all swaps share, and that of one unit's swaps beyond it."""
    most = max(len(values) for values in relative)
    long = [place for place, values in enumerate(relative) if 2 * len(values) >= most]
    rows = min(len(relative[place]) for place in long)
    if rows < 2 or len(long) < 2:
        return 0.0, 0.0
    products = np.cov(np.array([relative[place][:rows] for place in long]))  # (long, long)
    alike = np.equal.outer(*[np.asarray(units)[long]] * 2)
    others, same = ~alike, alike & ~np.eye(len(long), dtype=bool)
    common = max(float(products[others].mean()), 0.0) if others.any() else 0.0
    beyond = max(float(products[same].mean()) - common, 0.0) if same.any() else 0.0
    return common, beyond


def _typical(own: Floats, counts: npt.NDArray[np.int_]) -> float:
    """Mean variance, rows weighted alike."""
    return float(own @ counts / counts.sum())
