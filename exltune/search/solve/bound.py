"""A lower bound of the energy that any mix of so many bytes has."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from exltune.search.problem.problem import SearchUnit

Floats = npt.NDArray[np.float64]

#: Prices on bytes that are tried; the bound errs by the square of the distance to the best one.
_PRICES = 400


class EnergyBound:
    """With a price on bytes every unit takes its cheapest option, and no mix within a budget is cheaper than all.

    Made once for units, options ascending in bytes, and their energies; then asked for any budget.
    """

    def __init__(self, units: Sequence[SearchUnit], energies: Sequence[Floats]) -> None:
        sizes = [np.array([option.size_bytes for option in unit.options], dtype=np.float64) for unit in units]
        slopes = np.concatenate([-np.diff(z) / np.diff(size) for z, size in zip(energies, sizes, strict=True)])
        falling = slopes[slopes > 0]
        grid = np.geomspace(falling.min(), falling.max(), _PRICES) if falling.size else ()
        self._prices = np.array([0.0, *grid])
        pairs = list(zip(energies, sizes, strict=True))
        self._least = np.array([sum(float((z + price * size).min()) for z, size in pairs) for price in self._prices])

    def at(self, size_bytes: int) -> float:
        """The bound for mixes of at most so many bytes."""
        return float(np.max(self._least - self._prices * size_bytes))
