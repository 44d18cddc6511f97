"""From a user's request to the problem that is searched: choices at hand, budget, floors, and the fit on cards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from exltune.budget import Limits, ModelProfile, cache_bytes, check_use, model_profile
from exltune.errors import UsageError
from exltune.exl3.codebooks import Codebook
from exltune.schema.hardware import FP16_CACHE, CacheBits, Use
from exltune.schema.heuristics import Heuristics
from exltune.schema.measurement import MeasuredGroup, Measurement
from exltune.schema.mix import CACHE_K, CACHE_V, REFERENCE, Choice
from exltune.schema.search import Budget
from exltune.search.law.surrogate import Surrogate
from exltune.search.problem.problem import SearchProblem, SearchUnit, cache_unit, head_unit, search_problem
from exltune.search.rules.floors import floors
from exltune.search.space.joint import Joint, checked_head, fits_limits, groups_budget, heads_of, shrunk, widths_of

AUTO: Literal["auto"] = "auto"


@dataclass(frozen=True)
class SpaceOptions:
    """The request for a mix. cache, head: given, or AUTO for the search to choose (None: measurement's, fp16).

    use.cache is ignored in favour of cache. floors: rule files as hard floors. keep_fused: whether k and v, and gate
    and up, must have equal bits.
    """

    limits: Limits
    use: Use = field(default_factory=Use)
    cache: CacheBits | Literal["auto"] | None = None
    head: float | Literal["auto"] | None = None
    floors: tuple[Heuristics, ...] = ()
    keep_fused: bool = False


@dataclass(frozen=True)
class Space:
    """The problem and its budget, for the record."""

    problem: SearchProblem
    budget: Budget


def search_space(
    config: Mapping[str, Any],
    where: Path,
    measurement: Measurement,
    options: SpaceOptions,
    *,
    like: Space | None = None,
) -> Space:
    """The problem that a measurement and a user's limits make.

    like: the space of another target whose units this one shares.
    Raises: BudgetError naming the limit that binds, UsageError for options that contradict each other.
    """
    profile = model_profile(config, cast(Codebook, measurement.exltune.codebook), str(where))
    check_options(options, profile)
    cache = options.cache
    if cache == AUTO:
        cache = _best_cache(profile, measurement, options) if like is None else _cache_of(like)
    return _space(profile, measurement, options, cache or FP16_CACHE)


def _cache_of(space: Space) -> CacheBits:
    """The cache that a space was drawn up with."""
    k, v = (int(space.problem.extras.get(key, REFERENCE)) for key in (CACHE_K, CACHE_V))
    return CacheBits(k=k, v=v)


def _best_cache(profile: ModelProfile, measurement: Measurement, options: SpaceOptions) -> CacheBits:
    """The cache of the exact joint optimum."""
    head_bits = None if options.head == AUTO else options.head
    joint = Joint(
        profile,
        measurement,
        head_bits=head_bits,
        head_open=options.head == AUTO,
        rules=options.floors,
        keep_pairs=options.keep_fused,
    )
    return joint.best(options.limits, options.use).cache


def _space(profile: ModelProfile, measurement: Measurement, options: SpaceOptions, cache: CacheBits) -> Space:
    sizes, widths = profile.sizes, widths_of(measurement)
    heads, head_bits = heads_of(measurement), checked_head(measurement, None if options.head == AUTO else options.head)
    use = options.use.model_copy(update={"cache": cache})
    made = groups_budget(profile, widths, options.limits, use, head_bits)
    bytes_ = min(made.size_bytes, sizes.groups_bytes(widths[-1]))
    extras = {CACHE_K: str(cache.k), CACHE_V: str(cache.v)} if cache.quantized else {}
    traded = made.binding in ("gpus", "vram")
    problem = search_problem(
        profile.inventory,
        target_bpw=sizes.bpw_of(bytes_) if options.limits.target_bpw is None else options.limits.target_bpw,
        groups_budget_bytes=bytes_,
        widths=widths,
        codebook=sizes.codebook,
        head_choice=heads[head_bits],
        head_bits=head_bits,
        measurement=measurement,
        extras=extras,
        wider=_wider(profile, measurement, options, heads, head_bits, extras, traded),
        floors=floors(options.floors, profile.inventory, widths),
        keep_pairs=options.keep_fused,
    )
    budget = Budget(
        binding=made.binding,
        limits=made.bpw_by_limit,
        target_bpw=options.limits.target_bpw,
        size_bytes=options.limits.size_bytes,
        gpus=options.limits.hardware.gpus,
        vram_bytes=options.limits.hardware.vram_bytes,
        context=options.use.context,
        groups_budget_bytes=bytes_,
    )
    if options.limits.hardware.gpus or options.limits.hardware.vram_bytes:
        # A cache that gives bytes to the weights must not lift them above another limit.
        limits = options.limits if options.cache == AUTO and traded else Limits(options.limits.hardware)
        problem = replace(problem, fits=fits_limits(problem, profile, limits, options.use))
        problem, _ = shrunk(problem, Surrogate(problem).energies())
    return Space(problem, budget)


def check_options(options: SpaceOptions, profile: ModelProfile) -> None:
    """Check options against each other and against the model. Raises: UsageError naming the option."""
    cache = options.cache if isinstance(options.cache, CacheBits) else FP16_CACHE
    check_use(profile, options.limits, options.use.model_copy(update={"cache": cache}))
    if options.cache == AUTO and options.use.context is None:
        raise UsageError("`cache` auto trades the cache's bits at a context", fix="Give `context`, such as 32768")
    hardware = options.limits.hardware
    if options.cache == AUTO and not hardware.gpus and hardware.vram_bytes is None:
        raise UsageError("`cache` auto needs to know the memory", fix="Give `vram` or `gpus`")
    if options.limits == Limits():
        raise UsageError("no budget is given", fix="Give `target_bpw`, `size`, `vram` or `gpus`")


def _wider(
    profile: ModelProfile,
    measurement: Measurement,
    options: SpaceOptions,
    heads: Mapping[float, Choice],
    head_bits: float,
    extras: Mapping[str, Choice],
    traded: bool,
) -> list[SearchUnit]:
    """Head and cache as units: with all options where they are open, with their default alone where they are not.

    Fixed ones take part so that the law knows their effect on a mix; without probes of them it has to do without.
    traded: whether bytes that the cache does not take are the weights'.
    """
    probed = {unit.id: unit for unit in measurement.exltune.wider}
    head = profile.inventory.head.id
    if AUTO in (options.head, options.cache) and not probed:
        raise UsageError("the measurement has no probes of head and cache", fix="Measure again with this version")
    units = []
    if head in probed:
        units.append(head_unit(profile.sizes, heads if options.head == AUTO else {head_bits: heads[head_bits]}))
    for key, default in extras.items():
        if key in probed:
            units.append(cache_unit(key, _cache_sizes(profile, options, probed[key], default, traded)))
    return units


def _cache_sizes(
    profile: ModelProfile, options: SpaceOptions, probed: MeasuredGroup, default: Choice, traded: bool
) -> dict[int, int]:
    """Bytes of half of the cache at the asked context, by its bits, above those at 2 bits.

    A fixed cache takes nothing here: it is paid for before the weights' budget. Where the weights are bound by
    another limit than memory, a smaller cache than the default gives them nothing.
    """
    if options.cache != AUTO:
        return {int(default): 0}
    context = options.use.context or 0

    def above_least(bits: int) -> int:
        k, v = (bits, 2) if probed.id == CACHE_K else (2, bits)
        return cache_bytes(profile.cache, context, k, v) - cache_bytes(profile.cache, context, 2, 2)

    free = 0 if traded else above_least(int(default))
    return {int(probe.bits): max(above_least(int(probe.bits)) - free, 0) for probe in probed.probes}
