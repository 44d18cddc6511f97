"""The cost of every bit width of every group, from a measurement: as measured, and as a fitted law."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression

from exltune.exl3.distortion import nmse as nmse
from exltune.schema.measurement import MeasuredGroup, Measurement
from exltune.schema.mix import REFERENCE

Floats = npt.NDArray[np.float64]

#: Exponents tried, and their prior before any probe: 2 in theory, 1.3 to 1.7 seen on small MoE models.
_EXPONENTS = np.arange(1.0, 3.001, 0.05)
_EXPONENT_PRIOR = (1.75, 0.35)

#: A probe is trusted no further than this share of its cost: the law itself is not exact.
_MODEL_ERROR = 0.05


@dataclass(frozen=True)
class CostTable:
    """KL(reference‖mix) in nats/token that each unit adds to `base_kld` at each width, one unit swapped at a time."""

    base_kld: float
    units: tuple[MeasuredGroup, ...]
    costs: Mapping[str, Mapping[float, float]]

    def predict(self, bits: Mapping[str, float]) -> float | None:
        """Sum of the single costs of a mix; None where members of one unit differ. Not a measured value."""
        total = self.base_kld
        for unit in self.units:
            widths = {bits[member] for member in unit.members}
            if len(widths) > 1:
                return None
            total += self.costs[unit.id][widths.pop()]
        return max(total, 0.0)


@dataclass(frozen=True)
class UnitLaw:
    """S * rfn(K)^p of one unit: scale S in nats/token, exponent p, the same for all units of a role."""

    scale: float
    exponent: float


def measured_costs(measurement: Measurement, widths: Sequence[float]) -> CostTable:
    """Costs as probed, made non-increasing in bits (isotonic regression, weights 1/se²) and, over fp16, not negative.

    A width that was not probed takes the fitted law's cost with little weight.
    """
    fitted = fitted_costs(measurement, widths)
    floor = 0.0 if measurement.exltune.base == REFERENCE else -np.inf
    costs = {}
    for unit in fitted.units:
        probes = _Probes(unit, fitted.base_kld, widths)
        law = fitted.costs[unit.id]
        values = np.array([probes.cost.get(width, law[width]) for width in widths])
        errors = np.array([probes.se.get(width, abs(law[width])) for width in widths])
        weights = 1.0 / np.maximum(errors, max(1e-3 * float(np.max(np.abs(values))), 1e-12)) ** 2
        smooth = isotonic_regression(values, weights=weights / weights.max(), increasing=False).x
        costs[unit.id] = {width: float(cost) for width, cost in zip(widths, np.maximum(smooth, floor), strict=True)}
    return CostTable(fitted.base_kld, fitted.units, costs)


def fitted_costs(measurement: Measurement, widths: Sequence[float]) -> CostTable:
    """Costs by the law S * rfn(K)^p over the base, S fitted for every unit and p for every role.

    Source: DESIGN.md section 6, error law; least squares with the probes' standard errors.
    """
    base_kld, base_rfn = _base(measurement)
    laws = fitted_laws(measurement, widths)
    costs = {
        unit: {
            width: float(law.scale * share)
            for width, share in zip(widths, _law(widths, base_rfn, law.exponent), strict=True)
        }
        for unit, law in laws.items()
    }
    return CostTable(base_kld, measurement.exltune.groups, costs)


def fitted_laws(measurement: Measurement, widths: Sequence[float]) -> dict[str, UnitLaw]:
    """The law of every unit over the probes at some widths, as `fitted_costs` uses it."""
    base_kld, base_rfn = _base(measurement)
    laws = {}
    for role in dict.fromkeys(unit.role for unit in measurement.exltune.groups):
        units = [unit for unit in measurement.exltune.groups if unit.role == role]
        probes = [_Probes(unit, base_kld, widths) for unit in units]
        exponent = _fit_exponent(probes, base_rfn)
        for unit, probed in zip(units, probes, strict=True):
            laws[unit.id] = UnitLaw(probed.fit_scale(base_rfn, exponent)[0], exponent)
    return laws


def _base(measurement: Measurement) -> tuple[float, float]:
    """KL(reference‖mix) in nats/token and rfn of all unprobed groups."""
    if measurement.exltune.base == REFERENCE:
        return 0.0, 0.0
    return measurement.base_kld, float(np.sqrt(nmse(float(measurement.exltune.base))))


class _Probes:
    """Cost over the base and standard error of one unit, by width."""

    def __init__(self, unit: MeasuredGroup, base_kld: float, widths: Iterable[float]) -> None:
        wanted = set(widths)
        # Weights of the reference itself: a KL of 0 says nothing of how the others go with bits.
        probes = [probe for probe in unit.probes if probe.bits in wanted and not probe.of_reference]
        self.cost = {probe.bits: probe.kld_nats - base_kld for probe in probes}
        self.se = {probe.bits: probe.kld_se_nats for probe in probes}

    def fit_scale(self, base_rfn: float, exponent: float) -> tuple[float, float]:
        """S of the law at an exponent, not negative, and the weighted sum of squared residuals."""
        if not self.cost:
            return 0.0, 0.0
        costs, errors = np.array(list(self.cost.values())), np.array(list(self.se.values()))
        law = _law(list(self.cost), base_rfn, exponent)
        weights = 1.0 / np.maximum(errors**2 + (_MODEL_ERROR * costs) ** 2, 1e-24)
        curvature = float(np.sum(weights * law**2))
        scale = max(float(np.sum(weights * law * costs)) / curvature, 0.0) if curvature > 0 else 0.0
        return scale, float(np.sum(weights * (costs - scale * law) ** 2))


def _law(widths: Sequence[float], base_rfn: float, exponent: float) -> Floats:
    return np.asarray(np.sqrt(nmse(np.array(widths))) ** exponent - base_rfn**exponent)


def _fit_exponent(probes: Sequence[_Probes], base_rfn: float) -> float:
    """The exponent of one role under which all its units' probes fit best."""
    mean, spread = _EXPONENT_PRIOR
    misfit = [
        sum(probed.fit_scale(base_rfn, exponent)[1] for probed in probes) + ((exponent - mean) / spread) ** 2
        for exponent in _EXPONENTS
    ]
    return float(_EXPONENTS[int(np.argmin(misfit))])
