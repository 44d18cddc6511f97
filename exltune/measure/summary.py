"""From scored swaps to the measurement file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from exltune.budget import SizeModel
from exltune.exl3.codebooks import Codebook
from exltune.inventory import groups_at_level
from exltune.measure.probes import probe_name
from exltune.metrics import mean_and_se, row_means
from exltune.schema.evaluation import MethodRow
from exltune.schema.inventory import Inventory, Part
from exltune.schema.measurement import (
    LegacyCandidate,
    LegacyGroup,
    MeasuredGroup,
    Measurement,
    MeasurementDetail,
    Probe,
    QuantRef,
)
from exltune.schema.mix import CACHE_CHOICES, CACHE_K, CACHE_V, REFERENCE, Choice
from exltune.schema.provenance import Provenance
from exltune.schema.score import Score
from exltune.schema.tokens import DataSettings


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
    data: DataSettings,
    provenance: Provenance,
) -> Measurement:
    """The measurement from the scores of all probes and uniform mixes, by mix name; quants ascend in bits."""
    parts = groups_at_level(inventory, level)
    groups = tuple(_measured(part, quants, scores) for part in parts)
    tensors = {group.id: group.tensors for group in inventory.groups}
    mixes = tuple(_method_row(quant, scores[f"uniform@{quant.choice}"]) for quant in quants)
    lowest = scores[f"uniform@{quants[0].choice}"]
    return Measurement(
        base=QuantRef(dir=str(quants[0].path), bpw=quants[0].bpw),
        alts=tuple(QuantRef(dir=str(quant.path), bpw=quant.bpw) for quant in quants[1:]),
        groups=tuple(
            LegacyGroup(
                idx=index,
                layers=tuple(key for member in group.members for key in tensors[member]),
                candidates=_legacy_candidates(group),
            )
            for index, group in enumerate(groups)
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
            wider=_wider(inventory, head, scores),
            mixes=mixes,
            provenance=provenance,
        ),
    )


def _wider(inventory: Inventory, head: QuantHead, scores: Mapping[str, Score]) -> tuple[MeasuredGroup, ...]:
    """Head and cache as measured groups; a head has its bytes, the cache's depend on the context."""
    sizes, group = SizeModel(inventory, cast(Codebook, head.codebook)), inventory.head
    heads = [(choice, bits, sizes.group_bytes(group.id, bits)) for choice, bits in head.distinct.items()]
    cache = [(choice, float(choice), 0) for choice in CACHE_CHOICES if choice != REFERENCE]
    found = [MeasuredGroup(id=group.id, members=(group.id,), role=group.role, layer=None, numel=group.numel, probes=())]
    found += [MeasuredGroup(id=k, members=(k,), role=k, layer=None, numel=0, probes=()) for k in (CACHE_K, CACHE_V)]
    return tuple(
        unit.model_copy(
            update={"probes": tuple(_probe(*option, scores[probe_name(unit.id, option[0])]) for option in options)}
        )
        for unit, options in zip(found, (heads, cache, cache), strict=True)
    )


def _measured(part: Part, quants: list[QuantSizes], scores: Mapping[str, Score]) -> MeasuredGroup:
    probes = tuple(
        _probe(
            quant.choice,
            quant.bits,
            sum(quant.group_bytes[member] for member in part.members),
            scores[probe_name(part.id, quant.choice)],
        )
        for quant in quants
    )
    return MeasuredGroup(
        id=part.id, members=part.members, role=part.role, layer=part.layer, numel=part.numel, probes=probes
    )


def _probe(choice: Choice, bits: float, size_bytes: int, score: Score) -> Probe:
    kld = mean_and_se(score.kl_ref_mix, score.positions)
    return Probe(
        choice=choice,
        bits=bits,
        size_bytes=size_bytes,
        kld_nats=kld.mean,
        kld_se_nats=kld.se,
        kld_rows=tuple(row_means(score.kl_ref_mix, score.positions).tolist()),
    )


def _legacy_candidates(group: MeasuredGroup) -> tuple[LegacyCandidate, ...]:
    """exllamav3 swaps upward from the lowest quant; ours swap downward from the reference, so theirs is an estimate."""
    lowest, *others = group.probes
    return tuple(
        LegacyCandidate(
            dkld=probe.kld_nats - lowest.kld_nats,
            dbits=8 * (probe.size_bytes - lowest.size_bytes),
            estimated=True,
        )
        for probe in others
    )


def _method_row(quant: QuantSizes, score: Score) -> MethodRow:
    kld = mean_and_se(score.kl_ref_mix, score.positions)
    return MethodRow(
        name=f"uniform@{quant.choice}",
        size_bytes=quant.size_bytes,
        bpw=quant.bpw,
        kl_ref_quant=kld.mean,
        kl_ref_quant_se=kld.se,
    )
