"""The measurement file: exllamav3's schema, so that its optimizer reads it, with ours beside it."""

from __future__ import annotations

from pydantic import Field

from exltune.schema.base import Record
from exltune.schema.evaluation import MethodRow
from exltune.schema.inventory import Role
from exltune.schema.provenance import Provenance
from exltune.schema.tokens import DataSettings


class QuantRef(Record):
    """A base quant directory and its bpw, in exllamav3's form."""

    dir: str
    bpw: float


class LegacyCandidate(Record):
    """exllamav3's candidate: KL change in nats/token and bits added, upward from the lowest quant.

    `estimated` is true where the change was not scored as a swap on that base but derived from ours.
    """

    dkld: float
    dbits: int
    estimated: bool = False


class LegacyGroup(Record):
    """exllamav3's group: module keys and one candidate for each alternative quant."""

    idx: int
    layers: tuple[str, ...]
    candidates: tuple[LegacyCandidate, ...]


class Probe(Record):
    """One scored mix: the group at `choice`, everything else at the base; absolute KL, nats/token.

    size_bytes: bytes of the group's tensors at that choice. kld_rows: (rows,) mean KL(reference‖mix) of each row.
    """

    choice: str
    bits: float
    size_bytes: int
    kld_nats: float
    kld_se_nats: float
    kld_rows: tuple[float, ...]


class MeasuredGroup(Record):
    """A group (l3) or a part of a layer (l2) and what each of its choices did."""

    id: str
    members: tuple[str, ...]
    role: Role | str
    layer: int | None
    numel: int
    probes: tuple[Probe, ...]


class MeasurementDetail(Record):
    """What exltune stores beside exllamav3's fields.

    base: the choice of all unprobed groups. quants: choice -> base quant directory, with their content hashes beside.
    heads: bits of the head in every base quant, by choice.
    wider: the head and the halves of the KV cache, swapped alone as groups are (size_bytes of the cache: 0, it depends
    on the context). mixes: the uniform base quants, scored whole on the same rows.
    """

    schema_version: int = 1
    level: int
    base: str
    quants: dict[str, str]
    quant_sha256: dict[str, str]
    head_choice: str
    head_bits: float
    codebook: str
    data: DataSettings
    groups: tuple[MeasuredGroup, ...]
    wider: tuple[MeasuredGroup, ...] = ()
    heads: dict[str, float] = Field(default_factory=dict)
    mixes: tuple[MethodRow, ...] = ()
    provenance: Provenance


class Measurement(Record):
    """The file that `exltune measure` writes and `exltune optimize` reads."""

    base: QuantRef
    alts: tuple[QuantRef, ...]
    groups: tuple[LegacyGroup, ...]
    base_kld: float
    arch_string: str
    exltune: MeasurementDetail
