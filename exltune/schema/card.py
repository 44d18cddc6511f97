"""The content of a model card: every number of the README comes from this record or from the files that it names."""

from __future__ import annotations

from typing import Literal

from exltune.schema.base import Record
from exltune.schema.provenance import ReferenceQuant

#: base: all groups at one width; tuned: a mix of our making; uniform: a baseline that was scored, never written.
RowKind = Literal["base", "tuned", "uniform"]


class License(Record):
    """The base model's license, as the Hub's front matter has it; name and link where `id` is "other"."""

    id: str
    name: str | None = None
    link: str | None = None


class CardMemory(Record):
    """Cards to plan for. label: as written, "6x24GiB"; gpus: bytes of each."""

    label: str
    gpus: tuple[int, ...]


class CardRow(Record):
    """One quant of the table. Sizes: `size_*` linears and head, `download_*` all files of the branch.

    branch: its name on the Hub, None where there is no directory. Both KL in nats/token with half widths of the
    confidence interval; top: percent of positions whose ordered first 1..5 tokens equal the reference's. contexts:
    tokens that fit beside each of the card's memories; None where it does not fit. is_reference: both KL are 0 by
    definition.
    """

    name: str
    branch: str | None
    kind: RowKind
    size_bytes: int
    size_gib: float
    size_gb: float
    download_bytes: int | None
    download_gb: float | None
    bpw: float
    head_bpw: float
    kl_quant_ref: float
    kl_quant_ref_half: float
    kl_ref_quant: float
    kl_ref_quant_half: float
    perplexity: float
    top: tuple[float, ...]
    contexts: tuple[int | None, ...]
    is_reference: bool = False


class CardRun(Record):
    """One tune. difference: KL(reference‖uniform) - KL(reference‖tuned) in nats/token; less_kl: it over uniform, in %.

    better: whether the whole interval is above zero, None where it holds zero. heat_map: picture beside the card.
    """

    branch: str
    achieved_bpw: float
    head_bits: float
    source: str
    searched: bool
    passes: float | None
    uniform: str
    uniform_size_gib: float
    size_gib: float
    difference: float
    difference_ci: tuple[float, float]
    less_kl: float
    better: bool | None
    engine: str
    exltune_version: str
    level: int
    search_tokens_sha256: str | None
    heat_map: str | None
    commands: tuple[str, ...]


class CardText(Record):
    """The texts: `bundled` are exllamav3's own; names of files where the user gave some. rows: of all four sets."""

    bundled: bool
    files: tuple[str, ...]
    rows: int
    row_length: int
    seed: int


class CardServe(Record):
    """The setting of the serving example: a branch on cards, with a context and cache bits."""

    branch: str
    gpus: str
    context: int


class Card(Record):
    """Everything that a card shows. confidence: of all intervals, in percent. files: name -> sha256 of each source.

    reference: the quant that all are compared with, where that is not the unquantized model.
    """

    schema_version: Literal[1] = 1
    title: str
    repo_id: str
    base_model: str
    license: License
    pipeline_tag: str
    tags: tuple[str, ...]
    languages: tuple[str, ...]
    architecture: str
    exllamav3_version: str
    codebook: str
    calibration_rows: int | None
    calibration_row_length: int | None
    model_sha256: str
    reference: ReferenceQuant | None = None
    tokens_sha256: str
    held_out_tokens: int
    engine: str
    confidence: float
    cache: str
    memories: tuple[CardMemory, ...]
    rows: tuple[CardRow, ...]
    runs: tuple[CardRun, ...]
    text: CardText | None
    serve: CardServe | None
    plot: str
    files: dict[str, str]

    @property
    def branches(self) -> tuple[str, ...]:
        """The quants that are branches of the repository, by size."""
        return tuple(row.branch for row in self.rows if row.branch is not None)


class CardResult(Record):
    """The result of `exltune card`: the page, the files beside it that it stands on, and the branches it shows."""

    card: str
    files: tuple[str, ...]
    branches: tuple[str, ...]
