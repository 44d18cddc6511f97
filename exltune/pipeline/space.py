"""From what a user asks for to the problem that is searched: choices at hand, budget, floors, what must fit where."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from exltune.budget import (
    Limits,
    ModelProfile,
    Placement,
    SizeModel,
    cache_bytes,
    check_use,
    fit_mix,
    mix_weights,
    model_profile,
)
from exltune.budget.limits import option_of, weights_budget
from exltune.errors import BudgetError, UsageError
from exltune.exl3.codebooks import Codebook
from exltune.inventory import inventory_from_config
from exltune.schema.hardware import FP16_BITS, FP16_CACHE, CacheBits, Hardware, Use
from exltune.schema.heuristics import Heuristics
from exltune.schema.measurement import MeasuredGroup, Measurement
from exltune.schema.mix import CACHE_K, CACHE_V, Choice
from exltune.schema.plan import Limit
from exltune.schema.search import Budget
from exltune.search import SearchProblem, Surrogate, Unit, cache_unit, floors, head_unit, search_problem, solve

AUTO: Literal["auto"] = "auto"

#: Where the cache is open, budgets are first drawn up with these bits; lower ones where the weights then do not fit.
_FIRST_CACHES = (CacheBits(k=8, v=8), CacheBits(k=4, v=4), CacheBits(k=2, v=2))
#: A budget over GPUs shrinks by this until the indivisible layers of its best mix fit.
_SHRINK, _SHRINK_STEPS = 0.9975, 200


@dataclass(frozen=True)
class Asked:
    """What a mix is wanted for. cache, head: given, or AUTO for the search to choose (None: measurement's, fp16).

    use.cache is ignored in favour of cache. floors: rule files as hard floors.
    """

    limits: Limits
    use: Use = field(default_factory=Use)
    cache: CacheBits | Literal["auto"] | None = None
    head: float | Literal["auto"] | None = None
    floors: tuple[Heuristics, ...] = ()


@dataclass(frozen=True)
class Space:
    """The problem and its budget, for the record."""

    problem: SearchProblem
    budget: Budget


def search_space(config: Mapping[str, Any], where: Path, measurement: Measurement, asked: Asked) -> Space:
    """The problem that a measurement and a user's limits make.

    Raises: BudgetError naming the limit that binds, UsageError for options that contradict each other.
    """
    detail = measurement.exltune
    profile = model_profile(config, cast(Codebook, detail.codebook), str(where))
    _check(asked, profile)
    if asked.cache != AUTO:
        return _space(profile, measurement, asked, asked.cache or FP16_CACHE, config)
    first = _first_that_fits(profile, measurement, asked, config)
    best = solve(first.problem, Surrogate(first.problem).energies())
    assert best is not None, "a problem is feasible when it is made"
    chosen = first.problem.seed_of_units("", best).mix.choices
    cache = CacheBits(k=int(chosen[CACHE_K]), v=int(chosen[CACHE_V]))
    return _space(profile, measurement, asked, cache, config)


def _first_that_fits(profile: ModelProfile, measurement: Measurement, asked: Asked, config: Mapping[str, Any]) -> Space:
    for cache in _FIRST_CACHES[:-1]:
        try:
            return _space(profile, measurement, asked, cache, config)
        except BudgetError:
            continue
    return _space(profile, measurement, asked, _FIRST_CACHES[-1], config)


def _space(
    profile: ModelProfile, measurement: Measurement, asked: Asked, cache: CacheBits, config: Mapping[str, Any]
) -> Space:
    detail, inventory = measurement.exltune, inventory_from_config(config)
    sizes = SizeModel(inventory, cast(Codebook, detail.codebook))
    widths = sorted({probe.bits for group in detail.groups for probe in group.probes})
    heads = _heads(measurement)
    head_bits = detail.head_bits if asked.head in (None, AUTO) else asked.head
    if head_bits not in heads:
        have = ", ".join(f"{bits:g}" for bits in heads)
        raise UsageError(f"no measured head has {head_bits:g} bits", fix=f"Measured are {have}")
    use = asked.use.model_copy(update={"cache": cache})
    bytes_, binding, by_limit = _groups_budget(profile, sizes, widths, asked.limits, use, head_bits)
    extras = {CACHE_K: str(cache.k), CACHE_V: str(cache.v)} if cache.quantized else {}
    problem = search_problem(
        inventory,
        target_bpw=sizes.bpw_of(bytes_) if asked.limits.target_bpw is None else asked.limits.target_bpw,
        groups_budget_bytes=bytes_,
        widths=widths,
        codebook=cast(Codebook, detail.codebook),
        head_choice=heads[head_bits],
        head_bits=head_bits,
        measurement=measurement,
        extras=extras,
        wider=_wider(profile, sizes, measurement, asked, heads, head_bits, extras),
        floors=floors(asked.floors, inventory, widths),
    )
    budget = Budget(
        binding=binding,
        limits=by_limit,
        target_bpw=asked.limits.target_bpw,
        size_bytes=asked.limits.size_bytes,
        gpus=asked.limits.hardware.gpus,
        vram_bytes=asked.limits.hardware.vram_bytes,
        context=asked.use.context,
        groups_budget_bytes=bytes_,
    )
    if asked.limits.hardware.gpus or asked.limits.hardware.vram_bytes:
        problem = _shrunk(replace(problem, fits=_fits(problem, profile, asked)))
    return Space(problem, budget)


def _check(asked: Asked, profile: ModelProfile) -> None:
    cache = asked.cache if isinstance(asked.cache, CacheBits) else FP16_CACHE
    check_use(profile, asked.limits, asked.use.model_copy(update={"cache": cache}))
    if asked.cache == AUTO and asked.use.context is None:
        raise UsageError("--cache auto trades the cache's bits at a context", fix="Give --context, such as 32768")
    hardware = asked.limits.hardware
    if asked.cache == AUTO and not hardware.gpus and hardware.vram_bytes is None:
        raise UsageError("--cache auto needs to know the memory", fix="Give --vram or --gpus")
    if asked.limits == Limits():
        raise UsageError("no budget is given", fix="Give --target-bpw, --size, --vram or --gpus")


def _groups_budget(
    profile: ModelProfile, sizes: SizeModel, widths: Sequence[float], limits: Limits, use: Use, head_bits: float
) -> tuple[int, Limit, dict[str, float]]:
    """Bytes that the groups together may take, the limit that binds, and every limit's largest bpw."""
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
            alone = Limits(Hardware(**{key: value}))
            found[name] = weights_budget(profile, alone, use, head_bits=head_bits).groups_and_head_bytes - head
    binding = min(found, key=lambda name: found[name])
    highest = sizes.groups_bytes(widths[-1])
    bytes_ = min(found[binding], highest)
    least = sizes.groups_bytes(widths[0])
    if bytes_ < least:
        raise BudgetError(
            f"{option_of(binding)} leaves {sizes.bpw_of(max(bytes_, 0)):.3f} bpw for the weights",
            fix=f"The smallest mix of these base quants has {sizes.bpw_of(least):.3f} bpw: give more memory, a "
            "shorter --context, fewer --cache bits, or quantize lower bits too",
        )
    return bytes_, binding, {name: sizes.bpw_of(max(value, 0)) for name, value in found.items()}


def _heads(measurement: Measurement) -> dict[float, Choice]:
    """Bits of the head -> the base quant that has it, the default one first."""
    detail = measurement.exltune
    by_bits = {bits: choice for choice, bits in reversed(list(detail.heads.items()))}
    return dict(sorted((by_bits | {detail.head_bits: detail.head_choice}).items()))


def _wider(
    profile: ModelProfile,
    sizes: SizeModel,
    measurement: Measurement,
    asked: Asked,
    heads: Mapping[float, Choice],
    head_bits: float,
    extras: Mapping[str, Choice],
) -> list[Unit]:
    """Head and cache as units: with all options where they are open, with their default alone where they are not.

    Fixed ones take part so that the law knows what they do to a mix; without probes of them it has to do without.
    """
    probed = {unit.id: unit for unit in measurement.exltune.wider}
    head = sizes.inventory.head.id
    if AUTO in (asked.head, asked.cache) and not probed:
        raise UsageError("the measurement has no probes of head and cache", fix="Measure again with this version")
    units = []
    if head in probed:
        units.append(head_unit(sizes, heads if asked.head == AUTO else {head_bits: heads[head_bits]}))
    for key, default in extras.items():
        if key in probed:
            units.append(cache_unit(key, _cache_sizes(profile, asked, key, probed[key], default)))
    return units


def _cache_sizes(
    profile: ModelProfile, asked: Asked, key: str, probed: MeasuredGroup, default: Choice
) -> dict[int, int]:
    """What half of the cache takes at the asked context, by its bits, above what it takes at 2 bits.

    A fixed cache takes nothing here: it is paid for before the weights' budget.
    """
    if asked.cache != AUTO:
        return {int(default): 0}
    context = asked.use.context or 0
    least = cache_bytes(profile.cache, context, 2, 2)
    sizes = {}
    for bits in (int(probe.bits) for probe in probed.probes):
        k, v = (bits, 2) if key == CACHE_K else (2, bits)
        sizes[bits] = cache_bytes(profile.cache, context, k, v) - least
    return sizes


def _placed(
    problem: SearchProblem, profile: ModelProfile, asked: Asked, choices: Mapping[str, Choice]
) -> tuple[Placement, ...]:
    """Where a mix lies on the hardware. Raises: BudgetError."""
    head_bits = problem.head_bits_of(choices[problem.inventory.head.id])
    bits = {group: float(choices[group]) for group in problem.group_ids}
    k, v = (int(choices.get(key, FP16_BITS)) for key in (CACHE_K, CACHE_V))
    use = asked.use.model_copy(update={"cache": CacheBits(k=k, v=v)})
    hardware = Limits(asked.limits.hardware)
    return fit_mix(profile, mix_weights(profile, bits, head_bits), hardware, use)


def _fits(problem: SearchProblem, profile: ModelProfile, asked: Asked) -> Callable[[Mapping[str, Choice]], bool]:
    def fits(choices: Mapping[str, Choice]) -> bool:
        try:
            _placed(problem, profile, asked, choices)
        except BudgetError:
            return False
        return True

    return fits


def _shrunk(problem: SearchProblem) -> SearchProblem:
    """The problem with a budget small enough that its law's optimum fits, layers being indivisible."""
    energies = Surrogate(problem).energies()
    for _ in range(_SHRINK_STEPS):
        best = solve(problem, energies)
        if best is None or problem.within(best):
            return problem
        problem = replace(problem, groups_budget_bytes=int(problem.groups_budget_bytes * _SHRINK))
    raise BudgetError("no mix fits the GPUs layer by layer", fix="Give larger GPUs or a smaller --target-bpw")
