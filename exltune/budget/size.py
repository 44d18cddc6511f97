"""Exact bytes and bits per weight of a mix, as exllamav3 counts them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from exltune.errors import BudgetError, UsageError
from exltune.exl3.codebooks import Codebook
from exltune.schema.inventory import Inventory, LinearSpec
from exltune.schema.mix import UNQUANTIZED_BITS, MixSize

_MARKER_BYTES = {"mcg": 4, "mul1": 4, "3inst": 0}


def linear_bytes(spec: LinearSpec, bits: float, codebook: Codebook) -> int:
    """Bytes of all stored tensors of one linear: trellis, suh, svh, codebook marker and bias; at 16 fp16 weights.

    Source: exllamav3 1.6.5, modules/quant/exl3.py (LinearEXL3.get_tensors); DESIGN.md section 6.
    """
    if bits == UNQUANTIZED_BITS:
        return 2 * spec.in_features * spec.out_features + 2 * spec.out_features * spec.bias
    scales = 2 * (spec.padded_in + spec.padded_out)
    bias = 2 * spec.padded_out * spec.bias
    return int(_padded_numel(spec) * bits) // 8 + scales + _MARKER_BYTES[codebook] + bias


@dataclass(frozen=True)
class _Weights:
    """Linears that share one bit width, summed up. Sizes in bytes, numel with dims padded to 128."""

    numel: int
    overhead_bytes: int
    fp16_bytes: int

    def payload_bytes(self, bits: float) -> int:
        return self.fp16_bytes if bits == UNQUANTIZED_BITS else int(self.numel * bits) // 8

    def bytes_at(self, bits: float) -> int:
        return self.payload_bytes(bits) + (0 if bits == UNQUANTIZED_BITS else self.overhead_bytes)


class SizeModel:
    """Sizes of groups and mixes of one model under one codebook; made once, then cheap to ask."""

    def __init__(self, inventory: Inventory, codebook: Codebook) -> None:
        specs = {spec.key: spec for spec in inventory.linears}
        self.inventory, self.codebook = inventory, codebook
        self._weights = {
            group.id: _sum_up((specs[key] for key in group.tensors), codebook)
            for group in (*inventory.groups, inventory.head)
        }
        routers = [spec for spec in inventory.linears if spec.role.fp16]
        self._router_bytes = sum(linear_bytes(spec, UNQUANTIZED_BITS, codebook) for spec in routers)
        groups_numel = sum(self._weights[group.id].numel for group in inventory.groups)
        self._bpw_numel = groups_numel + sum(spec.in_features * spec.out_features for spec in routers)

    def group_bytes(self, group_id: str, bits: float) -> int:
        """Bytes of a group's tensors at a bit width; `head` names the head."""
        return self._weights[group_id].bytes_at(bits)

    def mix_size(self, bits_by_group: Mapping[str, float]) -> MixSize:
        """Size of a mix; `bits_by_group` names every group and `head`."""
        head = self.inventory.head.id
        group_bytes = sum(self.group_bytes(group.id, bits_by_group[group.id]) for group in self.inventory.groups)
        head_bytes = self.group_bytes(head, bits_by_group[head])
        payload = sum(weights.payload_bytes(bits_by_group[name]) for name, weights in self._weights.items())
        size_bytes = group_bytes + self._router_bytes + head_bytes
        return MixSize(
            size_bytes=size_bytes,
            bpw=self.bpw_of(group_bytes),
            head_bpw=8 * head_bytes / self._weights[head].numel,
            overhead_bytes=size_bytes - payload,
        )

    def uniform_size(self, bits: float, head_bits: float) -> MixSize:
        """Size of the plain quant that takes one bit width for all groups."""
        return self.mix_size({**{group.id: bits for group in self.inventory.groups}, self.inventory.head.id: head_bits})

    def bpw_of(self, group_bytes: int) -> float:
        """bpw of a model whose groups take that many bytes; fp16 routers are added, the head does not count."""
        return 8 * (group_bytes + self._router_bytes) / self._bpw_numel

    def budget_bytes(self, target_bpw: float) -> int:
        """Bytes that the groups together may take at a target; may be negative for an impossible one."""
        # A thousandth of a byte against the rounding of a bpw that was computed from bytes.
        return math.floor(target_bpw * self._bpw_numel / 8 + 1e-3) - self._router_bytes

    def check_target(self, target_bpw: float, available_bits: Iterable[float]) -> int:
        """`budget_bytes` of a target that some mix of the available bit widths can meet.

        Raises: BudgetError naming the smallest and the largest possible bpw, UsageError for no number.
        """
        if not math.isfinite(target_bpw):
            raise UsageError(f"a target of {target_bpw:g} bpw is not a size", fix="Give a number such as 3.15")
        widths = sorted(available_bits)
        low, high = self.groups_bytes(widths[0]), self.groups_bytes(widths[-1])
        budget = self.budget_bytes(target_bpw)
        if low <= budget <= high:
            return budget
        side = "below the smallest" if budget < low else "above the largest"
        smallest, largest = math.ceil(1e3 * self.bpw_of(low)) / 1e3, math.floor(1e3 * self.bpw_of(high)) / 1e3
        raise BudgetError(
            f"a target of {target_bpw:g} bpw is {side} possible",
            fix=f"With base quants at {', '.join(f'{bits:g}' for bits in widths)} bits this model can have "
            f"{smallest:.3f} to {largest:.3f} bpw, scales and router gates included",
        )

    def groups_bytes(self, bits: float) -> int:
        """Bytes of all groups at one bit width."""
        return sum(self.group_bytes(group.id, bits) for group in self.inventory.groups)


def mix_size(inventory: Inventory, bits_by_group: Mapping[str, float], codebook: Codebook) -> MixSize:
    """Size of one mix; see SizeModel, which is cheaper for many."""
    return SizeModel(inventory, codebook).mix_size(bits_by_group)


def group_bytes(inventory: Inventory, group_id: str, bits: float, codebook: Codebook) -> int:
    """Bytes of one group's tensors; see SizeModel, which is cheaper for many."""
    return SizeModel(inventory, codebook).group_bytes(group_id, bits)


def _padded_numel(spec: LinearSpec) -> int:
    return spec.padded_in * spec.padded_out


def _sum_up(specs: Iterable[LinearSpec], codebook: Codebook) -> _Weights:
    # Hundreds of experts have one shape: each is computed once.
    alike: dict[tuple[int, int, bool], list[LinearSpec]] = {}
    for spec in specs:
        alike.setdefault((spec.in_features, spec.out_features, spec.bias), []).append(spec)
    return _Weights(
        numel=sum(len(same) * _padded_numel(same[0]) for same in alike.values()),
        overhead_bytes=sum(len(same) * linear_bytes(same[0], 0, codebook) for same in alike.values()),
        fp16_bytes=sum(len(same) * linear_bytes(same[0], UNQUANTIZED_BITS, codebook) for same in alike.values()),
    )
