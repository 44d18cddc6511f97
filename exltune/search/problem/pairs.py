"""Pairs of groups that exllamav3 runs in one kernel where their bits are equal: k and v, gate and up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from exltune.budget import SizeModel
from exltune.inventory import groups_at_level
from exltune.schema.inventory import Inventory, LinearSpec, Unit
from exltune.schema.measurement import MeasuredGroup, Measurement, Probe

#: With the codebook mul1, linears at least so wide with fewer bits are faster apart (the bits: 7 on some cards).
_WIDE, _APART_BELOW = 8192, 6
_CONFIDENCE_95 = 1.96


def kept_whole(measurement: Measurement, inventory: Inventory) -> Measurement:
    """The measurement with pairs that were swapped apart as one unit; KL(reference‖mix) of their swaps is added up.

    Their errors are added too, as the same rows make both. exllamav3's own form within the file stays as it is.
    """
    pairs = {member: part for part in groups_at_level(inventory, 3) for member in part.members}
    units: dict[str, list[MeasuredGroup]] = {}
    for unit in measurement.exltune.groups:
        names = {pairs[member].id if member in pairs else unit.id for member in unit.members}
        units.setdefault(names.pop() if len(names) == 1 else unit.id, []).append(unit)
    groups = tuple(some[0] if len(some) == 1 else _joined(pairs[some[0].id], some) for some in units.values())
    return measurement.model_copy(update={"exltune": measurement.exltune.model_copy(update={"groups": groups})})


def _joined(pair: Unit, units: Sequence[MeasuredGroup]) -> MeasuredGroup:
    by_choice = [{probe.choice: probe for probe in unit.probes} for unit in units]
    shared = [choice for choice in by_choice[0] if all(choice in probes for probes in by_choice)]
    probes = tuple(_added([probes[choice] for probes in by_choice]) for choice in shared)
    return MeasuredGroup(**pair.as_fields, probes=probes)


def _added(probes: Sequence[Probe]) -> Probe:
    if all(probe.of_reference for probe in probes):
        return probes[0].model_copy(update={"size_bytes": sum(probe.size_bytes for probe in probes)})
    kld, se = sum(probe.kld_nats for probe in probes), sum(probe.kld_se_nats for probe in probes)
    return Probe(
        choice=probes[0].choice,
        bits=probes[0].bits,
        size_bytes=sum(probe.size_bytes for probe in probes),
        kld_nats=kld,
        kld_se_nats=se,
        kld_rows=(),
        estimated=True,
        kld_ci95_nats=(kld - _CONFIDENCE_95 * se, kld + _CONFIDENCE_95 * se),
    )


def unfused(bits: Mapping[str, float], sizes: SizeModel) -> dict[str, tuple[int, ...]]:
    """Layers where the two of a pair differ in bits and so give up a kernel, by the pair's name (attn.kv).

    bits: of every group, by id. With equal bits exllamav3 runs k and v as one product, with q of the same bits too, and
    gate and up likewise; a shared expert then also runs as one expert of its own. It never joins linears with a bias,
    nor wide ones of few bits in the codebook mul1, whose separate kernel is the faster one.
    Source: exllamav3 1.6.5, modules/attn.py (multi_kv, multi_qkv), modules/mlp.py (multi_gu), model/config.py
    (use_mgemm) and exllamav3_ext/libtorch/blocksparse_mlp.cpp (sh_coop).
    """
    specs = {spec.key: spec for spec in sizes.inventory.linears}
    keys = {group.id: group.tensors for group in sizes.inventory.groups}
    found: dict[str, list[int]] = {}
    for part in groups_at_level(sizes.inventory, 3):
        widths = {bits[member] for member in part.members}
        linears = [specs[key] for member in part.members for key in keys[member]]
        if len(widths) > 1 and _would_fuse(str(part.role), linears, max(widths), sizes.codebook):
            found.setdefault(str(part.role), []).append(part.layer or 0)
    return {role: tuple(layers) for role, layers in found.items()}


def _would_fuse(role: str, linears: Sequence[LinearSpec], bits: float, codebook: str) -> bool:
    """Whether a pair of these bits would share a kernel."""
    if any(spec.bias for spec in linears) or len({spec.padded_out for spec in linears}) > 1:
        return False
    narrow = all(spec.padded_out < _WIDE for spec in linears)
    return role.startswith("shared.") or narrow or bits >= _APART_BELOW or codebook != "mul1"
