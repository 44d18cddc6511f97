"""The part of a card about each tune: the verdict, the commands and the texts."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import PurePath

from exltune.pipeline.common.commands import data_words
from exltune.pipeline.publication.published import PublishedTune
from exltune.schema.card import CardRun, CardText
from exltune.schema.evaluation import Verdict
from exltune.schema.measurement import Measurement, MeasurementDetail
from exltune.schema.recipe import Recipe
from exltune.schema.tokens import Texts
from exltune.schema.tune import TuneJob
from exltune.store.names import JOB
from exltune.store.records import read_record

_GIB = 1 << 30


def card_run(tune: PublishedTune, recipe: Recipe, measurement: Measurement, verdict: Verdict, picture: str) -> CardRun:
    """One tune. picture: the heat map's path beside the card."""
    job, measured = read_record(tune.path / JOB, TuneJob), measurement.exltune
    low, high = verdict.difference_ci95
    detail = recipe.exltune
    search = None if detail is None else detail.search
    kl = verdict.uniform.kl_ref_quant
    return CardRun(
        branch=tune.quant.branch,
        achieved_bpw=verdict.tuned.bpw,
        head_bits=float(tune.quant.settings["head_bits"]),
        source=verdict.source,
        searched=verdict.searched,
        passes=None if search is None else search.passes,
        uniform=verdict.uniform.name,
        uniform_size_gib=verdict.uniform.size_bytes / _GIB,
        size_gib=verdict.tuned.size_bytes / _GIB,
        difference=verdict.difference,
        difference_ci=(low, high),
        less_kl=100 * verdict.difference / kl if kl else 0.0,
        better=True if low > 0 else (False if high < 0 else None),
        engine=measured.provenance.engine,
        exltune_version=measured.provenance.exltune_version,
        level=measured.level,
        search_tokens_sha256=measured.provenance.tokens_sha256,
        heat_map=picture,
        commands=(_command(tune, job, measured, () if search is None else search.options),),
    )


def card_text(measurements: Sequence[Measurement]) -> CardText | None:
    """The texts of the tunes, all dealt alike since their held-out tokens are the same; None without a tune."""
    if not measurements:
        return None
    data = measurements[0].exltune.data
    return CardText(
        bundled=data.texts is Texts.BUNDLED,
        files=tuple(PurePath(source.path).name for source in data.sources),
        rows=data.rows,
        row_length=data.row_length,
        seed=data.seed,
    )


def _command(tune: PublishedTune, job: TuneJob, measured: MeasurementDetail, search: Sequence[str]) -> str:
    """The command that makes this tune, without the folders of this machine."""
    model, out = PurePath(job.model).name, tune.path.resolve().name
    if measured.data.texts is Texts.SMALL_MODEL:
        return shlex.join(["exltune", "demo", "--out", out])
    widths = sorted(measured.quants, key=float)
    heads = [f"{measured.heads[choice]:g}" for choice in widths if choice in measured.heads]
    words = ["exltune", "tune", model, "--out", out, *job.budget]
    words += ["--bits", ",".join(widths), "--head-bits", ",".join(heads if len(set(heads)) > 1 else heads[:1] or ["6"])]
    words += ["--codebook", measured.codebook, "--level", f"l{job.level}", *data_words(measured.data, published=True)]
    return shlex.join([*words, *search])
