"""The output of `exltune explain` about a recipe; unknown fields are empty or None."""

from __future__ import annotations

from exltune.schema.base import Record
from exltune.schema.search import FrontPoint


class GroupBits(Record):
    """One cell of the heat map: a group, or a pair (`3.attn.kv`) that has the same bits."""

    id: str
    role: str
    layer: int | None
    bits: float
    size_bytes: int | None


class Step(Record):
    """Raising one measured unit (a group, or a part of a layer) alone, everything else at the measurement's base.

    kld_nats: by how much KL(reference‖mix) falls, nats/token, with the paired standard error where rows are known.
    kld_per_mib: the same per MiB that the step costs. missing_bytes: by how much it does not fit the budget.
    """

    id: str
    role: str
    layer: int | None
    from_bits: float
    to_bits: float
    kld_nats: float
    kld_se_nats: float | None
    size_bytes: int
    kld_per_mib: float
    missing_bytes: int | None = None


class Change(Record):
    """A group whose bits differ. size_bytes: bytes here beyond its bytes there."""

    id: str
    role: str
    layer: int | None
    bits_there: float
    bits_here: float
    size_bytes: int


class RuleComparison(Record):
    """The recipe beside the best hand rule.

    judged_by: the evidence that made that rule the best one, "selection" or "search" for measured KL(reference‖mix),
    "predicted" for a sum of single swaps. kld_there, kld_here: by that measure, nats/token. bytes_added and
    bytes_saved: over all changes.
    """

    name: str
    judged_by: str
    kld_there: float | None
    kld_here: float | None
    bytes_added: int
    bytes_saved: int
    changes: tuple[Change, ...]


class Prediction(Record):
    """Predicted beside measured KL(reference‖mix) of one mix, nats/token; measured_on: which token set."""

    name: str
    predicted_kld: float | None
    measured_kld: float | None
    measured_kld_se: float | None
    measured_on: str | None


class Explanation(Record):
    """A recipe, explained.

    widths: the bits that occur, ascending. cache: bits of the KV cache's k and v. left_bytes: bytes that the budget of
    target_bpw leaves unused. bought: steps from the lowest width to the chosen one, the most KL(reference‖mix) per byte
    first. upgrades: steps to the next width that do not fit any more, in the same order. predictions: the recipe first.
    notes: gaps, and their remedies.
    """

    recipe: str
    architecture: str | None
    source: str | None
    target_bpw: float | None
    achieved_bpw: float | None
    head_bits: float | None
    cache: tuple[str, str] | None
    size_bytes: int | None
    left_bytes: int | None
    widths: tuple[float, ...]
    groups: tuple[GroupBits, ...]
    bought: tuple[Step, ...]
    upgrades: tuple[Step, ...]
    rule: RuleComparison | None
    predictions: tuple[Prediction, ...]
    front: tuple[FrontPoint, ...]
    notes: tuple[str, ...]
