"""The measurement file: exllamav3's schema, so that its optimizer reads it, with ours beside it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from exltune.schema.base import TOLD, Record
from exltune.schema.evaluation import MethodRow
from exltune.schema.inventory import Unit
from exltune.schema.provenance import Provenance
from exltune.schema.tokens import DataOptions


class QuantRef(Record):
    """A base quant directory and its bpw, in exllamav3's form."""

    dir: Annotated[str, TOLD]
    bpw: float


class LegacyCandidate(Record):
    """exllamav3's candidate: change of KL(reference‖mix) in nats/token and bits added, upward from the lowest quant.

    `estimated` is true where the change was not scored as a swap on that base but derived from ours. dkld_ci95: 95 %
    interval of dkld where our swaps themselves are estimates.
    """

    dkld: float
    dbits: int
    estimated: bool = False
    dkld_ci95: tuple[float, float] | None = None


class LegacyGroup(Record):
    """exllamav3's group: module keys and one candidate for each alternative quant."""

    idx: int
    layers: tuple[str, ...]
    candidates: tuple[LegacyCandidate, ...]


class Probe(Record):
    """A swap: the group at `choice`, everything else at the base; absolute KL(reference‖mix), nats/token.

    size_bytes: bytes of the group's tensors at that choice. kld_rows: (rows,) mean KL(reference‖mix) of each row that
    was scored, from the first row of the search set on; empty where the swap was not scored. estimated: whether KL and
    its standard error follow from the law of swaps, fitted to all that were scored, and not from these rows alone;
    kld_ci95_nats is then its 95 % interval. of_reference: the reference is a quant, and these are its own weights:
    KL(reference‖mix) is 0 by definition, was not scored, and does not say that these bits lose nothing.
    """

    choice: str
    bits: float
    size_bytes: int
    kld_nats: float
    kld_se_nats: float
    kld_rows: tuple[float, ...]
    estimated: bool = False
    kld_ci95_nats: tuple[float, float] | None = None
    of_reference: bool = False


class TensorSaliency(Record):
    """A linear within its group (level l4), on the reference model's own inputs; no swap, and no KL(reference‖mix).

    rfn: ‖W_q - W‖ / ‖W‖ in the lowest base quant. input_rms: root mean square of its inputs, over all tokens. tokens:
    those that the model's routing sends to a routed expert, None for others. saliency: rfn * input_rms, for an expert
    also times the root of its share of the tokens; to be compared within one role.
    """

    key: str
    group: str
    rfn: float
    input_rms: float
    tokens: int | None
    saliency: float


class SwapLawFit(Record):
    """The law behind estimated probes: KL(reference‖mix) = s² + b * s, b = router_b * n**router_kappa.

    n: routers that see a swap. router_b: in the square root of nats/token. swaps: how many were scored, on however many
    rows.
    """

    router_b: float
    router_kappa: float
    swaps: int


class MeasuredGroup(Unit):
    """A unit and the probes of its choices."""

    probes: tuple[Probe, ...]


class MeasurementDetail(Record):
    """exltune's own block beside exllamav3's fields.

    base: the choice of all unprobed groups. quants: choice -> base quant directory, with their content hashes beside.
    heads: bits of the head in every base quant, by choice.
    wider: the head and the halves of the KV cache, swapped alone as groups are (size_bytes of the cache: 0, it depends
    on the context). mixes: uniform base quants that were scored whole. law: the source of estimated probes, if there
    are any. tensors: at level 4, the effect of each linear on its own output.
    """

    schema_version: Literal[2] = 2
    level: int
    base: str
    quants: Annotated[dict[str, str], TOLD]
    quant_sha256: dict[str, str]
    head_choice: str
    head_bits: float
    codebook: str
    data: DataOptions
    groups: tuple[MeasuredGroup, ...]
    wider: tuple[MeasuredGroup, ...] = ()
    heads: dict[str, float] = Field(default_factory=dict)
    mixes: tuple[MethodRow, ...] = ()
    law: SwapLawFit | None = None
    tensors: tuple[TensorSaliency, ...] = ()
    provenance: Provenance


class Measurement(Record):
    """The file that `exltune measure` writes and `exltune optimize` reads.

    Attributes:
        base: The base quant with the fewest bits.
        alts: The other base quants.
        groups: Tensor groups in exllamav3's form, upward from the lowest quant.
        base_kld: KL(reference‖lowest quant) in nats/token.
        arch_string: The model's architecture.
        exltune: Absolute KL(reference‖mix) of every swap, and where it was measured.
    """

    base: QuantRef
    alts: tuple[QuantRef, ...]
    groups: tuple[LegacyGroup, ...]
    base_kld: float
    arch_string: str
    exltune: MeasurementDetail
