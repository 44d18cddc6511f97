"""The record of a search, for the recipe and for people: rounds, standings on fresh rows, and dropped mixes."""

from __future__ import annotations

from pydantic import Field

from exltune.schema.base import Record
from exltune.schema.candidate import Candidate
from exltune.schema.mix import Choice
from exltune.schema.plan import Limit


class Budget(Record):
    """The budget of the mix. binding: the limit that is tightest; limits: the bpw that each of them allows."""

    binding: Limit
    limits: dict[str, float]
    target_bpw: float | None = None
    size_bytes: int | None = None
    gpus: tuple[int, ...] = ()
    vram_bytes: int | None = None
    context: int | None = None
    groups_budget_bytes: int


class ScoredMix(Record):
    """A mix and its scores on the first rows of the search set.

    kld_rows: (rows scored,) mean KL(reference‖mix) of each row, nats/token. source: its proposer.
    """

    source: str
    choices: dict[str, Choice]
    size_bytes: int
    kld_rows: tuple[float, ...]


class Round(Record):
    """One round of the loop.

    passes: spent so far. sources: mixes scored, by proposer. rank_correlation (Spearman) and log_error
    (standard deviation of log KL): of the law's predictions, made before the round's mixes were scored.
    incumbent_kld: of the incumbent at every size, on the search set. gamma: the law's exponent from error energy to
    KL(reference‖mix).
    """

    number: int
    passes: float
    sources: dict[str, int]
    rank_correlation: float | None = None
    log_error: float | None = None
    incumbent_kld: tuple[float | None, ...]
    gamma: float


class Standing(Candidate):
    """How one method's candidate stands at the end.

    search_kld and selection_kld: measured mean KL(reference‖mix), nats/token, with standard errors; the selection set
    is fresh rows that no fit has seen. margin: selection KL(reference‖mix) over the handed-over mix's, paired by row,
    with its 95 % interval; positive means worse than the one handed over. eligible: within the budget and above the
    floors.
    """

    search_kld: float | None = None
    search_kld_se: float | None = None
    selection_kld: float | None = None
    selection_kld_se: float | None = None
    margin: float | None = None
    margin_ci95: tuple[float, float] | None = None
    eligible: bool = True


class FrontPoint(Record):
    """The handed-over mix at one size of a search over several."""

    target_bpw: float
    bpw: float
    size_bytes: int
    winner: str
    selection_kld: float | None = None
    selection_kld_se: float | None = None
    predicted_kld: float | None = None
    recipe: str | None = None


class SearchDetail(Record):
    """The search behind a recipe.

    outcome: name of the standing that was handed over. searched: whether the loop ran (the base quants were at hand).
    passes: model passes over the whole search set that the loop spent. options: of the command
    line, that bounded it. dropped: mixes that scored NaN.
    """

    outcome: str
    searched: bool
    passes: float
    options: tuple[str, ...] = ()
    rounds: tuple[Round, ...]
    standings: tuple[Standing, ...]
    exponents: dict[str, float] = Field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    front: tuple[FrontPoint, ...] = ()
    warnings: tuple[str, ...] = ()
