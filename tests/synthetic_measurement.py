"""A measurement of any model, made up: every unit's swaps follow a power law of their own, with noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from exltune.inventory import groups_at_level
from exltune.schema.evaluation import MethodRow
from exltune.schema.inventory import Inventory, Unit
from exltune.schema.measurement import MeasuredGroup, Measurement, MeasurementDetail, Probe, QuantRef
from exltune.schema.mix import CACHE_K, CACHE_V, REFERENCE, choice_of_bits
from exltune.schema.provenance import Provenance
from exltune.schema.tokens import DataOptions
from exltune.search.law.costs import nmse

CACHE_BITS = (2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)
_NOISE, _GAMMA = 0.05, 0.75
#: KL of all groups at 2 bits, of the head and of each half of the cache at 2 bits; nats/token.
_GROUPS_KLD, _HEAD_KLD, _K_KLD, _V_KLD = 0.7, 0.02, 0.3, 0.2


def synthetic_measurement(
    inventory: Inventory,
    widths: Sequence[float],
    head_bits: Sequence[float],
    *,
    cache_bits: Sequence[float] = CACHE_BITS,
    seed: int = 0,
    level: int = 3,
) -> Measurement:
    """Swaps of every part, the head and both halves of the cache; base quant number i has the i-th of head_bits."""
    rng, parts = np.random.default_rng(seed), groups_at_level(inventory, level)
    heads = {choice_of_bits(width): head_bits[min(number, len(head_bits) - 1)] for number, width in enumerate(widths)}
    at_lowest = rng.lognormal(sigma=1.0, size=len(parts)) * [part.numel**0.5 for part in parts]
    at_lowest *= (_GROUPS_KLD / at_lowest.sum()) * len(at_lowest) ** (1 - _GAMMA)
    groups = tuple(
        _unit(part, {choice_of_bits(width): width for width in widths}, float(kld), rng)
        for part, kld in zip(parts, at_lowest, strict=True)
    )
    by_bits = {bits: choice for choice, bits in reversed(list(heads.items()))}
    own = inventory.head
    head = _unit(own.alone, {choice: bits for bits, choice in sorted(by_bits.items())}, _HEAD_KLD, rng)
    halves = (
        _half(key, kld, cache_bits, rng) for key, kld in ((CACHE_K, _K_KLD), (CACHE_V, _V_KLD)) if len(cache_bits)
    )
    first = next(iter(heads))
    return Measurement(
        base=QuantRef(dir="base", bpw=widths[0]),
        alts=(),
        groups=(),
        base_kld=_GROUPS_KLD,
        arch_string=inventory.architecture,
        exltune=MeasurementDetail(
            level=level,
            base=REFERENCE,
            quants={},
            quant_sha256={},
            head_choice=first,
            head_bits=heads[first],
            codebook="mul1",
            data=DataOptions(),
            groups=groups,
            wider=(head, *halves),
            heads=heads,
            mixes=tuple(_uniform(width, widths[0]) for width in widths),
            provenance=Provenance(exltune_version="0", engine="made up", model_path="model", model_sha256="0"),
        ),
    )


def _unit(part: Unit, bits: dict[str, float], kld: float, rng: np.random.Generator) -> MeasuredGroup:
    """kld: at 2 bits."""
    return MeasuredGroup(
        **part.model_dump(),
        probes=tuple(
            _probe(choice, width, kld * float(nmse(width) / nmse(2.0)) ** _GAMMA, rng) for choice, width in bits.items()
        ),
    )


def _half(key: str, kld: float, bits: Sequence[float], rng: np.random.Generator) -> MeasuredGroup:
    probes = tuple(_probe(choice_of_bits(width), width, kld * 4.0 ** ((2 - width) * _GAMMA), rng) for width in bits)
    return MeasuredGroup(id=key, members=(key,), role=key, layer=None, numel=0, probes=probes)


def _probe(choice: str, bits: float, kld: float, rng: np.random.Generator) -> Probe:
    noisy = kld * float(np.exp(_NOISE * rng.standard_normal()))
    return Probe(choice=choice, bits=bits, size_bytes=0, kld_nats=noisy, kld_se_nats=_NOISE * noisy, kld_rows=())


def _uniform(width: float, lowest: float) -> MethodRow:
    kld = _GROUPS_KLD * float(nmse(width) / nmse(lowest)) ** _GAMMA
    name = f"uniform@{choice_of_bits(width)}"
    return MethodRow(name=name, size_bytes=0, bpw=width, kl_ref_quant=kld, kl_ref_quant_se=0.02 * kld)
