"""The effect of every unit's bits on a whole mix: a power law that learns from single swaps and from every scored mix.

    KL(reference‖mix) = (sum over units of z_u(K))^gamma,   z_u(K) = exp(a_u) * (r(K) / r(K_lowest))^q_role

z is an error energy: it adds up over units and falls with the codec's error r, theory says q = 2. KL(reference‖mix)
grows slower than energy (gamma < 1), which is why single swaps look flatter in bits than they are within a mix and why
their sum is larger than the whole. The prior on a_u is the unit's own swaps; gamma and q are fitted with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import minimize
from scipy.sparse import csr_array

from exltune.errors import UsageError
from exltune.schema.inventory import Role
from exltune.schema.measurement import MeasuredGroup, Measurement, Probe
from exltune.schema.mix import CACHE_K, CACHE_V, Choice
from exltune.search.law.costs import nmse
from exltune.search.problem.problem import SearchUnit

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: Index of an option that stands for the reference's own weights: no error.
EXACT = -1

#: Prior of q and its spread, of logit(gamma) and its spread.
_Q, _Q_SPREAD = 2.0, 0.3
_LOGIT_GAMMA, _LOGIT_GAMMA_SPREAD = 1.0, 1.0

#: A single swap tells the effect within a mix to this factor (in log KL), beside its own standard error. 0.3 was tried:
#: it holds the law to the swaps where whole mixes know better, and ends up to 5 % worse below 3 bpw.
SWAP_SPREAD = 1.0
#: A whole mix is trusted to this (in log KL), and less by this share of its distance to the mixes that matter; to
#: the last where it is not known yet which ones do.
_MIX_SPREAD, _MIX_SPREAD_BY_DISTANCE, _FAR_MIX_SPREAD = 0.015, 0.1, 0.1

_LEAST_KLD = 1e-9

#: The fit ends where the slope of half its sum of squares is below this.
_LEAST_SLOPE = 1e-5


class Units(Protocol):
    """The units of the law: those of a search problem, or a measurement alone.

    extras: default choice of the cache's keys, where they are units. assignment_of: a mix as indices of
    options, or None.
    """

    @property
    def units(self) -> tuple[SearchUnit, ...]: ...
    @property
    def group_ids(self) -> tuple[str, ...]: ...
    @property
    def measurement(self) -> Measurement | None: ...
    @property
    def extras(self) -> Mapping[str, Choice]: ...
    def assignment_of(self, choices: Mapping[str, Choice]) -> tuple[int, ...] | None: ...


@dataclass(frozen=True)
class Swaps:
    """Single swaps on the reference, (n,) each: which unit, which of its options, log_kld in log nats/token, spread."""

    unit: Ints
    option: Ints
    log_kld: Floats
    spread: Floats


@dataclass(frozen=True)
class WholeMixes:
    """Scored mixes: assignment (n, units) indices of options or EXACT, log_kld (n,) in log nats/token, spread (n,)."""

    assignment: Ints
    log_kld: Floats
    spread: Floats


def swaps(problem: Units) -> Swaps:
    """The measurement's single swaps on the reference. Raises: UsageError where a unit has none."""
    measured = _probes(problem)
    rows: list[tuple[int, int, float, float]] = []
    for number, unit in enumerate(problem.units):
        index = {option.choice: i for i, option in enumerate(unit.options)}
        found = [(number, index[choice], kld, se) for choice, kld, se in measured.get(unit.id, ()) if choice in index]
        if not found:
            raise UsageError(f"the measurement has no probe of {unit.id}", fix="Measure again with these quants")
        rows += found
    units, options, measured_klds, errors = (np.array(column) for column in zip(*rows, strict=True))
    klds = np.maximum(measured_klds, _LEAST_KLD)
    return Swaps(units, options, np.log(klds), np.sqrt(SWAP_SPREAD**2 + (errors / klds) ** 2))


def whole_mixes(
    assignment: Sequence[Sequence[int]], klds: Sequence[float], centres: Sequence[float], units: int
) -> WholeMixes:
    """Mixes with their KL(reference‖mix); the nearer to one of the centres, the more they count."""
    logs = np.log(np.maximum(np.asarray(klds, dtype=np.float64), _LEAST_KLD))
    spread = np.full_like(logs, _FAR_MIX_SPREAD)
    if centres:
        away = np.abs(logs[:, None] - np.log(np.asarray(centres))[None, :]).min(axis=1)
        spread = _MIX_SPREAD + _MIX_SPREAD_BY_DISTANCE * away
    return WholeMixes(np.asarray(assignment, dtype=np.int64).reshape(len(logs), units), logs, spread)


