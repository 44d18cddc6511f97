"""Two quants of the same bytes on the same held-out tokens, with all that a later comparison needs of them."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from exltune.schema.base import Record
from exltune.schema.evaluation import EvaluationRow
from exltune.schema.provenance import Provenance
from exltune.schema.score import Score


class Outcome(StrEnum):
    """The candidate against the baseline."""

    WIN = "win"
    TIE = "tie"
    LOSS = "loss"


class Source(Record):
    """Where numbers stand and the command that made them; file is None where they were not stored."""

    file: str | None
    command: str


class TaskRun(Record):
    """One benchmark task as one model answered it.

    metric, filter: lm-evaluation-harness's names. values: (docs,) the metric of each document, in the order of
    doc_hashes. truncated: (docs,) whether the answer ended at its token limit. total: documents that the task has.
    """

    task: str
    version: str
    metric: str
    filter: str
    higher_is_better: bool
    doc_hashes: tuple[str, ...]
    values: tuple[float, ...]
    truncated: tuple[bool, ...]
    total: int


class TaskRuns(Record):
    """The output of `exltune tasks`. settings: inputs of the answers beside the model, as the harness was given it."""

    schema_version: Literal[1] = 1
    endpoint: str
    model: str
    harness_version: str
    settings: dict[str, str]
    runs: tuple[TaskRun, ...]
    source: Source


class ScoredQuant(Record):
    """A quant on held-out tokens, with the sums of every row. sha256: fingerprint of its directory."""

    row: EvaluationRow
    sha256: str
    score: Score
    provenance: Provenance
    source: Source
    tasks: TaskRuns | None = None


class CompareMetric(Record):
    """One metric of both quants, and their difference paired by row or document; positive: the candidate is better.

    unit: of difference, se and ci95 (the interval of this metric alone, not adjusted for the number of metrics).
    p: two-sided, Student's t. p_holm: adjusted by Holm over all metrics but the first, which decides alone;
    equal to p there. outcome: win or loss where p_holm is below 0.05, for the first metric the same as an interval
    without zero.
    """

    name: str
    unit: str
    candidate: float
    baseline: float
    difference: float
    se: float
    ci95: tuple[float, float]
    p: float
    p_holm: float
    outcome: Outcome


class TaskVerdict(Record):
    """A benchmark task on both sides; the metric's difference is paired by document."""

    task: str
    documents: int
    metric: CompareMetric
    candidate_truncated: int
    baseline_truncated: int


class CompareResult(Record):
    """The output of `exltune compare`. outcome: that of KL(ref‖quant). bytes_difference: of the baseline's bytes."""

    schema_version: Literal[1] = 1
    candidate: ScoredQuant
    baseline: ScoredQuant
    bytes_difference: float
    tolerance: float
    metrics: tuple[CompareMetric, ...]
    tasks: tuple[TaskVerdict, ...] = ()
    outcome: Outcome
    remarks: tuple[str, ...] = ()
    source: Source
