"""Hand rules: findings of people who tune quants by hand, each with its source."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from exltune.schema.base import Record
from exltune.schema.mix import UNQUANTIZED_BITS


def _existing(bits: float) -> float:
    if not (1 <= bits <= 8 or bits == UNQUANTIZED_BITS):
        raise ValueError(f"bits are 1 to 8, or 16 for unquantized, not {bits:g}")
    return bits


RuleBits = Annotated[float, AfterValidator(_existing)]


class Match(Record):
    """Which groups a rule is about; every field that is given must fit.

    roles: globs over roles (`attn.*`); `attn.kv` and `*.gate_up` mean both of a pair. layers: first and last index,
    negative ones count from the end. depth: from and below, as a share of all layers. keys: globs over module keys.
    architectures: globs over class names. sparse_model: whether the model has routed experts. sparse_layer: whether the
    layer has.
    """

    roles: tuple[str, ...] | None = None
    layers: tuple[int, int] | None = None
    depth: tuple[float, float] | None = None
    keys: tuple[str, ...] | None = None
    architectures: tuple[str, ...] | None = None
    sparse_model: bool | None = None
    sparse_layer: bool | None = None


class Rule(Record):
    """The wishes for the matched groups; where several rules match, the later ones override field by field.

    extra_bits: bits above the level at which the rest of the model stands. bits: exactly that many. min_bits,
    max_bits: bounds. priority: the higher, the earlier a group is served. A width that does not exist among the base
    quants is rounded down to one that does: 16 (unquantized) becomes the highest where it is not itself a choice.
    All of it yields when the budget is too small, or so large that nothing else is left to raise.
    """

    match: Match = Match()
    bits: RuleBits | None = None
    min_bits: RuleBits | None = None
    max_bits: RuleBits | None = None
    extra_bits: float | None = Field(default=None, ge=-7, le=7)
    priority: float | None = None
    source: str

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if all(v is None for v in (self.bits, self.min_bits, self.max_bits, self.extra_bits, self.priority)):
            raise ValueError("a rule needs one of bits, min_bits, max_bits, extra_bits, priority")
        return self

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        lower = max(bits for bits in (self.bits, self.min_bits, 0.0) if bits is not None)
        upper = min(bits for bits in (self.bits, self.max_bits, UNQUANTIZED_BITS) if bits is not None)
        if lower > upper:
            raise ValueError(f"the rule asks for at least {lower:g} and at most {upper:g} bits")
        return self


class Heuristics(Record):
    """One file of ordered rules."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    description: str
    rules: tuple[Rule, ...] = Field(min_length=1)
