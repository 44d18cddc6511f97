"""The base of every record that crosses a stage."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Told:
    """The type of TOLD."""


#: Marks a field that is told to people and changes no result: it is not part of an identity (store/identity.py).
#: Of a record: `Annotated[str, TOLD]`; of a dataclass: `field(metadata={TOLD: True})`.
TOLD = Told()


class Record(BaseModel):
    """A frozen record that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")
