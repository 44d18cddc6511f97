"""Weights, head and cache under one law: the room for weights within limits, and the exact optimum over all three."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from exltune.budget import Limits, ModelProfile, cache_bytes, fit_mix, mix_weights, place, weights_budget
from exltune.budget.placement.demand import workload
from exltune.budget.plan.limits import field_of
from exltune.errors import BudgetError, UsageError
from exltune.schema.candidate import Candidate
from exltune.schema.hardware import FP16_CACHE, CacheBits, Hardware, Overheads, Use
from exltune.schema.heuristics import Heuristics
from exltune.schema.measurement import MeasuredGroup, Measurement
from exltune.schema.mix import CACHE_K, CACHE_V, UNQUANTIZED_BITS, Choice
from exltune.schema.plan import Limit
from exltune.search.law.surrogate import EXACT, Floats, Surrogate
from exltune.search.problem.problem import SearchProblem, cache_unit, head_unit, search_problem
from exltune.search.rules.floors import floors
from exltune.search.solve.bound import EnergyBound
from exltune.search.solve.exact import solve

#: A budget over GPUs shrinks by this until the indivisible layers of its best mix fit.
_SHRINK, _SHRINK_STEPS = 0.9975, 200


@dataclass(frozen=True)
class GroupsBudget:
    """Bytes that the groups together may take, the limit that binds, and every limit's largest bpw."""

    size_bytes: int
    binding: Limit
    bpw_by_limit: dict[str, float]


@dataclass(frozen=True)
class Optimum:
    """The best mix for one use by prediction. assignment: options of the law's units, EXACT for an unquantized cache.

    predicted_kld: KL(reference‖mix), nats/token. budget: the limit of its weights.
    """

    candidate: Candidate
    cache: CacheBits
    assignment: tuple[int, ...]
    head_bits: float
    predicted_kld: float
    budget: GroupsBudget


