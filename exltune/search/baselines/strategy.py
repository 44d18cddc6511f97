"""exllamav3's own bit strategy, restated for a CPU, and its smallest quant of at least a given size.

Source: exllamav3 1.6.5, conversion/allocation.py (create_q_strategy, rate_floor, rate_next), with the qgroups and
priorities of modules/{attn,mla_attn,gated_delta_net,mlp,block_sparse_mlp}.py. Tests hold it equal to the original.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from exltune.budget import SizeModel
from exltune.errors import BudgetError
from exltune.exl3.codebooks import HALF_BITS, INTEGER_BITS
from exltune.inventory import architecture
from exltune.schema.candidate import Candidate
from exltune.schema.inventory import Group, Inventory, Role
from exltune.schema.mix import Choice, choice_of_bits

_WHOLE_RATES: tuple[float, ...] = tuple(float(bits) for bits in INTEGER_BITS)
_HALF_RATES: tuple[float, ...] = tuple(sorted((*_WHOLE_RATES, *HALF_BITS)))

#: exllamav3 promotes these together (qgroup).
_BUNDLES = {
    Role.ATTN_Q: "qkv",
    Role.ATTN_K: "qkv",
    Role.ATTN_V: "qkv",
    Role.ATTN_QKV: "qkvz",
    Role.ATTN_Z: "qkvz",
    Role.ATTN_Q_A: "q_a",
    Role.ATTN_Q_B: "q_b",
    Role.ATTN_KV_A: "kv_a",
    Role.ATTN_O: "o",
    Role.ATTN_OUT: "o",
    Role.MLP_GATE: "gu",
    Role.MLP_UP: "gu",
    Role.MLP_DOWN: "d",
    Role.SHARED_GATE: "shared.gu",
    Role.SHARED_UP: "shared.gu",
    Role.SHARED_DOWN: "shared.d",
    Role.EXPERTS_GATE_UP: "block_gud",
    Role.EXPERTS_DOWN: "block_gud",
}
#: Order of a layer's bundles in exllamav3's module tree, where routed experts come before shared ones.
_WITHIN_LAYER = ("qkv", "qkvz", "q_a", "q_b", "kv_a", "o", "gu", "d", "block_gud", "shared.gu", "shared.d")
#: q_priority of attention, to which its hq bits are added; linear attention has less, gated MLPs and experts none.
_ATTENTION_PRIORITY = 2
_LINEAR_PRIORITY = 1
_LINEAR_ROLES = (Role.ATTN_QKV, Role.ATTN_Z, Role.ATTN_OUT)

#: Budgets nearer to each other than this are not told apart by the scan (in bpw).
_SCAN_STEP_BPW = 2e-4


@dataclass(frozen=True)
class _Bundle:
    """Groups that exllamav3 promotes together; numel counts padded weights."""

    groups: tuple[str, ...]
    numel: int
    hq_bits: int


def exllamav3_strategy(
    inventory: Inventory,
    bpw: float,
    *,
    half_steps: bool = False,
    hq: int = 0,
    widths: Sequence[float] | None = None,
) -> dict[str, float]:
    """Bits of every quantized linear but the head, by module key, as create_q_strategy gives them.

    bpw counts weights alone, without scales. hq: exllamav3's `-hq`. widths: the rates that exist, in place of
    exllamav3's own; a step then goes to the next of them. half_steps: with 1.5, 2.5 and 3.5 (mul1).
    """
    rates = tuple(sorted(widths)) if widths is not None else (_HALF_RATES if half_steps else _WHOLE_RATES)
    ladder = _Ladder(inventory, rates)
    bits, _ = ladder.climb(_floor(rates, bpw), int(bpw * float(ladder.numel)), hq)
    return {key: bits[group.id] for group in inventory.groups for key in group.tensors}


def strategy_within(
    sizes: SizeModel, budget_bytes: int, widths: Sequence[float], hq: int = 0
) -> dict[str, float] | None:
    """Bits by group of the strategy's largest quant whose groups take at most `budget_bytes`; None if none does."""
    ladder = _Ladder(sizes.inventory, tuple(sorted(widths)))
    stop = 8 * budget_bytes - ladder.overhead_bits(sizes)
    surplus = sum(bundle.numel * bundle.hq_bits * hq for bundle in ladder.bundles)
    best, best_bytes = None, -1
    for _, bits in ladder.quants(stop - surplus - ladder.largest_step, stop, hq):
        total = sum(sizes.group_bytes(group, bits[group]) for group in bits)
        if best_bytes < total <= budget_bytes:
            best, best_bytes = bits, total
    return best


