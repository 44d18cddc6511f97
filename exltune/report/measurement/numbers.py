"""From a measurement to all that a report shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import ndtri, stdtrit

from exltune.errors import DataError, UsageError
from exltune.report.measurement.additivity import Parts, scored_mixes, uniform_mixes
from exltune.report.measurement.scales import role_order
from exltune.schema.measurement import MeasuredGroup, Measurement, Probe
from exltune.schema.mix import CACHE_K, CACHE_V, REFERENCE
from exltune.schema.recipe import Recipe
from exltune.schema.report import Report, ReportGroup, ReportProbe, RoleLaw
from exltune.search.law.costs import fitted_costs, fitted_laws, nmse
from exltune.search.law.measured_law import measured_law

_MIB = 1 << 20
_CONFIDENCE = 0.95
_FP16_BYTES = 2


@dataclass(frozen=True)
class MixLaw:
    """The law over whole mixes. exponents: gamma * q by role; klds: unit id -> choice -> nats/token of its swap."""

    gamma: float
    exponents: Mapping[str, float]
    klds: Mapping[str, Mapping[str, float]]


def report_of(measurement: Measurement, source: Path, recipe: Recipe | None) -> Report:
    """All numbers of a report. recipe: whose search scored further mixes. Raises: DataError naming the group."""
    _check(measurement, source)
    detail = measurement.exltune
    law, notes = _mix_law(measurement)
    groups = _groups(measurement)
    parts = Parts(measurement, groups, law.klds if law else {}, law.gamma if law else None)
    scored, missing = scored_mixes(parts, recipe)
    return Report(
        measurement=str(source),
        architecture=measurement.arch_string,
        level=detail.level,
        base=detail.base,
        base_bpw=measurement.base.bpw,
        codebook=detail.codebook,
        head_choice=detail.head_choice,
        head_bits=detail.head_bits,
        quants=detail.quants,
        quant_sha256=detail.quant_sha256,
        data=detail.data,
        provenance=detail.provenance,
        widths=_widths(detail.groups),
        groups=groups,
        wider=tuple(_group(unit, detail.base, None) for unit in detail.wider if _telling(unit)),
        laws=_laws(groups, law),
        gamma=None if law is None else law.gamma,
        mixes=(*uniform_mixes(parts), *scored),
        notes=(*notes, *missing, *_remarks(measurement)),
    )


def _check(measurement: Measurement, source: Path) -> None:
    groups = measurement.exltune.groups
    if not any(map(_telling, groups)):
        raise DataError("the measurement has no probes: exltune.groups", where=str(source), fix="Measure again")
    for group in (*groups, *measurement.exltune.wider):
        odd = [probe.choice for probe in group.probes if not np.isfinite(probe.kld_nats)]
        if odd:
            raise DataError(
                f"kld_nats of {group.id} at {', '.join(odd)} bits is not a finite number",
                where=str(source),
                fix="Measure again",
            )


def _mix_law(measurement: Measurement) -> tuple[MixLaw | None, tuple[str, ...]]:
    try:
        units, surrogate = measured_law(measurement)
    except UsageError as error:
        return None, (f"Whole mixes have no law and no gamma here: {error.what}",)
    gamma = surrogate.gamma
    klds = {
        unit.id: dict(zip((option.choice for option in unit.options), (energies**gamma).tolist(), strict=True))
        for unit, energies in zip(units.units, surrogate.energies(), strict=True)
    }
    return MixLaw(gamma, surrogate.exponents(), klds), ()


def _groups(measurement: Measurement) -> tuple[ReportGroup, ...]:
    """The groups with the law of their swaps."""
    detail = measurement.exltune
    widths = sorted({probe.bits for group in detail.groups for probe in _telling(group)})
    laws, table = fitted_laws(measurement, widths), fitted_costs(measurement, widths)
    found = []
    for unit in detail.groups:
        klds = {bits: table.base_kld + cost for bits, cost in table.costs[unit.id].items()}
        made = _group(unit, detail.base, klds if unit.probes else None)
        found.append(made.model_copy(update={"scale": laws[unit.id].scale, "exponent": laws[unit.id].exponent}))
    return tuple(found)


def _group(unit: MeasuredGroup, base: str, law: Mapping[float, float] | None) -> ReportGroup:
    """law: KL(reference‖mix) by bits."""
    return ReportGroup(
        **unit.as_fields,
        row=_row(unit),
        law_klds=dict(law or {}),
        probes=tuple(
            _probe(probe, unit, base, law or {}) for probe in sorted(_telling(unit), key=lambda probe: probe.bits)
        ),
    )


def _telling(unit: MeasuredGroup) -> list[Probe]:
    """Its probes but for those of the reference's own weights, whose KL(reference‖mix) is 0 by definition."""
    return [probe for probe in unit.probes if not probe.of_reference]


