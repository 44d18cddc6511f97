"""A mix that a method proposes at a budget, before anything has scored it."""

from __future__ import annotations

from exltune.schema.base import Record
from exltune.schema.mix import Mix, MixSize


class Candidate(Record):
    """A method's mix with its size; predicted_kld_nats is a prediction of KL(reference‖mix) in nats/token.

    meets_floors: whether it keeps the floors that the user demands; one that does not is compared, never handed over.
    """

    name: str
    mix: Mix
    size: MixSize
    predicted_kld_nats: float | None = None
    meets_floors: bool = True
