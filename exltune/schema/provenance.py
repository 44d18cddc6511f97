"""Where a result came from."""

from __future__ import annotations

from typing import Annotated

from exltune.schema.base import TOLD, Record


class ReferenceQuant(Record):
    """An EXL3 quant that stands where the unquantized model would: KL(reference‖mix) says nothing of its own error.

    name: its directory's. bits: the fewest of its groups. weights_sha256: of the unquantized model that it was made
    from, None where nobody noted it.
    """

    name: str
    bpw: float
    bits: float
    head_bits: float
    weights_sha256: str | None = None

    @property
    def told(self) -> str:
        """The remark wherever its numbers are shown."""
        return f"The reference is {self.name}, an EXL3 quant of {self.bpw:.2f} bpw, not the unquantized model"


class Provenance(Record):
    """Hashes and settings that a result depends on; `tokens_sha256` is None where no tokens were used.

    model_path, model_sha256: the reference's. reference: as a quant, None where it is unquantized.
    """

    exltune_version: Annotated[str, TOLD]
    engine: str
    model_path: Annotated[str, TOLD]
    model_sha256: str
    reference: ReferenceQuant | None = None
    tokens_sha256: str | None = None
    rows: int | None = None
    row_length: int | None = None
    seed: int | None = None

    @property
    def weights_sha256(self) -> str | None:
        """Of the unquantized model that all is about, whatever the reference; None where nobody noted it."""
        return self.model_sha256 if self.reference is None else self.reference.weights_sha256
