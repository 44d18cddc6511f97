"""`exltune tradeoff`: the cost of a longer context or a better cache, in bpw and KL(ref‖mix)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from exltune.budget import Limits, check_use, model_profile
from exltune.errors import BudgetError, UsageError
from exltune.exl3.codebooks import Codebook
from exltune.exl3.tensors import read_json
from exltune.inventory import read_config
from exltune.report.tradeoff_png import tradeoff_png
from exltune.schema.hardware import FP16_CACHE, CacheBits, SizeUnit, Use
from exltune.schema.measurement import Measurement
from exltune.schema.tradeoff import Tradeoff, TradeoffRow
from exltune.search.space.joint import Joint, Optimum, kv_bytes
from exltune.store.files import refuse_existing_file, write_bytes
from exltune.store.records import read_record

#: Caches that are shown where none are asked for: k,v as people run them, k never below v.
DEFAULT_CACHES = (
    FP16_CACHE,
    *(CacheBits(k=k, v=v) for k, v in ((8, 8), (6, 6), (6, 5), (5, 4), (4, 4), (4, 3), (3, 3), (2, 2))),
)


@dataclass(frozen=True)
class TradeoffOptions:
    """limits: GPUs or VRAM, others may be with them. use.context and use.cache are ignored in favour of the lists."""

    limits: Limits
    contexts: Sequence[int]
    caches: Sequence[CacheBits] = DEFAULT_CACHES
    head: float | Literal["auto"] | None = None
    use: Use = field(default_factory=Use)


def tradeoff(
    file: Path,
    options: TradeoffOptions,
    *,
    model: Path | None = None,
    png: Path | None = None,
    force: bool = False,
    unit: SizeUnit = "GiB",
) -> Tradeoff:
    """Predict the best mix for every context and cache, and at every context the best cache of all.

    file: the measurement. model: directory or config.json, where it is not where the measurement says. png: where
    to draw it; force replaces it.
    Raises: UsageError, DataError for a measurement that cannot be read, OutputExistsError.
    """
    if png is not None:
        refuse_existing_file(png, force=force)
    _check(options)
    measurement = read_record(file, Measurement)
    where = model or Path(measurement.exltune.provenance.model_path)
    config = read_json(where) if where.is_file() else read_config(where)
    profile = model_profile(config, cast(Codebook, measurement.exltune.codebook), str(where))
    for context in options.contexts:
        check_use(profile, options.limits, options.use.model_copy(update={"context": context}))
    head_bits = None if options.head == "auto" else options.head
    joint = Joint(profile, measurement, head_bits=head_bits, head_open=options.head == "auto")
    found = Tradeoff(
        architecture=profile.inventory.architecture,
        vram_bytes=options.limits.hardware.vram_bytes,
        gpus=options.limits.hardware.gpus,
        rows=tuple(row for context in sorted(set(options.contexts)) for row in _rows(joint, options, context)),
        unit=unit,
        reference=measurement.exltune.provenance.reference,
    )
    if png is not None:
        write_bytes(png, tradeoff_png(found))
    return found


def _check(options: TradeoffOptions) -> None:
    hardware = options.limits.hardware
    if not hardware.gpus and hardware.vram_bytes is None:
        raise UsageError("a tradeoff needs to know the memory", fix="Give `vram` or `gpus`")
    if not options.contexts:
        raise UsageError("no context is given", fix="Give `contexts`, such as 32768,65536")


def _rows(joint: Joint, options: TradeoffOptions, context: int) -> list[TradeoffRow]:
    """One context: the asked caches, and the best of all where it is none of them."""
    use = options.use.model_copy(update={"context": context})
    try:
        best: Optimum | None = joint.best(options.limits, use)
    except BudgetError:
        best = None
    caches = dict.fromkeys((*options.caches, *([best.cache] if best else [])))
    rows = [_row(joint, options.limits, use.model_copy(update={"cache": cache}), best) for cache in caches]
    return sorted(rows, key=lambda row: row.kv_bytes, reverse=True)


def _row(joint: Joint, limits: Limits, use: Use, best: Optimum | None) -> TradeoffRow:
    row = TradeoffRow(
        context=use.context or 0, cache=str(use.cache), fits=False, best=False, kv_bytes=kv_bytes(joint.profile, use)
    )
    try:
        found = joint.optimum(limits, use)
    except BudgetError as error:
        return row.model_copy(update={"reason": str(error)})
    return TradeoffRow(
        **row.model_dump(include={"context", "cache", "kv_bytes"}),
        fits=True,
        best=best is not None and best.cache == use.cache,
        bpw=found.candidate.bpw,
        head_bits=found.head_bits,
        weights_bytes=found.candidate.size_bytes,
        predicted_kld=found.predicted_kld,
        binding=found.budget.binding,
    )
