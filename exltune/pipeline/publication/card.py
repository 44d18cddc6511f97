"""`exltune card`: the page of a repository of quants, and beside it every file that its numbers come from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exltune.errors import QuantMismatchError
from exltune.inventory import load_inventory
from exltune.pipeline.common.reporter import Reporter, Silent
from exltune.pipeline.optimization.explain import explain
from exltune.pipeline.publication.card_match import MatchedRow, match_rows, read_evaluations
from exltune.pipeline.publication.card_plan import DEFAULT_CACHE, contexts, memories, served
from exltune.pipeline.publication.card_runs import card_run, card_text
from exltune.pipeline.publication.public_files import public_files
from exltune.pipeline.publication.published import Published, PublishedTune, check_branches, find_published
from exltune.publish.card_metadata import base_card, check_repo_id, license_of, pipeline_tag, source_repo, tags
from exltune.publish.card_render import render_card
from exltune.publish.card_rows import CONFIDENCE, QuantFacts, card_row, one_of_each
from exltune.report.card_png import kl_against_size
from exltune.report.explanation_png import explanation_png
from exltune.schema.card import Card, CardMemory, CardResult, CardRow, CardRun, License
from exltune.schema.evaluation import Evaluation, Verdict
from exltune.schema.measurement import Measurement
from exltune.store.files import refuse_existing_file, write_bytes, write_text
from exltune.store.names import MEASUREMENT, RECIPE, VERDICT
from exltune.store.records import read_recipe, read_record, write_record

CARD, PLOT = "card.json", "assets/kl_size.png"
_HEAT_MAP = "assets/bits_{branch}.png"
#: In the commands of a card for a repository that is not named yet.
_NOBODY = "YOUR_NAME"


@dataclass(frozen=True)
class CardOptions:
    """The user's options of the page. gpus: one text for each column of contexts; empty for a choice of our own."""

    base_model: str | None = None
    license: License | None = None
    repo_id: str | None = None
    gpus: tuple[str, ...] = ()
    cache: str = DEFAULT_CACHE


def card(
    outs: Sequence[Path],
    out: Path,
    *,
    evaluations: Sequence[Path] = (),
    options: CardOptions | None = None,
    force: bool = False,
    reporter: Reporter | None = None,
) -> CardResult:
    """Write the card of tune directories and EXL3 directories to `out`, its sources and pictures beside it.

    evaluations: files of `exltune evaluate`, for directories that no tune here judged.
    Raises: DataError for a missing evaluation or verdict and for different token sets, QuantMismatchError for
    different models, UsageError, OutputExistsError, and all that opening the directories raises.
    """
    options, reporter = options or CardOptions(), reporter or Silent()
    for path in (out, out.with_name(CARD)):
        refuse_existing_file(path, force=force)
    found = find_published(outs)
    read = read_evaluations(found, evaluations)
    check_branches(found.quants)
    sources = public_files(found, evaluations)
    with reporter.stage("Planning contexts"):
        made = _card(found, read, sources, options)
    pictures = {PLOT: kl_against_size(made.rows)} | {_heat_map(tune): _draw(tune) for tune in found.tunes}
    text = render_card(made)
    for name, content in (sources | pictures).items():
        write_bytes(out.parent / name, content)
    write_record(out.with_name(CARD), made)
    write_text(out, text)
    return CardResult(card=str(out), files=(CARD, *sources, *pictures), branches=made.branches)


def _card(
    found: Published, evaluations: Sequence[tuple[Path, Evaluation]], sources: Mapping[str, bytes], options: CardOptions
) -> Card:
    quant, provenance = found.quants[0], evaluations[0][1].provenance
    base = base_card(Path(provenance.model_path))
    base_model = options.base_model or source_repo(Path(provenance.model_path))
    name = check_repo_id(base_model, "`base_model`").rpartition("/")[2]
    inventory = load_inventory(quant.path, planning=True)
    matched = match_rows(found, evaluations)
    columns = memories(options.gpus, [one.row.size_bytes for one in matched])
    rows = _rows(found, matched, columns, options.cache)
    calibration = quant.settings.get("calibration") or {}
    return Card(
        title=f"{name}-exl3",
        repo_id=check_repo_id(options.repo_id or f"{_NOBODY}/{name}-exl3", "`repo_id`"),
        base_model=base_model,
        license=options.license or license_of(base),
        pipeline_tag=pipeline_tag(quant.config, base),
        tags=tags(quant.config, any("experts" in group.role.value for group in inventory.groups)),
        languages=_languages(base),
        architecture=inventory.architecture,
        exllamav3_version=str(quant.settings.get("version", "")),
        codebook=str(quant.settings.get("codebook", "")),
        calibration_rows=calibration.get("rows"),
        calibration_row_length=calibration.get("cols"),
        model_sha256=provenance.model_sha256,
        reference=provenance.reference,
        tokens_sha256=provenance.tokens_sha256 or "",
        held_out_tokens=evaluations[0][1].rows[0].tokens,
        engine=provenance.engine,
        confidence=CONFIDENCE,
        cache=options.cache,
        memories=columns,
        rows=rows,
        runs=tuple(_run(tune, provenance.model_sha256) for tune in found.tunes),
        text=card_text([read_record(tune.file(MEASUREMENT), Measurement) for tune in found.tunes]),
        serve=served(rows, columns),
        plot=PLOT,
        files={name: hashlib.sha256(content).hexdigest() for name, content in sources.items()},
    )


def _rows(
    found: Published, matched: Sequence[MatchedRow], columns: Sequence[CardMemory], cache: str
) -> tuple[CardRow, ...]:
    facts = {
        quant.branch: QuantFacts(
            branch=quant.branch,
            kind="tuned" if quant.tuned else "base",
            download_bytes=sum(file.stat().st_size for file in quant.files.values()),
            contexts=contexts(quant.path, columns, cache),
        )
        for quant in found.quants
    }
    rows = [(one.file, card_row(one.row, None if one.quant is None else facts[one.quant.branch])) for one in matched]
    return tuple(one_of_each(rows))


def _run(tune: PublishedTune, model_sha256: str) -> CardRun:
    recipe = read_recipe(tune.file(RECIPE))
    if recipe.exltune is None or recipe.exltune.provenance.model_sha256 != model_sha256:
        raise QuantMismatchError(
            "the recipe is of another model than the evaluation",
            where=str(tune.path / RECIPE),
            fix="Run exltune tune in an empty directory",
        )
    measurement = read_record(tune.file(MEASUREMENT), Measurement)
    return card_run(tune, recipe, measurement, read_record(tune.file(VERDICT), Verdict), _heat_map(tune))


def _heat_map(tune: PublishedTune) -> str:
    return _HEAT_MAP.format(branch=tune.quant.branch)


def _draw(tune: PublishedTune) -> bytes:
    return explanation_png(explain(tune.file(RECIPE), model=tune.quant.path))


def _languages(base: Mapping[str, Any]) -> tuple[str, ...]:
    stated = base.get("language") or ()
    return (stated,) if isinstance(stated, str) else tuple(str(one) for one in stated)
