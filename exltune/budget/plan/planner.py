"""The plan: weights, cache, context and cards as one budget."""

from __future__ import annotations

from dataclasses import replace

from exltune.budget.memory.cache import cache_bytes_per_token
from exltune.budget.memory.weights import HIGHEST_BITS, LOWEST_BITS, Weights, bpw_of, spread_bits
from exltune.budget.placement.demand import Workload, ram_bytes
from exltune.budget.placement.placement import Placement, place, total_overhead
from exltune.budget.plan.limits import bits_by_limit, tightest
from exltune.budget.plan.question import Question, broken_limits, check_use, largest_context
from exltune.budget.plan.remedies import remedies
from exltune.schema.plan import Limit, Plan

#: Without bits of its own, a plan that comes out below this does not fit: exltune's smallest base quant.
PLAIN_BITS = 2.0


def plan(question: Question) -> Plan:
    """Whether it fits, the binding limit, the largest size, its place on cards, and the remedies.

    Raises: UsageError for a use that contradicts itself or the model.
    """
    check_use(question.profile, question.limits, question.use)
    work = question.work
    allowed = bits_by_limit(work, question.limits, question.head_bits)
    bits = min((found or 0.0 for found in allowed.values()), default=HIGHEST_BITS)
    weights = question.weights or spread_bits(
        question.profile, min(max(bits, PLAIN_BITS), HIGHEST_BITS), question.head_bits
    )
    broken = broken_limits(work, question.limits, weights)
    binding = tightest({name: allowed[name] for name in broken} or allowed)
    asked = replace(question, weights=weights)
    answer = _answer(asked, work, weights, binding, not broken)
    return answer.model_copy(
        update={
            "limits": {name: _bpw_at(question, found) for name, found in allowed.items()},
            "max_bpw": _bpw_at(question, bits or None),
            "max_context": largest_context(asked),
            "remedies": remedies(asked, _bpw_at(question, bits or None), broken) if broken else (),
        }
    )


def _answer(question: Question, work: Workload, weights: Weights, binding: Limit | None, fitting: bool) -> Plan:
    use, profile = question.use, question.profile
    places = _places(question, work, weights)
    cards = places[0].cards if places else ()
    per_token = cache_bytes_per_token(profile.cache, use.cache.k, use.cache.v)
    disk = weights.total + profile.plain_bytes if question.disk_bytes is None else question.disk_bytes
    return Plan(
        fits=fitting,
        binding=binding,
        limits={},
        architecture=profile.inventory.architecture,
        bpw=bpw_of(profile, weights),
        max_bpw=None,
        head_bits=question.head_bits,
        weights_bytes=weights.total,
        disk_bytes=disk,
        kv_bytes=work.kv_bytes,
        kv_bytes_per_token=per_token,
        overhead_bytes=sum(card.overhead_bytes for card in cards) if cards else total_overhead(work, weights),
        slack_bytes=min((found.room for found in places), default=None),
        context=use.context,
        max_context=None,
        context_limit=profile.context_limit,
        cache=str(use.cache),
        chunk=use.chunk,
        slots=use.slots,
        ram_bytes=ram_bytes(work, weights),
        fullest_bytes=places[0].fullest if places else None,
        bare_slack_bytes=places[0].bare_room if places else None,
        per_gpu=cards,
        remedies=(),
        unit=question.unit,
    )


def _places(question: Question, work: Workload, weights: Weights) -> list[Placement]:
    hardware = question.limits.hardware
    pools = (hardware.gpus, (hardware.vram_bytes,) if hardware.vram_bytes is not None else ())
    return [place(work, weights, cards) for cards in pools if cards]


def _bpw_at(question: Question, bits: float | None) -> float | None:
    if bits is None or bits < LOWEST_BITS:
        return None
    return bpw_of(question.profile, spread_bits(question.profile, min(bits, HIGHEST_BITS), question.head_bits))
