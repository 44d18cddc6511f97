"""A mix with its size: proposed by methods, weighed by the search, held by a recipe."""

from __future__ import annotations

from exltune.schema.mix import Mix


class Candidate(Mix):
    """A mix that a method proposes, by the method's name.

    size_bytes, bpw: as of its MixSize. predicted_kld: a prediction of KL(reference‖mix), nats/token. meets_floors:
    whether it keeps the floors that the user demands; one that does not is compared, never handed over.
    """

    size_bytes: int
    bpw: float
    predicted_kld: float | None = None
    meets_floors: bool = True

    @property
    def mix(self) -> Mix:
        """The mix alone."""
        return Mix(name=self.name, choices=self.choices)
