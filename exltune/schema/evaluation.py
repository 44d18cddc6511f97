"""Evaluation rows and the verdict of a tune."""

from __future__ import annotations

from typing import Literal

from exltune.schema.base import Record
from exltune.schema.provenance import Provenance
from exltune.schema.search import Standing


class EvaluationRow(Record):
    """One quant on held-out tokens; both KL in nats/token, each with its standard error over rows.

    `path` is None for a mix that was scored from base quants and never written out. is_reference: it is the quant that
    all are compared with, and its KL(reference‖quant) is 0 by definition.
    """

    name: str
    path: str | None
    size_bytes: int
    bpw: float
    head_bpw: float
    kl_quant_ref: float
    kl_quant_ref_se: float
    kl_ref_quant: float
    kl_ref_quant_se: float
    perplexity: float
    top_1: float
    top_2: float
    top_3: float
    top_4: float
    top_5: float
    tokens: int
    is_reference: bool = False


class Evaluation(Record):
    """The output of `exltune evaluate`."""

    schema_version: Literal[1] = 1
    rows: tuple[EvaluationRow, ...]
    provenance: Provenance


class PairedDifference(Record):
    """mean of KL(reference‖baseline) - KL(reference‖tuned) in nats/token over the same rows; positive is better."""

    mean: float
    se: float
    ci_low: float
    ci_high: float


class MethodRow(Record):
    """A mix that was tried: its bytes, and KL(reference‖mix) in nats/token on the set of its scores; None without."""

    name: str
    size_bytes: int
    bpw: float
    kl_ref_quant: float | None
    kl_ref_quant_se: float | None
    predicted_kld: float | None = None


class Verdict(Record):
    """Tuned against uniform on held-out tokens. source: the method whose mix was handed over; searched: whether it is
    the search's own; standings: every method on the selection set, the one handed over first.
    """

    schema_version: Literal[1] = 1
    source: str
    searched: bool
    tuned: EvaluationRow
    uniform: EvaluationRow
    difference: float
    difference_ci95: tuple[float, float]
    standings: tuple[Standing, ...]


class TuneResult(Record):
    """The one object that `tune --json` and `demo --json` end with."""

    recipe: str
    model: str
    verdict: Verdict