class Joint:
    """One measurement's law over all groups, every measured head and every measured cache; made once, then asked.

    head_bits: of the head where it is not open; None for the measurement's. head_open: whether it is chosen too.
    keep_pairs: as of a SearchProblem.
    Raises: UsageError for a head or a cache that was not measured.
    """

    def __init__(
        self,
        profile: ModelProfile,
        measurement: Measurement,
        *,
        head_bits: float | None = None,
        head_open: bool = False,
        rules: Sequence[Heuristics] = (),
        keep_pairs: bool = False,
    ) -> None:
        self.profile, sizes = profile, profile.sizes
        self.heads = heads_of(measurement)
        self.widths = widths_of(measurement)
        self.head_bits = checked_head(measurement, head_bits)
        self._caches = probed_caches(measurement)
        heads = self.heads if head_open else {self.head_bits: self.heads[self.head_bits]}
        self.problem = search_problem(
            profile.inventory,
            target_bpw=sizes.bpw_of(sizes.groups_bytes(self.widths[-1])),
            widths=self.widths,
            codebook=sizes.codebook,
            head_choice=heads[self.head_bits],
            head_bits=self.head_bits,
            measurement=measurement,
            extras={key: str(bits[0]) for key, bits in self._caches.items()},
            # A cache is paid for before the weights' budget.
            wider=[
                head_unit(sizes, heads),
                *(cache_unit(key, dict.fromkeys(bits, 0)) for key, bits in self._caches.items()),
            ],
            floors=floors(rules, profile.inventory, self.widths),
            keep_pairs=keep_pairs,
        )
        self.law = Surrogate(self.problem)
        self._energies = self.law.energies()
        paid = [number for number, unit in enumerate(self.problem.units) if unit.id not in self._caches]
        self._bound = EnergyBound([self.problem.units[i] for i in paid], [self._energies[i] for i in paid])
        self._solved: dict[tuple[Limits, Use, int], tuple[SearchProblem, tuple[int, ...]]] = {}

    @property
    def caches(self) -> tuple[CacheBits, ...]:
        """Every cache that the law knows, fp16 first."""
        k_bits, v_bits = self._caches[CACHE_K], self._caches[CACHE_V]
        return FP16_CACHE, *(CacheBits(k=k, v=v) for k in k_bits for v in v_bits)

    def best(self, limits: Limits, use: Use) -> Optimum:
        """The optimum over all caches, use.cache being ignored. Raises: BudgetError where none fits."""
        bounds, refused = [], []
        for cache in self._efficient(use):
            beside = use.model_copy(update={"cache": cache})
            try:
                budget = groups_budget(self.profile, self.widths, limits, beside, self.head_bits)
            except BudgetError as error:
                refused.append(error)
                continue
            bytes_ = replace(self.problem, groups_budget_bytes=budget.size_bytes).budget_bytes
            bounds.append(((self._bound.at(bytes_) + self._cache_energy(cache)) ** self.law.gamma, beside))
        best: Optimum | None = None
        for least_kld, beside in sorted(bounds, key=lambda entry: entry[0]):
            if best is not None and least_kld > best.predicted_kld:
                break
            try:
                found = self.optimum(limits, beside)
            except BudgetError as error:
                refused.append(error)
                continue
            best = found if best is None or found.predicted_kld < best.predicted_kld else best
        if best is None:
            raise refused[-1]
        return best

    def optimum(self, limits: Limits, use: Use) -> Optimum:
        """The exact optimum of weights and head beside use.cache. Raises: BudgetError, UsageError."""
        budget = groups_budget(self.profile, self.widths, limits, use, self.head_bits)
        problem, best = self._solve(limits, use, budget)
        assignment = self._with_cache(best, use.cache)
        candidate = problem.candidate_of("", best)
        choices = {key: choice for key, choice in candidate.choices.items() if key not in (CACHE_K, CACHE_V)}
        if use.cache.quantized:
            choices |= {CACHE_K: str(use.cache.k), CACHE_V: str(use.cache.v)}
        predicted = float(np.exp(self.law.predict([assignment])[0]))
        return Optimum(
            candidate=candidate.model_copy(update={"choices": choices, "predicted_kld": predicted}),
            cache=use.cache,
            assignment=assignment,
            head_bits=problem.head_bits_of(choices[problem.inventory.head.id]),
            predicted_kld=predicted,
            budget=budget,
        )

    def _solve(self, limits: Limits, use: Use, budget: GroupsBudget) -> tuple[SearchProblem, tuple[int, ...]]:
        """The problem that is left for weights and head, and its optimum; caches of the same bytes share it."""
        key = (limits, use.model_copy(update={"cache": FP16_CACHE}), kv_bytes(self.profile, use))
        if key not in self._solved:
            problem = replace(self.problem, groups_budget_bytes=budget.size_bytes)
            problem.check_floors()
            if limits.hardware.gpus or limits.hardware.vram_bytes:
                hardware = Limits(limits.hardware)
                problem = replace(problem, fits=fits_limits(problem, self.profile, hardware, use, cache=use.cache))
            self._solved[key] = shrunk(problem, self._energies)
        return self._solved[key]

    def _efficient(self, use: Use) -> list[CacheBits]:
        """Of all caches that take the same bytes the one with the least energy, largest first: others cannot win."""
        best: dict[int, tuple[float, CacheBits]] = {}
        for cache in self.caches:
            size, energy = kv_bytes(self.profile, use.model_copy(update={"cache": cache})), self._cache_energy(cache)
            if size not in best or energy < best[size][0]:
                best[size] = energy, cache
        return [best[size][1] for size in sorted(best, reverse=True)]

    def _cache_energy(self, cache: CacheBits) -> float:
        assignment = self._with_cache([0] * len(self.problem.units), cache)
        numbers = (n for n, unit in enumerate(self.problem.units) if unit.id in self._caches)
        return sum(float(self._energies[n][assignment[n]]) for n in numbers if assignment[n] != EXACT)

    def _with_cache(self, assignment: Sequence[int], cache: CacheBits) -> tuple[int, ...]:
        """The options with the cache's in their place. Raises: UsageError for a cache that was not measured."""
        asked = {CACHE_K: cache.k, CACHE_V: cache.v}
        found = list(assignment)
        for number, unit in enumerate(self.problem.units):
            if unit.id in self._caches and cache.quantized:
                if asked[unit.id] not in self._caches[unit.id]:
                    have = ", ".join(str(bits) for bits in self._caches[unit.id])
                    raise UsageError(f"no measured {unit.id} has {asked[unit.id]} bits", fix=f"Measured are {have}")
                found[number] = self._caches[unit.id].index(asked[unit.id])
            elif unit.id in self._caches:
                found[number] = EXACT
        return tuple(found)


def kv_bytes(profile: ModelProfile, use: Use) -> int:
    """use.cache at use.context, states included."""
    return cache_bytes(profile.cache, use.context or 0, use.cache.k, use.cache.v, use.slots)