def uniform_mixes(problem: Units) -> tuple[list[tuple[int, ...]], list[float]]:
    """The base quants that the measurement scored whole, where they are options of this problem.

    They were scored with the measurement's head and an unquantized cache, whose halves are EXACT in them.
    """
    if problem.measurement is None:
        return [], []
    detail = problem.measurement.exltune
    in_cache = [unit.role in (CACHE_K, CACHE_V) for unit in problem.units]
    assignment, klds = [], []
    for row in detail.mixes if any(in_cache) or not problem.extras else ():
        choices = dict.fromkeys(problem.group_ids, row.name.rpartition("@")[2])
        found = problem.assignment_of(choices | {Role.HEAD.value: detail.head_choice, **problem.extras})
        if found is not None and row.kl_ref_quant is not None:
            assignment.append(tuple(EXACT if exact else option for option, exact in zip(found, in_cache, strict=True)))
            klds.append(row.kl_ref_quant)
    return assignment, klds


class Surrogate:
    """The fitted law over a problem's units; KL(reference‖mix) in log nats/token.

    Raises: UsageError when made without a measurement's swaps of every unit.
    """

    def __init__(self, problem: Units) -> None:
        self.units = problem.units
        roles = list(dict.fromkeys(unit.role for unit in self.units))
        self._role = np.array([roles.index(unit.role) for unit in self.units])
        self._roles = len(roles)
        self._log_r = [log_error(unit) for unit in self.units]
        self._width = max(len(unit.options) for unit in self.units)
        #: (units, options) log r over the lowest option's; padding is never indexed.
        self._ratio = np.array([np.pad(r - r[0], (0, self._width - r.size)) for r in self._log_r])
        self._swaps = swaps(problem)
        self._parameters = np.concatenate([self._first_scales(), np.full(self._roles, _Q), [_LOGIT_GAMMA]])
        self._root: Floats | None = None
        self.fit(*uniform_mixes(problem))

    def fit(self, assignment: Sequence[Sequence[int]], klds: Sequence[float], centres: Sequence[float] = ()) -> None:
        """Fit to the swaps and to whole mixes. assignment: (n, units) options; klds: KL(reference‖mix), nats/token.

        centres: KL(reference‖mix) around which the law has to be right. The posterior is Laplace's around the
        least-squares fit.
        """
        mixes = whole_mixes(assignment, klds, centres, len(self.units))

        def loss(parameters: Floats) -> tuple[float, Floats]:
            single, whole = self._swap_misfit(parameters), self._misfit(parameters, mixes)
            gradient = self._swap_slopes(parameters).T @ single + self._slopes(parameters, mixes).T @ whole
            return 0.5 * float(single @ single + whole @ whole), np.asarray(gradient)

        def curvature(parameters: Floats) -> Floats:
            # Gauss and Newton's: a swap touches three parameters of many hundreds.
            single, whole = self._swap_slopes(parameters), self._slopes(parameters, mixes)
            return np.asarray((single.T @ single).toarray() + whole.T @ whole)

        found = minimize(
            loss, self._parameters, jac=True, hess=curvature, method="trust-exact", options={"gtol": _LEAST_SLOPE}
        )
        self._parameters = np.asarray(found.x)
        self._root = np.asarray(cholesky(curvature(self._parameters), lower=True))

    @property
    def gamma(self) -> float:
        """Exponent by which KL(reference‖mix) grows with the summed error energy."""
        return float(_expit(self._parameters[-1]))

    def exponents(self) -> dict[str, float]:
        """gamma * q of every role: how a single swap's KL(reference‖mix) goes with its rfn."""
        roles = dict(zip((unit.role for unit in self.units), self._role, strict=True))
        start = len(self.units)
        return {role: self.gamma * float(self._parameters[start + index]) for role, index in roles.items()}

    def predict(self, assignment: Sequence[Sequence[int]]) -> Floats:
        """log KL(reference‖mix) of mixes (n, units)."""
        return self._log_kld(self._parameters, np.asarray(assignment, dtype=np.int64))

    def energies(self, rng: np.random.Generator | None = None) -> list[Floats]:
        """z of every option of every unit: the sum that an exact knapsack minimizes. With rng a posterior sample."""
        parameters = self._parameters
        if rng is not None and self._root is not None:
            draw = rng.standard_normal(len(parameters))
            parameters = parameters + np.asarray(solve_triangular(self._root.T, draw, lower=False))
        z = np.exp(self._log_z(parameters))
        return [z[number, : len(unit.options)] for number, unit in enumerate(self.units)]

    def _first_scales(self) -> Floats:
        """log z of every unit at its lowest option, from its lowest probe alone."""
        gamma = _expit(_LOGIT_GAMMA)
        scales = np.zeros(len(self.units))
        for number in range(len(self.units)):
            rows = np.flatnonzero(self._swaps.unit == number)
            lowest = rows[np.argmin(self._swaps.option[rows])]
            option = self._swaps.option[lowest]
            scales[number] = self._swaps.log_kld[lowest] / gamma - _Q * self._ratio[number, option]
        return scales

    def _log_z(self, parameters: Floats) -> Floats:
        """(units, options) log z."""
        count = len(self.units)
        q = parameters[count : count + self._roles][self._role]  # (units,)
        return np.asarray(parameters[:count, None] + q[:, None] * self._ratio)

    def _shares(self, parameters: Floats, assignment: Ints) -> tuple[Floats, Floats]:
        """(n, units) share of every unit in the energy, and (n,) log of the summed energy."""
        log_z = self._log_z(parameters)[np.arange(len(self.units))[None, :], assignment]  # (n, units)
        log_z = np.where(assignment == EXACT, -np.inf, log_z)
        top = log_z.max(axis=1, keepdims=True)
        weights = np.exp(log_z - top)
        total = weights.sum(axis=1, keepdims=True)
        return weights / total, (top + np.log(total))[:, 0]

    def _log_kld(self, parameters: Floats, assignment: Ints) -> Floats:
        return np.asarray(_expit(parameters[-1]) * self._shares(parameters, assignment)[1])

    def _swap_misfit(self, parameters: Floats) -> Floats:
        """(swaps,) residuals in standard errors."""
        swaps = self._swaps
        log_z = self._log_z(parameters)[swaps.unit, swaps.option]
        return np.asarray((_expit(parameters[-1]) * log_z - swaps.log_kld) / swaps.spread)

    def _swap_slopes(self, parameters: Floats) -> csr_array:
        """(swaps, parameters) derivatives of the residuals."""
        swaps, gamma, count = self._swaps, _expit(parameters[-1]), len(self.units)
        log_z = self._log_z(parameters)[swaps.unit, swaps.option]
        slopes = np.stack(
            [np.full(log_z.size, gamma), gamma * self._ratio[swaps.unit, swaps.option], log_z * gamma * (1 - gamma)]
        )
        columns = np.stack(
            [swaps.unit, count + self._role[swaps.unit], np.full(log_z.size, len(parameters) - 1, dtype=np.int64)]
        )
        rows = np.broadcast_to(np.arange(log_z.size), columns.shape)
        entries = ((slopes / swaps.spread).ravel(), (rows.ravel(), columns.ravel()))
        return csr_array(entries, shape=(log_z.size, len(parameters)))

    def _misfit(self, parameters: Floats, mixes: WholeMixes) -> Floats:
        """(mixes + priors,) residuals in standard errors."""
        misfit = (self._log_kld(parameters, mixes.assignment) - mixes.log_kld) / mixes.spread
        return np.concatenate([misfit, self._prior(parameters)])

    def _slopes(self, parameters: Floats, mixes: WholeMixes) -> Floats:
        """(mixes + priors, parameters) derivatives of the residuals."""
        assignment = mixes.assignment
        shares, log_energy = self._shares(parameters, assignment)
        gamma = _expit(parameters[-1])
        ratio = self._ratio[np.arange(len(self.units))[None, :], assignment]  # (n, units)
        by_role = np.zeros((len(assignment), self._roles))
        np.add.at(by_role.T, self._role, (shares * ratio).T)
        by_gamma = log_energy * gamma * (1 - gamma)
        slopes = np.concatenate([gamma * shares, gamma * by_role, by_gamma[:, None]], axis=1)
        return np.concatenate([slopes / mixes.spread[:, None], self._prior_slopes()])

    def _prior(self, parameters: Floats) -> Floats:
        q = parameters[len(self.units) : -1]
        return np.append((q - _Q) / _Q_SPREAD, (parameters[-1] - _LOGIT_GAMMA) / _LOGIT_GAMMA_SPREAD)

    def _prior_slopes(self) -> Floats:
        slopes = np.zeros((self._roles + 1, len(self._parameters)))
        start = len(self.units)
        slopes[np.arange(self._roles), start + np.arange(self._roles)] = 1 / _Q_SPREAD
        slopes[-1, -1] = 1 / _LOGIT_GAMMA_SPREAD
        return slopes


def log_error(unit: SearchUnit) -> Floats:
    """(options,) log of the relative error r of every option: the codec's, or the cache's that halves with each bit."""
    bits = np.array([option.bits for option in unit.options])
    if unit.role in (CACHE_K, CACHE_V):
        return np.asarray(-np.log(2.0) * bits)
    return np.asarray(0.5 * np.log(nmse(bits)))


def _probes(problem: Units) -> Mapping[str, Iterable[tuple[str, float, float]]]:
    """Choice, KL(reference‖mix) and its standard error of every probe, by unit."""
    if problem.measurement is None:
        raise UsageError("there is no measurement to learn from", fix="Run exltune measure first")
    detail = problem.measurement.exltune
    units = (*detail.groups, *detail.wider)
    return {unit.id: [(probe.choice, probe.kld_nats, probe.kld_se_nats) for probe in _telling(unit)] for unit in units}


def _telling(unit: MeasuredGroup) -> Sequence[Probe]:
    """The probes that tell how KL(reference‖mix) goes with bits: those of 0 by definition where all are."""
    return [probe for probe in unit.probes if not probe.of_reference] or unit.probes


def _expit(value: float) -> float:
    return float(1.0 / (1.0 + np.exp(-value)))
