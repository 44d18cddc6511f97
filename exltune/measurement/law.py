"""The law of single swaps, fitted to few of them: the effect of every width of a group on the output, with its error.

    KL(reference‖swap) = s² + b(n) * s,   s = s_u * r(K) / r(2),   b(n) = b_1 * n^kappa

s is the size of the swap's error at the output. The smooth part of KL(reference‖mix) grows with its square. Each of the
n routers that see the error sends some tokens to other experts, and their number grows with s itself: that part is
linear. So a swap that no router sees, in a dense model or behind the last router, has KL ~ r², others look like r^1.2
to r^1.6. Everything is fitted in logs, as a Gaussian around the most probable parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve, cholesky, solve_triangular

from exltune.measurement.noise import row_covariance

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: Option of a unit, by their indices.
Cell = tuple[int, int]

#: Spread of log s_u; of log b around b(n), unit by unit; of the log of the codec's error around its law, width by
#: width; of the log KL of a single swap around all of this.
_SCALE_SPREAD, _ROUTER_SPREAD, _WIDTH_SPREAD, _CELL_SPREAD = 5.0, 0.25, 0.02, 0.04
#: log b_1 and kappa with their spreads.
_LOG_B, _LOG_B_SPREAD, _KAPPA, _KAPPA_SPREAD = -3.0, 1.0, 0.8, 0.3

_STEPS, _SMALL_STEP = 60, 1e-7


@dataclass(frozen=True)
class LawUnit:
    """A unit and its options: log_error (options,) log r over r at 2 bits; width (options,) which widths share what the
    codec's error law misses, -1 for none; routers: how many see its error.
    """

    log_error: tuple[float, ...]
    width: tuple[int, ...]
    routers: int


@dataclass(frozen=True)
class Estimate:
    """log KL(reference‖swap) of all options of a unit: mean (options,) and covariance (options, options)."""

    log_kld: Floats
    covariance: Floats

    @property
    def spread(self) -> Floats:
        """(options,) standard deviation of log KL(reference‖mix)."""
        return np.asarray(np.sqrt(np.diag(self.covariance)))


class SwapLaw:
    """The law fitted to the rows of some swaps.

    rows[unit, option]: KL(reference‖mix) of its rows, nats/token, from the first row of the search set on.
    """

    def __init__(self, units: Sequence[LawUnit], rows: Mapping[Cell, Floats]) -> None:
        self.units = tuple(units)
        self._cells = list(rows)
        self._widths = 1 + max((width for unit in units for width in unit.width), default=-1)
        self._log_kld = np.log(np.array([max(float(values.mean()), 1e-12) for values in rows.values()]))
        noise = row_covariance([unit for unit, _ in self._cells], list(rows.values()))
        # The log of a mean over few rows is low on average, by half its variance.
        self._log_kld += np.diag(noise) / 2
        self._noise = cho_factor(noise + 1e-10 * np.eye(len(noise)))
        self._prior, self._spread = self._beliefs()
        self._parameters = self._fit()
        self._root = self._posterior_root()

    @property
    def router_law(self) -> tuple[float, float]:
        """b_1 in nats^0.5, and kappa."""
        start = 2 * len(self.units)
        return float(np.exp(self._parameters[start])), float(self._parameters[start + 1])

    def estimate(self, unit: int) -> Estimate:
        """log KL(reference‖mix) of all options of a unit, probed or not."""
        cells = [(unit, option) for option in range(len(self.units[unit].log_error))]
        log_kld, slopes = self._model(self._parameters, cells)
        half = solve_triangular(self._root, slopes.T, lower=True)  # (parameters, options)
        probed = set(self._cells)
        beyond = [0.0 if cell in probed else _CELL_SPREAD**2 for cell in cells]
        return Estimate(log_kld, half.T @ half + np.diag(beyond))

    def _beliefs(self) -> tuple[Floats, Floats]:
        """Prior mean and spread of every parameter: log s_u, log b_u over b(n), log b_1 and kappa, widths, cells."""
        units = len(self.units)
        level = float(self._log_kld.mean()) / 2
        first = {unit: place for place, (unit, _) in reversed(list(enumerate(self._cells)))}
        scales = [
            level if unit not in first else self._log_kld[first[unit]] / 2 - one.log_error[self._cells[first[unit]][1]]
            for unit, one in enumerate(self.units)
        ]
        rest = self._widths + len(self._cells)
        mean = np.array([*scales, *[0.0] * units, _LOG_B, _KAPPA, *[0.0] * rest])
        counts = (units, units, 1, 1, self._widths, len(self._cells))
        spreads = (_SCALE_SPREAD, _ROUTER_SPREAD, _LOG_B_SPREAD, _KAPPA_SPREAD, _WIDTH_SPREAD, _CELL_SPREAD)
        return mean, np.repeat(spreads, counts)

    def _model(self, parameters: Floats, cells: Sequence[Cell]) -> tuple[Floats, Floats]:
        """(cells,) log KL(reference‖mix) and (cells, parameters) its derivatives."""
        count = len(self.units)
        scales, own = parameters[:count], parameters[count : 2 * count]
        log_b, kappa = parameters[2 * count : 2 * count + 2]
        widths = parameters[2 * count + 2 : 2 * count + 2 + self._widths]
        free = parameters[2 * count + 2 + self._widths :]
        place = {cell: number for number, cell in enumerate(self._cells)}
        log_kld, slopes = np.zeros(len(cells)), np.zeros((len(cells), len(parameters)))
        for row, (number, option) in enumerate(cells):
            unit = self.units[number]
            width = unit.width[option]
            log_s = scales[number] + unit.log_error[option] + (widths[width] if width >= 0 else 0.0)
            log_n = np.log(unit.routers) if unit.routers else -np.inf
            linear = log_b + (kappa * log_n if unit.routers else -np.inf) + own[number] + log_s
            log_kld[row] = np.logaddexp(2 * log_s, linear)
            share = float(np.exp(linear - log_kld[row]))
            slopes[row, number] = 2 - share
            slopes[row, [count + number, 2 * count]] = share
            slopes[row, 2 * count + 1] = share * log_n if unit.routers else 0.0
            if width >= 0:
                slopes[row, 2 * count + 2 + width] = 2 - share
            if (number, option) in place:
                cell = place[number, option]
                log_kld[row] += free[cell]
                slopes[row, 2 * count + 2 + self._widths + cell] = 1.0
        return log_kld, slopes

    def _fit(self) -> Floats:
        """The most probable parameters, by damped Gauss-Newton steps."""
        parameters = self._prior.copy()
        for _ in range(_STEPS):
            log_kld, slopes = self._model(parameters, self._cells)
            downhill = slopes.T @ cho_solve(self._noise, self._log_kld - log_kld)
            downhill += (self._prior - parameters) / self._spread**2
            step = np.linalg.solve(self._information(slopes), downhill)
            parameters = parameters + step * min(1.0, 1.0 / max(float(np.abs(step).max()), 1e-12))
            if float(np.abs(step).max()) < _SMALL_STEP:
                break
        return parameters

    def _information(self, slopes: Floats) -> Floats:
        return np.asarray(slopes.T @ cho_solve(self._noise, slopes) + np.diag(1 / self._spread**2))

    def _posterior_root(self) -> Floats:
        _, slopes = self._model(self._parameters, self._cells)
        return np.asarray(cholesky(self._information(slopes), lower=True))
