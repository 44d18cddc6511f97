"""The inputs of a stored probe, by content."""

from __future__ import annotations

from exltune.schema.base import Record
from exltune.schema.provenance import ReferenceQuant
from exltune.schema.score import Score


class ProbeContext(Record):
    """Shared by all probes of a measurement: the model and the code that scores it.

    reference: the model, where it is a quant itself: KL(reference‖mix) is then against that quant.

    code: versions of the algorithms and libraries that the engine computes with.
    """

    model_sha256: str
    reference: ReferenceQuant | None = None
    architecture: str
    engine: str
    code: str


class Swap(Record):
    """The swap of a group: `sha256` of its tensors there, None where the choice says it all (KV cache)."""

    choice: str
    sha256: str | None = None


class ProbedMix(Record):
    """A mix by its difference from the reference: group (or head, cache.k, cache.v) -> swap. `name` is for people."""

    name: str
    swaps: dict[str, Swap]


class StoredProbe(Record):
    """One finished probe as a store holds it: a mix's sums over rows that were scored together.

    rows: sha256 (hex) of each row's tokens. created: UTC, ISO 8601. score: sums by row, as ever.
    """

    context: ProbeContext
    mix: ProbedMix
    row_length: int
    rows: tuple[str, ...]
    created: str
    score: Score


class StoredSet(Record):
    """Summary of the probes of one context on one set of rows. choices: bits that groups were swapped to.

    quants: how many different weights those were, the groups' of all quants together. first, last: UTC, ISO 8601.
    """

    context: ProbeContext
    token_rows: str
    rows: int
    row_length: int
    mixes: int
    choices: tuple[str, ...]
    quants: int
    first: str
    last: str


class ShownProbe(Record):
    """A probe's KL(reference‖mix) in nats/token with its 95 % interval over rows, None where there is one row alone."""

    context: ProbeContext
    name: str
    swaps: dict[str, Swap]
    rows: int
    row_length: int
    kld_nats: float
    kld_se_nats: float | None
    ci95: tuple[float, float] | None
    created: str


class Merged(Record):
    """The result of a merge: probes that were new, and those that were there already with the same numbers."""

    store: str
    added: int
    known: int
