"""The law of swaps, on swaps whose law is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import spearmanr

from exltune.exl3.distortion import nmse
from exltune.measurement.law import Cell, LawUnit, SwapLaw
from exltune.measurement.noise import row_covariance

Floats = npt.NDArray[np.float64]

BITS = np.array([2.0, 3.0, 4.0, 6.0, 8.0])
LOG_ERROR = 0.5 * np.log(nmse(BITS) / nmse(2.0))
B, KAPPA = 0.05, 0.9


@dataclass(frozen=True)
class Truth:
    """KL of every swap (units, options), and the law's units."""

    kld: Floats
    units: tuple[LawUnit, ...]

    def rows(self, cells: Mapping[Cell, int], rng: np.random.Generator) -> dict[Cell, Floats]:
        """KL of the first rows of some swaps: hard rows are hard for all, the rest is each swap's own."""
        most = max(cells.values())
        hard = rng.gamma(6.0, 1 / 6.0, most)
        return {cell: self.kld[cell] * hard[:n] * rng.gamma(12.0, 1 / 12.0, n) for cell, n in cells.items()}


def truth(rng: np.random.Generator, count: int = 40) -> Truth:
    """Units with 0 to 4 routers behind them, none like the other."""
    routers = np.arange(count) % 5
    scale = np.exp(rng.normal(-2.0, 0.5, count))
    s = scale[:, None] * np.exp(LOG_ERROR + rng.normal(0.0, 0.03, len(BITS)))[None, :]
    own = np.exp(rng.normal(0.0, 0.25, count))
    b = np.where(routers > 0, B * np.maximum(routers, 1) ** KAPPA * own, 0.0)
    kld = (s**2 + b[:, None] * s) * np.exp(rng.normal(0.0, 0.04, s.shape))
    widths = tuple(range(len(BITS)))
    return Truth(kld, tuple(LawUnit(tuple(LOG_ERROR), widths, int(n)) for n in routers))


def few_swaps(count: int, rows: int) -> dict[Cell, int]:
    """Every unit at 2 bits, every second at 4."""
    return {(unit, 0): rows for unit in range(count)} | {(unit, 2): rows for unit in range(0, count, 2)}


def test_few_swaps_tell_all_widths_and_their_errors() -> None:
    covered, correlations, errors = [], [], []
    for seed in range(24):
        rng = np.random.default_rng(seed)
        known = truth(rng)
        law = SwapLaw(known.units, known.rows(few_swaps(len(known.units), 48), rng))
        estimates = [law.estimate(unit) for unit in range(len(known.units))]
        off = np.array([one.log_kld for one in estimates]) - np.log(known.kld)
        covered.append(np.abs(off) < 1.96 * np.array([one.spread for one in estimates]))
        errors.append(off)
        correlations.append(min(spearmanr(off[:, k] + np.log(known.kld[:, k]), known.kld[:, k])[0] for k in (0, 1)))
    assert np.mean(correlations) > 0.97
    assert 0.92 < np.mean(covered) < 0.98
    # Half of the units were never swapped at 4 bits, and none at 3, 6 and 8.
    assert np.all(np.sqrt(np.mean(np.square(errors), axis=(0, 1))) < [0.09, 0.12, 0.12, 0.16, 0.2])


def test_the_routers_law_is_found() -> None:
    rng = np.random.default_rng(3)
    known = truth(rng, 100)
    law = SwapLaw(known.units, known.rows(few_swaps(100, 400), rng))
    found, kappa = law.router_law
    assert found == pytest.approx(B, rel=0.35)
    assert kappa == pytest.approx(KAPPA, abs=0.25)


def test_without_routers_kl_falls_with_the_square_of_the_error() -> None:
    units = (LawUnit(tuple(LOG_ERROR), tuple(range(len(BITS))), 0),)
    rows = 0.02 * np.random.default_rng(0).gamma(50.0, 1 / 50.0, 4000)
    estimate = SwapLaw(units, {(0, 0): rows}).estimate(0)
    assert estimate.log_kld - estimate.log_kld[0] == pytest.approx(2 * LOG_ERROR, abs=1e-3)
    assert np.exp(estimate.log_kld[0]) == pytest.approx(0.02, rel=0.02)
    assert estimate.spread[0] < estimate.spread[1]


def test_more_rows_and_a_swap_of_its_own_make_an_estimate_surer() -> None:
    rng = np.random.default_rng(1)
    known = truth(rng)
    few, many = (SwapLaw(known.units, known.rows(few_swaps(40, n), np.random.default_rng(2))) for n in (20, 200))
    assert all(many.estimate(unit).spread[0] < few.estimate(unit).spread[0] for unit in range(40))
    swapped, not_swapped = ([many.estimate(unit).spread[2] for unit in range(first, 40, 2)] for first in (0, 1))
    assert np.mean(swapped) < np.mean(not_swapped)


def test_row_covariance_is_that_of_means_over_shared_rows() -> None:
    """Against the covariance over many draws of the rows."""
    counts, units = (20, 40, 40, 30), (0, 0, 1, 2)
    means, believed = [], []
    for seed in range(600):
        rng = np.random.default_rng(seed)
        hard, of_unit = rng.gamma(8.0, 1 / 8.0, 40), rng.gamma(20.0, 1 / 20.0, (3, 40))
        rows = [
            0.01 * hard[:n] * of_unit[unit, :n] * rng.gamma(15.0, 1 / 15.0, n)
            for unit, n in zip(units, counts, strict=True)
        ]
        means.append([np.log(values.mean()) for values in rows])
        believed.append(row_covariance(units, rows))
    assert np.mean(believed, axis=0) == pytest.approx(np.cov(np.array(means).T), rel=0.35)


def test_one_swap_alone_has_a_covariance() -> None:
    assert row_covariance([0], [np.array([1.0, 3.0])]) == pytest.approx(np.array([[0.25]]))
