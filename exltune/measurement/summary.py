"""From scored swaps to the measurement file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from exltune.budget import SizeModel
from exltune.exl3.codebooks import Codebook
from exltune.measurement.estimates import EstimatedSwaps, Kld, ScoredSwaps, known_swaps
from exltune.measurement.probes import SwapUnit, swap_units
from exltune.measurement.reference import QuantReference
from exltune.metrics import mean_and_se
from exltune.schema.evaluation import MethodRow
from exltune.schema.inventory import Inventory
from exltune.schema.measurement import (
    LegacyCandidate,
    LegacyGroup,
    MeasuredGroup,
    Measurement,
    MeasurementDetail,
    Probe,
    QuantRef,
    SwapLawFit,
    TensorSaliency,
)
from exltune.schema.mix import REFERENCE, Choice
from exltune.schema.provenance import Provenance
from exltune.schema.score import Score
from exltune.schema.tokens import DataOptions


@dataclass(frozen=True)
class QuantSizes:
    """A base quant: where it lies, its bits, content hash, bpw, total bytes, and the bytes of each group."""

    choice: Choice
    path: Path
    sha256: str
    bits: float
    bpw: float
    size_bytes: int
    group_bytes: Mapping[str, int]


@dataclass(frozen=True)
class QuantHead:
    """Where the default head comes from, its bits there, and the codebook of all quants.

    all: bits of the head in every base quant, by choice.
    """

    choice: Choice
    bits: float
    codebook: str
    all: Mapping[Choice, float] = field(default_factory=dict)

    @property
    def distinct(self) -> dict[Choice, float]:
        """One base quant for every bit width of the head, the default one where it has it; ascending in bits."""
        by_bits = {bits: choice for choice, bits in reversed(list(self.all.items()))} | {self.bits: self.choice}
        return {choice: bits for bits, choice in sorted(by_bits.items())}


def summarize(
    inventory: Inventory,
    level: int,
    quants: list[QuantSizes],
    head: QuantHead,
    scores: Mapping[str, Score],
    data: DataOptions,
    provenance: Provenance,
    tensors: tuple[TensorSaliency, ...] = (),
    reference: QuantReference | None = None,
) -> Measurement:
    """The measurement from the scores of a plan's mixes, by mix name; quants ascend in bits; tensors: at level 4.

    reference: as a quant, if it is one.

    Where a swap is missing, or has fewer rows than others, all follow from the law of swaps and are marked estimated.
    """
    units = swap_units(inventory, level, {quant.choice: quant.bits for quant in quants}, head.distinct)
    swaps = known_swaps(units, scores, reference)
    parts = [unit for unit in units if unit.layer is not None]
    groups = tuple(_measured(unit, quants, swaps) for unit in parts)
    keys = {group.id: group.tensors for group in inventory.groups}
    lowest = scores[f"uniform@{quants[0].choice}"]
    return Measurement(
        base=QuantRef(dir=str(quants[0].path), bpw=quants[0].bpw),
        alts=tuple(QuantRef(dir=str(quant.path), bpw=quant.bpw) for quant in quants[1:]),
        groups=tuple(
            LegacyGroup(
                idx=index,
                layers=tuple(key for member in group.members for key in keys[member]),
                candidates=_legacy_candidates(group, unit, swaps),
            )
            for index, (group, unit) in enumerate(zip(groups, parts, strict=True))
        ),
        base_kld=mean_and_se(lowest.kl_ref_mix, lowest.positions).mean,
        arch_string=inventory.architecture,
        exltune=MeasurementDetail(
            level=level,
            base=REFERENCE,
            quants={quant.choice: str(quant.path) for quant in quants},
            quant_sha256={quant.choice: quant.sha256 for quant in quants},
            head_choice=head.choice,
            head_bits=head.bits,
            heads=dict(head.all),
            codebook=head.codebook,
            data=data,
            groups=groups,
            wider=_wider(inventory, head, units[len(parts) :], swaps),
            mixes=tuple(_method_row(quant, scores.get(f"uniform@{quant.choice}")) for quant in quants),
            law=_law(swaps),
            tensors=tensors,
            provenance=provenance,
        ),
    )


def _wider(
    inventory: Inventory, head: QuantHead, units: Sequence[SwapUnit], swaps: ScoredSwaps | EstimatedSwaps
) -> tuple[MeasuredGroup, ...]:
    """Head and cache as measured groups; a head has its bytes, the cache's depend on the context."""
    sizes, group = SizeModel(inventory, cast(Codebook, head.codebook)), inventory.head
    found = []
    for unit in units:
        of_head = unit.id == group.id
        size = {bits: sizes.group_bytes(group.id, bits) if of_head else 0 for bits in unit.bits}
        found.append(
            MeasuredGroup(
                **unit.as_fields,
                probes=tuple(
                    _probe(choice, bits, size[bits], swaps.kld(unit, choice))
                    for choice, bits in zip(unit.choices, unit.bits, strict=True)
                ),
            )
        )
    return tuple(found)


def _measured(unit: SwapUnit, quants: list[QuantSizes], swaps: ScoredSwaps | EstimatedSwaps) -> MeasuredGroup:
    probes = tuple(
        _probe(
            quant.choice,
            quant.bits,
            sum(quant.group_bytes[member] for member in unit.members),
            swaps.kld(unit, quant.choice),
        )
        for quant in quants
    )
    return MeasuredGroup(**unit.as_fields, probes=probes)


def _probe(choice: Choice, bits: float, size_bytes: int, kld: Kld) -> Probe:
    return Probe(
        choice=choice,
        bits=bits,
        size_bytes=size_bytes,
        kld_nats=kld.mean,
        kld_se_nats=kld.se,
        kld_rows=kld.rows,
        estimated=kld.ci95 is not None,
        kld_ci95_nats=kld.ci95,
        of_reference=kld.same,
    )


def _legacy_candidates(
    group: MeasuredGroup, unit: SwapUnit, swaps: ScoredSwaps | EstimatedSwaps
) -> tuple[LegacyCandidate, ...]:
    """exllamav3 swaps upward from the lowest quant; ours swap downward from the reference, so theirs is an estimate."""
    lowest, *others = group.probes
    return tuple(
        LegacyCandidate(
            dkld=probe.kld_nats - lowest.kld_nats,
            dbits=8 * (probe.size_bytes - lowest.size_bytes),
            estimated=True,
            dkld_ci95=swaps.dkld_ci95(unit, lowest.choice, probe.choice),
        )
        for probe in others
    )


def _law(swaps: ScoredSwaps | EstimatedSwaps) -> SwapLawFit | None:
    if isinstance(swaps, ScoredSwaps):
        return None
    router_b, kappa = swaps.law.router_law
    return SwapLawFit(router_b=router_b, router_kappa=kappa, swaps=swaps.scored)


def _method_row(quant: QuantSizes, score: Score | None) -> MethodRow:
    """A base quant as a whole, scored or not."""
    kld = None if score is None else mean_and_se(score.kl_ref_mix, score.positions)
    return MethodRow(
        name=f"uniform@{quant.choice}",
        size_bytes=quant.size_bytes,
        bpw=quant.bpw,
        kl_ref_quant=None if kld is None else kld.mean,
        kl_ref_quant_se=None if kld is None else kld.se,
    )
