"""Bytes of a quant's linears, layer by layer: of bits per group, of an average, of a finished directory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from exltune.budget.directory import stored_bytes
from exltune.budget.memory.profile import ModelProfile
from exltune.budget.size import linear_bytes
from exltune.errors import UsageError
from exltune.exl3.codebooks import HALF_BITS, INTEGER_BITS
from exltune.exl3.directory import QuantDir
from exltune.schema.inventory import Inventory, LinearSpec, Role
from exltune.schema.mix import UNQUANTIZED_BITS

#: The least and the most bits of an EXL3 tensor.
LOWEST_BITS, HIGHEST_BITS = 1.0, 8.0
_EXPERTS = (Role.EXPERTS_GATE_UP, Role.EXPERTS_DOWN)


@dataclass(frozen=True)
class Weights:
    """layers: bytes of all linears of each layer, router included; experts: bytes of routed experts among these."""

    layers: tuple[int, ...]
    experts: tuple[int, ...]
    head: int

    @property
    def total(self) -> int:
        """Bytes as exllamav3's get_storage_info counts them: linears and head."""
        return sum(self.layers) + self.head


def spread_bits(profile: ModelProfile, bits: float, head_bits: float) -> Weights:
    """The quant whose every weight takes the same bits; between two bit widths that is the average, spread evenly."""
    return mix_weights(profile, dict.fromkeys((group.id for group in profile.inventory.groups), bits), head_bits)


def mix_weights(profile: ModelProfile, bits: Mapping[str, float], head_bits: float) -> Weights:
    """A mix: group id -> bits."""
    size = profile.sizes.group_bytes
    experts = tuple(sum(size(name, bits[name]) for name in layer.experts) for layer in profile.layers)
    layers = tuple(layer.fp16_bytes + sum(size(name, bits[name]) for name in layer.groups) for layer in profile.layers)
    return Weights(layers, experts, size(profile.inventory.head.id, head_bits))


def linear_weights(profile: ModelProfile, bits: Mapping[str, float], head_bits: float) -> Weights:
    """A recipe: module key -> bits of every linear of the groups, which may differ within a group."""
    sizes = {
        spec.key: linear_bytes(spec, bits.get(spec.key, UNQUANTIZED_BITS), profile.sizes.codebook)
        for spec in profile.inventory.linears
        if spec.role is not Role.HEAD
    }
    return _summed(profile.inventory, sizes, profile.sizes.group_bytes(profile.inventory.head.id, head_bits))


def directory_weights(inventory: Inventory, quant: QuantDir) -> Weights:
    """Bytes of an EXL3 directory, exact. Raises: MissingTensorError."""
    sizes = {spec.key: stored_bytes(spec, quant) for spec in inventory.linears}
    head = sum(sizes[spec.key] for spec in inventory.linears if spec.role is Role.HEAD)
    return _summed(inventory, sizes, head)


def group_bytes(profile: ModelProfile, weights: Weights) -> int:
    """Bytes of the groups alone: without routers, gates and head."""
    return sum(weights.layers) - sum(layer.fp16_bytes for layer in profile.layers)


def bpw_of(profile: ModelProfile, weights: Weights) -> float:
    """exllamav3's bpw: all linears but the head, scales and fp16 routers included, over their weights."""
    return profile.sizes.bpw_of(group_bytes(profile, weights))


def weights_of_bits(profile: ModelProfile, bits: float, head_bits: float) -> Weights:
    """A uniform quant where EXL3 has that bit width; else an average of `bits` bpw, spread evenly over all weights.

    The average is exllamav3's bpw, scales included; it never takes less than the uniform quant of the width below, so
    that more bits never take fewer bytes.
    Raises: UsageError for bits that no EXL3 quant has.
    """
    if bits == UNQUANTIZED_BITS or bits in INTEGER_BITS or (bits in HALF_BITS and profile.sizes.codebook == "mul1"):
        return spread_bits(profile, bits, head_bits)
    if not (math.isfinite(bits) and LOWEST_BITS <= bits <= HIGHEST_BITS):
        raise UsageError(f"`bits` {bits:g} do not exist", fix="Give 1 to 8, an average such as 3.15, or 16")
    widths = (*INTEGER_BITS, *(HALF_BITS if profile.sizes.codebook == "mul1" else ()))
    below = max(width for width in widths if width < bits)
    spread = _bits_of_bpw(profile, bits)
    return spread_bits(profile, min(max(below, spread), HIGHEST_BITS), head_bits)


def _bits_of_bpw(profile: ModelProfile, bpw: float) -> float:
    """Bits of every weight at an average, so that the sum of whole bytes is not above it."""
    names = [group.id for group in profile.inventory.groups]
    overhead = sum(profile.sizes.group_bytes(name, 0) for name in names)
    eight_bits = sum(profile.sizes.group_bytes(name, HIGHEST_BITS) for name in names)
    return HIGHEST_BITS * (profile.sizes.budget_bytes(bpw) - overhead) / (eight_bits - overhead)


def _summed(inventory: Inventory, sizes: Mapping[str, int], head: int) -> Weights:
    layers, experts = [0] * inventory.layers, [0] * inventory.layers
    for spec in inventory.linears:
        if spec.layer is not None:
            layers[spec.layer] += sizes[spec.key]
            experts[spec.layer] += sizes[spec.key] * _is_expert(spec)
    return Weights(tuple(layers), tuple(experts), head)


def _is_expert(spec: LinearSpec) -> bool:
    return spec.role in _EXPERTS
