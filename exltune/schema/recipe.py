"""The recipe that `exllamav3.conversion.convert_model --recipe` takes, with our block beside it."""

from __future__ import annotations

from typing import Literal

from exltune.schema.base import Record
from exltune.schema.provenance import Provenance
from exltune.schema.search import Budget, SearchDetail


class RecipeDetail(Record):
    """exltune's block of a recipe, ignored by exllamav3. Predicted and measured KL(reference‖mix) are two fields.

    measured_kld_nats: on the selection set where the mix was scored. cache: bits of the KV cache that it was chosen
    with, such as "5,4"; None for fp16.
    """

    schema_version: Literal[2] = 2
    source: str
    choices: dict[str, str]
    size_bytes: int
    head_choice: str
    predicted_kld_nats: float | None = None
    measured_kld_nats: float | None = None
    measured_kld_se_nats: float | None = None
    budget: Budget | None = None
    cache: str | None = None
    search: SearchDetail | None = None
    provenance: Provenance


class Recipe(Record):
    """Bits per module key; 16 means stored unquantized. Keys may be globs, the last match wins.

    Attributes:
        target_bpw: Bits per weight that were asked for.
        achieved_bpw: Those that the mix has; all linears but the head, scales included.
        head_bits: Bits of the output head.
        tensors: Module key or glob -> bits.
        exltune: Where the mix came from, and how it stands; None in a recipe that exltune did not make.
    """

    target_bpw: float | None = None
    achieved_bpw: float | None = None
    head_bits: float | None = None
    tensors: dict[str, float]
    exltune: RecipeDetail | None = None
