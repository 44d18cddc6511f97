"""`exltune data`: the token sets of a model, which experts they reach, and a set as a file of its own."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from exltune.corpora import ModelTokenizer, Sample, TokenSet
from exltune.corpora.dealing import dealt, domain_weights, ids, read_samples, token_sets
from exltune.corpora.packed import packed_bytes
from exltune.engines.base import AUTO, MIN_EXPERT_TOKENS, LayerCapture, open_engine
from exltune.inventory import load_inventory
from exltune.pipeline.common.reporter import Reporter, Silent
from exltune.schema.inventory import Inventory, LinearSpec, Role
from exltune.schema.tokens import (
    SPLIT_SHARES,
    DataOptions,
    DataReport,
    DomainTokens,
    ExpertLayer,
    ExpertUse,
    Split,
    TokenSetInfo,
)
from exltune.store.files import locked, refuse_existing_file, write_bytes

_EXPERTS = (Role.EXPERTS_GATE_UP, Role.EXPERTS_DOWN)


def inspect_data(
    model: Path,
    settings: DataOptions,
    *,
    experts: bool = True,
    minimum: int = MIN_EXPERT_TOKENS,
    engine: str = AUTO,
    reporter: Reporter | None = None,
) -> DataReport:
    """Deal the token sets, and for a mixture of experts run the calibration set through the model's own routing.

    minimum: tokens below which an expert counts as rare. Raises: DataError, ModelError, and all that the engine raises.
    """
    samples = read_samples(settings, model)
    sets = dealt(samples, settings, ModelTokenizer(model))
    keys = probe_keys(load_inventory(model)) if experts else ()
    use = None
    if keys:
        opened = open_engine(engine, model)
        with (reporter or Silent()).stage("route") as progress:
            captures = opened.capture(ids(sets[Split.CALIBRATION]), keys, progress)
            use = expert_use(captures, minimum, settings)
    infos = tuple(sets[split].info for split in Split)
    return DataReport(
        model=str(model.resolve()),
        data=settings,
        sets=infos,
        domains=_domains(samples, settings, infos),
        experts=use,
    )


def export_set(model: Path, settings: DataOptions, split: Split, out: Path, *, force: bool = False) -> TokenSetInfo:
    """Write one token set as a packed token file, which exllamav3's convert takes with --cal_data.

    Raises: OutputExistsError, DataError.
    """
    refuse_existing_file(out, force=force)
    found: TokenSet = token_sets(settings, model)[split]
    notes = {"set": split.value, "tokens_sha256": found.info.sha256}
    with locked(out):
        write_bytes(out, packed_bytes(found.ids, ModelTokenizer(model), notes))
    return found.info


def probe_keys(inventory: Inventory) -> tuple[str, ...]:
    """Of each layer with experts the linear whose Hessian costs least: an engine counts tokens where it has work."""
    sparse = {spec.layer for spec in inventory.linears if spec.role in _EXPERTS}
    cheapest: dict[int | None, LinearSpec] = {}
    for spec in inventory.linears:
        if spec.layer in sparse and spec.role not in (*_EXPERTS, Role.ROUTER, Role.GATE):
            held = cheapest.setdefault(spec.layer, spec)
            cheapest[spec.layer] = min(held, spec, key=lambda s: s.in_features)
    return tuple(spec.key for spec in cheapest.values())


def expert_use(captures: Iterable[LayerCapture], minimum: int, settings: DataOptions) -> ExpertUse:
    """Counts of all layers, and the rows that the rarest expert that is seen at all would need."""
    layers = []
    for capture in captures:
        if capture.layer is not None:
            rare = tuple(expert for expert, count in capture.expert_tokens.items() if count < minimum)
            layers.append(ExpertLayer(layer=capture.layer, tokens=dict(capture.expert_tokens), rare=rare))
    counts = [count for layer in layers for count in layer.tokens.values()]
    fewest = min((count for count in counts if count), default=minimum)
    calibration = settings.rows_of(Split.CALIBRATION)
    needed = math.ceil(calibration * max(1.0, minimum / fewest))
    whole = sum(SPLIT_SHARES.values())
    return ExpertUse(
        minimum=minimum,
        layers=tuple(layers),
        unseen=counts.count(0),
        rows_needed=max(settings.rows, math.ceil(needed * whole / SPLIT_SHARES[Split.CALIBRATION])),
    )


def _domains(
    samples: Sequence[Sample], settings: DataOptions, infos: Sequence[TokenSetInfo]
) -> tuple[DomainTokens, ...]:
    counts = Counter(sample.domain for sample in samples)
    weights = domain_weights(samples, settings)
    found = []
    for domain, count in counts.items():
        rows = {info.split: info.domains.get(domain, 0) for info in infos}
        found.append(
            DomainTokens(
                domain=domain,
                samples=count if settings.samples is None else min(count, settings.samples),
                weight=weights[domain],
                rows=rows,
                tokens={split: number * settings.row_length for split, number in rows.items()},
                rejected=sum(info.rejected.get(domain, 0) for info in infos),
            )
        )
    return tuple(found)
