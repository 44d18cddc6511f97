"""Hand rules: what people who tune quants by hand have found, each with its source."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from exltune.schema.base import Record


class Match(Record):
    """Which groups a rule is about; every field that is given must fit.

    roles: globs over roles (`attn.*`). layers: first and last index, negative ones count from the end.
    depth: from and below, as a share of all layers. keys: globs over module keys. architectures: class names.
    """

    roles: tuple[str, ...] | None = None
    layers: tuple[int, int] | None = None
    depth: tuple[float, float] | None = None
    keys: tuple[str, ...] | None = None
    architectures: tuple[str, ...] | None = None


class Rule(Record):
    """What the matched groups should get; where several rules match, the later ones override field by field.

    extra_bits: bits above the level at which the rest of the model stands. bits: exactly that many. min_bits,
    max_bits: bounds. priority: the higher, the earlier a group is served. Bounds yield when the budget is too small
    for them, or so large that nothing else is left to raise.
    """

    match: Match = Match()
    bits: float | None = Field(default=None, ge=1, le=8)
    min_bits: float | None = Field(default=None, ge=1, le=8)
    max_bits: float | None = Field(default=None, ge=1, le=8)
    extra_bits: float | None = Field(default=None, ge=-7, le=7)
    priority: float | None = None
    source: str

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if all(v is None for v in (self.bits, self.min_bits, self.max_bits, self.extra_bits, self.priority)):
            raise ValueError("a rule needs one of bits, min_bits, max_bits, extra_bits, priority")
        return self


class Heuristics(Record):
    """One file of ordered rules."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    description: str
    rules: tuple[Rule, ...] = Field(min_length=1)
