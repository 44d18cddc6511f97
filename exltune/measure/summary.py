"""From scored swaps to the measurement file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

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
from exltune.schema.mix import REFERENCE, Choice
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
    """Where the head comes from, its bits there, and the codebook of all quants."""

    choice: Choice
    bits: float
    codebook: str


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
            codebook=head.codebook,
            data=data,
            groups=groups,
            mixes=mixes,
            provenance=provenance,
        ),
    )


def _measured(part: Part, quants: list[QuantSizes], scores: Mapping[str, Score]) -> MeasuredGroup:
    probes = tuple(_probe(part, quant, scores[probe_name(part.id, quant.choice)]) for quant in quants)
    return MeasuredGroup(
        id=part.id, members=part.members, role=part.role, layer=part.layer, numel=part.numel, probes=probes
    )


def _probe(part: Part, quant: QuantSizes, score: Score) -> Probe:
    kld = mean_and_se(score.kl_ref_mix, score.positions)
    return Probe(
        choice=quant.choice,
        bits=quant.bits,
        size_bytes=sum(quant.group_bytes[member] for member in part.members),
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
