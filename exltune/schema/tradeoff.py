"""The answer of `exltune tradeoff`: context against cache bits against bpw, by prediction."""

from __future__ import annotations

from exltune.schema.base import Record
from exltune.schema.hardware import SizeUnit
from exltune.schema.plan import Limit
from exltune.schema.provenance import ReferenceQuant


class TradeoffRow(Record):
    """The best weights and head beside one cache at one context.

    bpw, head_bits, weights_bytes, predicted_kld: of the exact optimum by the measurement's law; weights_bytes counts
    linears and head, predicted_kld is KL(reference‖mix) in nats/token. kv_bytes: with states. None, with the reason,
    where it does not fit. best: the least KL(reference‖mix) of all caches at this context, those without a row
    included.
    """

    context: int
    cache: str
    fits: bool
    best: bool
    kv_bytes: int
    bpw: float | None = None
    head_bits: float | None = None
    weights_bytes: int | None = None
    predicted_kld: float | None = None
    binding: Limit | None = None
    reason: str | None = None


class Tradeoff(Record):
    """Rows by context, then by cache, largest cache first. Nothing here was measured on a mix.

    reference: the quant in the unquantized model's place, if any.
    """

    architecture: str
    vram_bytes: int | None
    gpus: tuple[int, ...]
    rows: tuple[TradeoffRow, ...]
    unit: SizeUnit = "GiB"
    reference: ReferenceQuant | None = None
