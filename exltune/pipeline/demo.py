"""`exltune demo`: the whole chain on a small model that comes with the repository."""

from __future__ import annotations

from pathlib import Path

from exltune.budget import Limits
from exltune.errors import NotAModelError, VerdictError
from exltune.pipeline.common.reporter import Reporter
from exltune.pipeline.common.session import Session
from exltune.pipeline.tune import WIDE, tune
from exltune.schema.evaluation import TuneResult, Verdict
from exltune.schema.tokens import DataOptions, Texts
from exltune.search.space.space import AUTO, SpaceOptions

#: The small models beside the package in its repository.
MODELS = Path(__file__).resolve().parents[2] / "models"
DEMO_MODEL = MODELS / "glm4moe"
DEMO_BPW = 3.4
DEMO_DATA = DataOptions(texts=Texts.SMALL_MODEL, row_length=128, rows=512)


def demo(out: Path, *, reporter: Reporter | None = None) -> TuneResult:
    """Tune the small Glm4Moe from scratch in `out`. Raises: NotAModelError without the repository's models."""
    if not DEMO_MODEL.is_dir():
        raise NotAModelError(
            "the demo's model is not here", where=str(DEMO_MODEL), fix="Run the demo from a clone of the repository"
        )
    with Session(DEMO_MODEL, DEMO_DATA, reporter=reporter) as session:
        return tune(session, out, SpaceOptions(Limits(target_bpw=DEMO_BPW), head=AUTO), WIDE)


def check_won(verdict: Verdict) -> None:
    """Raise VerdictError unless the tuned mix beats the uniform quant with a 95 % interval above zero."""
    low, high = verdict.difference_ci95
    if verdict.source == "uniform" or low <= 0:
        raise VerdictError(
            f"the winner is {verdict.source!r}, and KL(ref‖uniform) - KL(ref‖tuned) is {verdict.difference:.4f} nats "
            f"(95 % interval {low:.4f} to {high:.4f}): not better than the uniform quant",
            fix="This is a defect of exltune on this machine; please report it with the files in `out`",
        )
