"""Room for weights within hardware and size limits; the tightest limit binds and is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from exltune.budget.memory.profile import ModelProfile
from exltune.budget.memory.weights import LOWEST_BITS, Weights, bpw_of, group_bytes, spread_bits
from exltune.budget.placement.demand import Workload, ram_bytes, workload
from exltune.budget.placement.placement import Placement, fits_on, place
from exltune.budget.units import format_size
from exltune.errors import BudgetError
from exltune.schema.hardware import Hardware, Overheads, Use
from exltune.schema.plan import Limit

#: Bisection goes beyond 8 bits, so that limits can be compared which all allow the largest quant.
_BEYOND_BITS = 64.0
_STEPS = 48


@dataclass(frozen=True)
class Limits:
    """Every limit that is set. target_bpw: exllamav3's bpw, head left out. size_bytes: linears and head."""

    hardware: Hardware = field(default_factory=Hardware)
    target_bpw: float | None = None
    size_bytes: int | None = None


@dataclass(frozen=True)
class WeightsBudget:
    """groups_and_head_bytes: limit of quantized groups and head together, routers and gates not counted."""

    groups_and_head_bytes: int
    binding: Limit
    bits: float
    bpw: float


def checks(work: Workload, limits: Limits) -> dict[Limit, Callable[[Weights], bool]]:
    """A predicate for every limit that is set; more bytes never pass where fewer do not."""
    hardware, profile = limits.hardware, work.profile
    found: dict[Limit, Callable[[Weights], bool]] = {}
    if hardware.gpus:
        found["gpus"] = lambda weights: fits_on(work, weights, hardware.gpus)
    if hardware.vram_bytes is not None:
        pool = (hardware.vram_bytes,)
        found["vram"] = lambda weights: fits_on(work, weights, pool)
    if hardware.ram_bytes is not None:
        ram = hardware.ram_bytes - work.overheads.host_reserve_bytes
        found["ram"] = lambda weights: ram_bytes(work, weights) <= ram
    if limits.target_bpw is not None:
        target = profile.sizes.budget_bytes(limits.target_bpw)
        found["target_bpw"] = lambda weights: group_bytes(profile, weights) <= target
    if limits.size_bytes is not None:
        size = limits.size_bytes
        found["size"] = lambda weights: weights.total <= size
    return found


def largest_bits(work: Workload, head_bits: float, passes: Callable[[Weights], bool]) -> float | None:
    """The most bits, spread evenly over all weights, that pass; up to 64. None where not even 1 bit does."""
    low, high = LOWEST_BITS, _BEYOND_BITS
    if not passes(spread_bits(work.profile, low, head_bits)):
        return None
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if passes(spread_bits(work.profile, middle, head_bits)):
            low = middle
        else:
            high = middle
    return low


def bits_by_limit(work: Workload, limits: Limits, head_bits: float) -> dict[Limit, float | None]:
    """For every limit that is set, the most bits that it allows."""
    return {name: largest_bits(work, head_bits, passes) for name, passes in checks(work, limits).items()}


def tightest(bits: Mapping[Limit, float | None]) -> Limit | None:
    """The limit that allows the fewest bits."""
    return min(bits, key=lambda name: bits[name] or 0.0, default=None)


def weights_budget(
    profile: ModelProfile, limits: Limits, use: Use, *, head_bits: float = 6.0, overheads: Overheads | None = None
) -> WeightsBudget:
    """Limit of groups and head together, at bits spread evenly over all layers.

    A mix of as many bytes that puts them elsewhere still has to pass fit_mix: layers are indivisible.
    Raises: BudgetError where no limit is given or not even 1 bit for every weight fits, naming the binding limit.
    """
    work = workload(profile, use, overheads or Overheads())
    allowed = bits_by_limit(work, limits, head_bits)
    binding = tightest(allowed)
    if binding is None:
        raise BudgetError("no limit is given", fix="Give `gpus`, `vram`, `target_bpw` or `size`")
    bits = allowed[binding]
    if bits is None:
        least = spread_bits(profile, LOWEST_BITS, head_bits)
        raise BudgetError(
            f"{field_of(binding)} leaves no room for weights: 1 bit for each takes {format_size(least.total)}, "
            f"beside a cache of {format_size(work.kv_bytes)}",
            fix="Give more memory, a shorter `context` or fewer `cache` bits",
        )
    weights = spread_bits(profile, bits, head_bits)
    fp16 = weights.total - group_bytes(profile, weights) - weights.head
    return WeightsBudget(weights.total - fp16, binding, bits, bpw_of(profile, weights))


def weights_budget_bytes(
    profile: ModelProfile, limits: Limits, use: Use, *, head_bits: float = 6.0, overheads: Overheads | None = None
) -> tuple[int, Limit]:
    """weights_budget's bytes and the limit that binds. Raises: BudgetError."""
    found = weights_budget(profile, limits, use, head_bits=head_bits, overheads=overheads)
    return found.groups_and_head_bytes, found.binding


def fit_mix(
    profile: ModelProfile, weights: Weights, limits: Limits, use: Use, *, overheads: Overheads | None = None
) -> tuple[Placement, ...]:
    """Check a finished mix (see mix_weights) against every limit; where it lies on the GPUs and in the pool.

    Raises: BudgetError naming the first limit that it breaks, with the bytes that are missing.
    """
    work = workload(profile, use, overheads or Overheads())
    for name, passes in checks(work, limits).items():
        if not passes(weights):
            raise BudgetError(
                f"the mix of {format_size(weights.total)} ({bpw_of(profile, weights):.3f} bpw) breaks "
                f"{field_of(name)}{_missing(name, work, weights, limits)}",
                fix=_FIXES[name],
            )
    pools = (limits.hardware.gpus, (limits.hardware.vram_bytes,) if limits.hardware.vram_bytes else ())
    return tuple(place(work, weights, cards) for cards in pools if cards)


def field_of(limit: Limit) -> str:
    """The field that sets a limit, as messages name it."""
    return f"`{limit}`"


_FIXES: dict[Limit, str] = {
    "gpus": "Take fewer bits, a shorter `context`, fewer `cache` bits or another GPU",
    "vram": "Take fewer bits, a shorter `context` or fewer `cache` bits",
    "ram": "Offload fewer layers, or give more `ram`",
    "target_bpw": "Take fewer bits",
    "size": "Take fewer bits",
}


def _missing(name: Limit, work: Workload, weights: Weights, limits: Limits) -> str:
    hardware = limits.hardware
    if name in ("gpus", "vram"):
        cards = hardware.gpus if name == "gpus" else (hardware.vram_bytes or 0,)
        found = place(work, weights, cards)
        held = format_size(found.fullest)
        return (
            f": the fullest card holds {held} of weights and cache and lacks {format_size(-found.room)} with overheads"
        )
    if name == "ram":
        needed = ram_bytes(work, weights) + work.overheads.host_reserve_bytes
        return (
            f": {format_size(needed)} are needed, {format_size(work.overheads.host_reserve_bytes)} kept free among them"
        )
    return ""