def smallest_strategy_at_least(
    sizes: SizeModel, size_bytes: int, widths: Sequence[float], head_bits: float, head_choice: Choice
) -> Candidate:
    """The strategy's smallest quant with at least `size_bytes` (all linears and head, as MixSize counts).

    head_choice: the base quant whose head has head_bits.
    Raises: BudgetError when even the largest has fewer.
    """
    ladder, head = _Ladder(sizes.inventory, tuple(sorted(widths))), sizes.inventory.head.id
    top = sizes.uniform_size(ladder.rates[-1], head_bits)
    if top.size_bytes < size_bytes:
        raise BudgetError(
            f"no quant of exllamav3's strategy has {size_bytes:,} bytes", fix=f"The largest has {top.size_bytes:,}"
        )
    full = ladder.numel * ladder.rates[-1]
    needed = math.ceil(full) - 8 * (top.size_bytes - size_bytes)
    best, best_size = dict.fromkeys(ladder.groups, ladder.rates[-1]), top
    for limit, bits in ladder.quants(needed, math.ceil(full)):
        size = sizes.mix_size(bits | {head: head_bits})
        if size_bytes <= size.size_bytes < best_size.size_bytes:
            best, best_size = bits, size
        # A quant leaves less than the largest step of its limit unused: none beyond this limit is smaller.
        if limit >= full - 8 * (top.size_bytes - best_size.size_bytes) + ladder.largest_step:
            break
    choices = {group: choice_of_bits(bits) for group, bits in best.items()} | {head: head_choice}
    name = f"uniform {best_size.bpw:.2f}"
    return Candidate(name=name, choices=choices, size_bytes=best_size.size_bytes, bpw=best_size.bpw)


class _Ladder:
    """The strategy over one model and one set of rates; a limit is in bits of padded weights, scales not counted."""

    def __init__(self, inventory: Inventory, rates: tuple[float, ...]) -> None:
        self.rates = rates
        self.bundles = _promotion_order(inventory)
        self.groups = tuple(group.id for group in inventory.groups)
        self.numel = sum(bundle.numel for bundle in self.bundles)
        gaps = [high - low for low, high in pairwise(rates)]
        self.largest_step = math.ceil(max(gaps, default=0) * max(bundle.numel for bundle in self.bundles))

    def overhead_bits(self, sizes: SizeModel) -> int:
        """Bits that all groups take beyond their weights, whatever their rates."""
        groups_bytes = sum(sizes.group_bytes(group, self.rates[0]) for group in self.groups)
        return math.ceil(8 * groups_bytes - self.numel * self.rates[0])

    def quants(self, start: int, stop: int, hq: int = 0) -> Iterator[tuple[int, dict[str, float]]]:
        """Limit and bits by group of the strategy's quants for limits from `start` to `stop`, ascending."""
        step = math.ceil(self.numel * _SCAN_STEP_BPW)
        limit = max(start, math.ceil(self.numel * self.rates[0]))
        while True:
            limit = min(limit, stop)
            bits, following = self.climb(_floor(self.rates, limit / self.numel), limit, hq)
            yield limit, bits
            if limit >= stop:
                return
            limit = max(math.ceil(min(following, stop)), limit + step)

    def climb(self, base: float, limit: int, hq: int) -> tuple[dict[str, float], float]:
        """Bits by group within a limit, and the next limit at which another promotion would fit."""
        level = [base] * len(self.bundles)
        used, following = self.numel * base, math.inf
        promoted = True
        while promoted and used < limit:
            promoted = False
            for i, bundle in enumerate(self.bundles):
                cost = (_next(self.rates, level[i]) - level[i]) * bundle.numel
                if cost > 0 and used + cost <= limit:
                    level[i] = _next(self.rates, level[i])
                    used, promoted = used + cost, True
                elif cost > 0:
                    following = min(following, used + cost)
        above = [rate for rate in self.rates if rate > base]
        following = min([following, *(rate * self.numel for rate in above[:1])])
        for i, bundle in enumerate(self.bundles):
            if hq:
                level[i] = max(level[i], _floor(self.rates, base + hq * bundle.hq_bits))
        return {group: level[i] for i, bundle in enumerate(self.bundles) for group in bundle.groups}, following


def _promotion_order(inventory: Inventory) -> list[_Bundle]:
    """Bundles by falling priority, then by distance to the nearer end of the stack, then in forward order."""
    hq_bits = architecture(inventory.architecture).hq_bits
    padded = {spec.key: spec.padded_in * spec.padded_out for spec in inventory.linears}
    members: dict[tuple[int, str], list[Group]] = {}
    for group in inventory.groups:
        members.setdefault((group.layer or 0, _BUNDLES[group.role]), []).append(group)

    def order(item: tuple[tuple[int, str], list[Group]]) -> tuple[int, int, int, int]:
        (layer, bundle), groups = item
        return (
            -_priority(groups[0].role, hq_bits),
            min(layer, inventory.layers - 1 - layer),
            layer,
            _WITHIN_LAYER.index(bundle),
        )

    return [
        _Bundle(
            groups=tuple(group.id for group in groups),
            numel=sum(padded[key] for group in groups for key in group.tensors),
            hq_bits=hq_bits.get(groups[0].role.part, 0),
        )
        for _, groups in sorted(members.items(), key=order)
    ]


def _priority(role: Role, hq_bits: Mapping[str, int]) -> int:
    if role.part != "attn":
        return 0
    return hq_bits.get("attn", 0) + (_LINEAR_PRIORITY if role in _LINEAR_ROLES else _ATTENTION_PRIORITY)


def _floor(rates: Sequence[float], bpw: float) -> float:
    """The highest rate not above bpw, or the lowest of all."""
    return rates[max(bisect_right(rates, bpw) - 1, 0)]


def _next(rates: Sequence[float], rate: float) -> float:
    """The rate above, or the same at the top."""
    return rates[min(bisect_right(rates, rate), len(rates) - 1)]
