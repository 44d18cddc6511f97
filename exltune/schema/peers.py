"""Gains of a format: peers of other formats beside EXL3 on the same model, tokens and bytes."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from exltune.schema.base import Record
from exltune.schema.evaluation import EvaluationRow, PairedDifference
from exltune.schema.mix import Choice
from exltune.schema.provenance import Provenance


class PeerMethod(StrEnum):
    """How a peer rounds its weights."""

    RTN = "RTN"
    AWQ = "AWQ"


class Match(Record):
    """The largest EXL3 mix of exllamav3's strategy within a peer's bytes.

    difference: KL(reference‖peer) - KL(reference‖mix) in nats/token, paired by row; positive: EXL3 is better.
    head_kept: whether the mix keeps the head in fp16 as the peer does, or takes the base quants' head.
    """

    row: EvaluationRow
    choices: dict[str, Choice]
    head_kept: bool
    difference: PairedDifference


class Peer(Record):
    """A simulated W4A16 quant. mean_alpha: AWQ's exponent, averaged over the inputs that it was chosen for."""

    method: PeerMethod
    group: int
    row: EvaluationRow
    mean_alpha: float | None
    matches: tuple[Match, ...]


class PeersResult(Record):
    """The output of `exltune peers`. calibration_sha256: tokens that AWQ's scales come from."""

    schema_version: Literal[1] = 1
    base: tuple[EvaluationRow, ...]
    peers: tuple[Peer, ...]
    remarks: tuple[str, ...]
    calibration_sha256: str
    command: str
    provenance: Provenance