def _row(unit: MeasuredGroup) -> str:
    """`3.attn.k` -> `attn.k`: a layer may have several groups of one role."""
    layer, _, rest = unit.id.partition(".")
    return rest if rest and layer == str(unit.layer) else str(unit.role)


def _probe(probe: Probe, unit: MeasuredGroup, base: str, law: Mapping[float, float]) -> ReportProbe:
    saved = _FP16_BYTES * unit.numel - probe.size_bytes
    cache = str(unit.role) in (CACHE_K, CACHE_V)
    return ReportProbe(
        choice=probe.choice,
        bits=probe.bits,
        size_bytes=probe.size_bytes,
        kld_nats=probe.kld_nats,
        ci95=interval(probe),
        relative_error=None if cache else float(np.sqrt(nmse(probe.bits))),
        law_kld=law.get(probe.bits),
        kld_per_mib=probe.kld_nats / saved * _MIB if base == REFERENCE and saved > 0 else None,
        estimated=probe.estimated,
    )


def interval(probe: Probe) -> tuple[float, float] | None:
    """95 % interval of a probe's KL(reference‖mix): the recorded one, else Student's t over its rows, else normal.

    KL(reference‖mix) is never negative, and so the interval is not; None where no standard error is known.
    """
    if probe.kld_ci95_nats is not None:
        return probe.kld_ci95_nats
    if not np.isfinite(probe.kld_se_nats):
        return None
    tail = 0.5 + _CONFIDENCE / 2
    rows = len(probe.kld_rows)
    half = probe.kld_se_nats * float(stdtrit(rows - 1, tail) if rows > 1 else ndtri(tail))
    return max(probe.kld_nats - half, min(probe.kld_nats, 0.0)), probe.kld_nats + half


def _laws(groups: Sequence[ReportGroup], law: MixLaw | None) -> tuple[RoleLaw, ...]:
    found = []
    for role in sorted({group.role for group in groups if group.probes}, key=role_order):
        units = [group for group in groups if group.role == role and group.probes]
        off = [np.log(probe.over_law) for unit in units for probe in unit.probes if probe.over_law is not None]
        found.append(
            RoleLaw(
                role=role,
                groups=len(units),
                exponent=units[0].exponent or 0.0,
                scale=float(np.median([unit.scale or 0.0 for unit in units])),
                log_error=float(np.sqrt(np.mean(np.square(off)))) if off else 0.0,
                mix_exponent=None if law is None else law.exponents[role],
            )
        )
    return tuple(found)


def _widths(groups: Sequence[MeasuredGroup]) -> tuple[str, ...]:
    bits = {probe.choice: probe.bits for group in groups for probe in _telling(group)}
    return tuple(sorted(bits, key=lambda choice: (bits[choice], choice)))


def _remarks(measurement: Measurement) -> list[str]:
    detail = measurement.exltune
    units, reference = (*detail.groups, *detail.wider), detail.provenance.reference
    remarks = [] if reference is None else [reference.told]
    own = sorted({probe.bits for unit in units for probe in unit.probes if probe.of_reference})
    if own:
        remarks.append(
            f"Swaps to {', '.join(f'{bits:g}' for bits in own)} bits that put in the reference's own weights are not "
            "shown: their KL(ref‖mix) is 0 by definition, which does not say that these bits lose nothing"
        )
    if detail.base != REFERENCE:
        remarks.append(
            f"Swaps are on the base quant {detail.base} and not on the unquantized model: every KL(ref‖mix) here "
            f"holds that of the base, {measurement.base_kld:.6g} nats/token"
        )
    floor = sum(probe.kld_nats <= 0 for unit in units for probe in _telling(unit))
    if floor:
        remarks.append(f"{floor} swaps have a KL(ref‖mix) of zero or below; on log scales they lie at the lower edge")
    guessed = sum(probe.estimated for unit in units for probe in unit.probes)
    if guessed:
        remarks.append(
            f"{guessed} swaps were not scored but estimated: hollow in the plots, with a ~ in maps and tables"
        )
    if not detail.wider:
        remarks.append("Head and cache were not swapped in this measurement")
    return remarks
