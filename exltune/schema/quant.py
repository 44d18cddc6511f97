"""exltune's notes beside the quants that it writes (exltune.json)."""

from __future__ import annotations

from typing import Literal

from exltune.schema.base import Record
from exltune.schema.provenance import Provenance


class TensorErrors(Record):
    """proxy_err: tr(EᵀHE)/tr(WᵀHW). rfn: ‖W - Q‖/‖W‖. feedback: whether LDLQ had a Hessian."""

    proxy_err: float
    rfn: float
    feedback: bool


class QuantRecord(Record):
    """How a base quant was made; `rare_experts` saw few calibration tokens by the model's own routing."""

    schema_version: Literal[1] = 1
    bits: float
    head_bits: float
    codebook: str
    job: str
    rare_experts: tuple[str, ...]
    tensors: dict[str, TensorErrors]
    provenance: Provenance