def groups_budget(
    profile: ModelProfile, widths: Sequence[float], limits: Limits, use: Use, head_bits: float
) -> GroupsBudget:
    """Bytes that limits leave for the groups beside a head and a cache; it may be more than the largest mix takes.

    Raises: BudgetError naming the limit that does not even leave room for the smallest mix.
    """
    sizes = profile.sizes
    head = sizes.group_bytes(sizes.inventory.head.id, head_bits)
    found: dict[Limit, int] = {}
    if limits.target_bpw is not None:
        found["target_bpw"] = sizes.check_target(limits.target_bpw, widths)
    if limits.size_bytes is not None:
        routers = sizes.uniform_size(widths[0], head_bits).size_bytes - sizes.groups_bytes(widths[0]) - head
        found["size"] = limits.size_bytes - head - routers
    names: tuple[Literal["gpus", "vram", "ram"], ...] = ("gpus", "vram", "ram")
    for name in names:
        key = name if name == "gpus" else f"{name}_bytes"
        value = getattr(limits.hardware, key)
        if value:
            found[name] = _memory_budget(profile, Limits(Hardware(**{key: value})), use, head_bits) - head
    binding = min(found, key=lambda name: found[name])
    left, least = found[binding], sizes.groups_bytes(widths[0])
    if left < least:
        raise BudgetError(
            f"{field_of(binding)} leaves {sizes.bpw_of(max(left, 0)):.3f} bpw for the weights",
            fix=f"The smallest mix of these base quants has {sizes.bpw_of(least):.3f} bpw: give more memory, a "
            "shorter `context`, fewer `cache` bits, or quantize lower bits too",
        )
    return GroupsBudget(left, binding, {name: sizes.bpw_of(max(size, 0)) for name, size in found.items()})


def _memory_budget(profile: ModelProfile, limits: Limits, use: Use, head_bits: float) -> int:
    """Limit of groups and head together. Exact for one pool: there it does not matter where the bytes lie."""
    found = weights_budget(profile, limits, use, head_bits=head_bits)
    pool = limits.hardware.vram_bytes
    if pool is None or use.offload_layers:
        return found.groups_and_head_bytes
    even = mix_weights(profile, dict.fromkeys((g.id for g in profile.inventory.groups), found.bits), head_bits)
    return found.groups_and_head_bytes + place(workload(profile, use, Overheads()), even, (pool,)).room


def fits_limits(
    problem: SearchProblem, profile: ModelProfile, limits: Limits, use: Use, cache: CacheBits | None = None
) -> Callable[[Mapping[str, Choice]], bool]:
    """Whether a mix keeps limits, layer by layer, beside the given cache or its own."""

    def fits(choices: Mapping[str, Choice]) -> bool:
        k, v = (int(choices.get(key, UNQUANTIZED_BITS)) for key in (CACHE_K, CACHE_V))
        used = use.model_copy(update={"cache": cache or CacheBits(k=k, v=v)})
        bits = {group: float(choices[group]) for group in problem.group_ids}
        head_bits = problem.head_bits_of(choices[problem.inventory.head.id])
        try:
            fit_mix(profile, mix_weights(profile, bits, head_bits), limits, used)
        except BudgetError:
            return False
        return True

    return fits


def shrunk(problem: SearchProblem, energies: Sequence[Floats]) -> tuple[SearchProblem, tuple[int, ...]]:
    """The problem with a budget small enough that its law's optimum fits, layers being indivisible; that optimum."""
    for _ in range(_SHRINK_STEPS):
        best = solve(problem, energies)
        if best is None:
            break
        if problem.within(best):
            return problem, best
        problem = replace(problem, groups_budget_bytes=int(problem.groups_budget_bytes * _SHRINK))
    raise BudgetError("no mix fits the GPUs layer by layer", fix="Give larger GPUs or a smaller `target_bpw`")


def widths_of(measurement: Measurement) -> list[float]:
    """Bits of all base quants, ascending."""
    return sorted({probe.bits for group in measurement.exltune.groups for probe in group.probes})


def heads_of(measurement: Measurement) -> dict[float, Choice]:
    """Bits of the head, ascending -> the base quant that has it, the default one where several do."""
    detail = measurement.exltune
    by_bits = {bits: choice for choice, bits in reversed(list(detail.heads.items()))}
    return dict(sorted((by_bits | {detail.head_bits: detail.head_choice}).items()))


def checked_head(measurement: Measurement, head_bits: float | None) -> float:
    """The asked head's bits, or the measurement's. Raises: UsageError where no base quant has them."""
    if head_bits is None:
        return measurement.exltune.head_bits
    heads = heads_of(measurement)
    if head_bits not in heads:
        have = ", ".join(f"{bits:g}" for bits in heads)
        raise UsageError(f"no measured head has {head_bits:g} bits", fix=f"Measured are {have}")
    return head_bits


def probed_caches(measurement: Measurement) -> dict[str, tuple[int, ...]]:
    """Measured bits of each half of the cache, ascending. Raises: UsageError where there are none."""
    probed: dict[str, MeasuredGroup] = {unit.id: unit for unit in measurement.exltune.wider}
    if CACHE_K not in probed or CACHE_V not in probed:
        raise UsageError("the measurement has no probes of head and cache", fix="Measure again with this version")
    return {key: tuple(sorted(int(probe.bits) for probe in probed[key].probes)) for key in (CACHE_K, CACHE_V)}
