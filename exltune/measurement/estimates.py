"""From scores of swaps to the KL(reference‖mix) of every choice of every unit: as scored, or by the law of swaps."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from exltune.exl3.distortion import nmse
from exltune.measurement.law import Cell, Estimate, LawUnit, SwapLaw
from exltune.measurement.probes import SwapUnit, probe_name
from exltune.measurement.reference import QuantReference
from exltune.metrics import mean_and_se, row_means
from exltune.schema.mix import Choice
from exltune.schema.score import Score

_CONFIDENCE = 0.95
#: The codec's addition to log r beyond its law on Gaussian tiles, by bits: seen alike on three small models, where KL
#: at 2 bits is a tenth above the other widths' law.
_BEYOND_LAW = {2.0: 0.04, 2.5: 0.015}

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Kld:
    """KL(reference‖swap) in nats/token, its standard error, the rows' means; ci95: of an estimate only.

    same: the swap puts the reference's own weights in their place.
    """

    mean: float
    se: float
    rows: tuple[float, ...]
    ci95: Interval | None = None
    same: bool = False


_SAME = Kld(0.0, 0.0, (), same=True)


class ScoredSwaps:
    """Every swap was scored on all rows, but for those that are the reference itself."""

    def __init__(self, scores: Mapping[str, Score], same: Collection[str] = ()) -> None:
        self._scores, self._same = scores, same

    def kld(self, unit: SwapUnit, choice: Choice) -> Kld:
        """KL(reference‖mix) of a swap as it was scored."""
        if probe_name(unit.id, choice) in self._same:
            return _SAME
        score = self._scores[probe_name(unit.id, choice)]
        found = mean_and_se(score.kl_ref_mix, score.positions)
        return Kld(found.mean, found.se, _rows(score))

    def dkld_ci95(self, unit: SwapUnit, low: Choice, high: Choice) -> Interval | None:
        """Nothing: no error but the rows'."""
        return None


class EstimatedSwaps:
    """Some swaps were scored, some on few rows: all follow from the law that is fitted to them.

    reference: as a quant, if it is one; its own error is then in every swap.
    """

    def __init__(
        self, units: Sequence[SwapUnit], scores: Mapping[str, Score], reference: QuantReference | None = None
    ) -> None:
        self._scores, self._same = scores, reference.same if reference is not None else frozenset[str]()
        self._place = {unit.id: number for number, unit in enumerate(units)}
        cells = self._cells(units)
        self.law, self.scored = SwapLaw(_law_units(units, reference), cells), len(cells)
        #: Standard errors in a 95 % interval; the rows' variance is known from no more than these rows.
        self._wide = float(stdtrit(max(len(rows) for rows in cells.values()) - 1, 0.5 + _CONFIDENCE / 2))
        self._estimates: dict[str, Estimate] = {unit.id: self.law.estimate(self._place[unit.id]) for unit in units}

    def kld(self, unit: SwapUnit, choice: Choice) -> Kld:
        """KL(reference‖mix) of a swap by the law, with the rows that were scored."""
        if probe_name(unit.id, choice) in self._same:
            return _SAME
        estimate, place = self._estimates[unit.id], unit.choices.index(choice)
        log_kld, spread = float(estimate.log_kld[place]), float(estimate.spread[place])
        score = self._scores.get(probe_name(unit.id, choice))
        mean = float(np.exp(log_kld))
        interval = (float(np.exp(log_kld - self._wide * spread)), float(np.exp(log_kld + self._wide * spread)))
        return Kld(mean, mean * spread, () if score is None else _rows(score), interval)

    def dkld_ci95(self, unit: SwapUnit, low: Choice, high: Choice) -> Interval | None:
        """95 % interval of KL(reference‖mix) at one choice less that at another, to first order in log errors."""
        estimate, places = self._estimates[unit.id], [unit.choices.index(choice) for choice in (low, high)]
        known = [probe_name(unit.id, choice) in self._same for choice in (low, high)]
        klds = np.where(known, 0.0, np.exp(estimate.log_kld[places]))
        slopes = klds * (-1, 1)
        half = self._wide * float(np.sqrt(slopes @ estimate.covariance[np.ix_(places, places)] @ slopes))
        difference = float(klds[1] - klds[0])
        return difference - half, difference + half

    def _cells(self, units: Sequence[SwapUnit]) -> dict[Cell, Floats]:
        found = {}
        for unit in units:
            for option, choice in enumerate(unit.choices):
                score = self._scores.get(probe_name(unit.id, choice))
                if score is not None:
                    found[self._place[unit.id], option] = row_means(score.kl_ref_mix, score.positions)
        return found


def known_swaps(
    units: Sequence[SwapUnit], scores: Mapping[str, Score], reference: QuantReference | None = None
) -> ScoredSwaps | EstimatedSwaps:
    """As scored where every swap was scored on all rows that any was, else by the law."""
    same = reference.same if reference is not None else frozenset[str]()
    names = [mix.name for unit in units for mix in unit.mixes if mix.name not in same]
    rows = max(len(score.kl_ref_mix) for score in scores.values())
    if all(name in scores and len(scores[name].kl_ref_mix) == rows for name in names):
        return ScoredSwaps(scores, same)
    return EstimatedSwaps(units, scores, reference)


def _law_units(units: Sequence[SwapUnit], reference: QuantReference | None) -> list[LawUnit]:
    widths = sorted({bits for unit in units for bits in unit.bits})
    return [
        LawUnit(
            tuple(log_error(unit, reference).tolist()),
            tuple(-1 if unit.of_cache else widths.index(bits) for bits in unit.bits),
            unit.routers,
        )
        for unit in units
    ]


def log_error(unit: SwapUnit, reference: QuantReference | None = None) -> Floats:
    """(choices,) log of the error over that at 2 bits: the codec's, or the cache's that halves with each bit.

    Two quants of one weight err independently: against a reference that is one, both errors count.
    """
    bits = np.array(unit.bits)
    if unit.of_cache:
        return np.asarray(-np.log(2.0) * (bits - 2))
    beyond = np.array([_BEYOND_LAW.get(one, 0.0) for one in unit.bits])
    own = 0.0
    if reference is not None:
        own = float(nmse(reference.head_bits if unit.of_head else reference.bits))
    return np.asarray(0.5 * np.log((nmse(bits) + own) / (nmse(2.0) + own)) + beyond)


def _rows(score: Score) -> tuple[float, ...]:
    return tuple(row_means(score.kl_ref_mix, score.positions).tolist())
