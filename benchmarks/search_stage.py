"""What all methods of the benchmark share: base quants, a measurement, token sets, and scores kept on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Literal

from exltune.budget import Limits
from exltune.measurement import Budget
from exltune.pipeline.common.reporter import Reporter
from exltune.pipeline.common.session import Session
from exltune.pipeline.demo import DEMO_DATA
from exltune.pipeline.measurement.measure import MeasureOptions, measure
from exltune.pipeline.quants.quantize import QuantizeOptions, quantize
from exltune.schema.measurement import Measurement
from exltune.schema.tokens import Split
from exltune.search.law.costs import nmse
from exltune.search.space.space import Space, SpaceOptions, search_space
from exltune.store.identity import identity
from exltune.store.names import QUANTS as QUANTS_FOLDER
from exltune.store.records import read_record
from exltune.store.score_cache import CachedRows

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "out" / "search-benchmark"
MODELS = ("glm4moe", "qwen3moe", "qwen3")
#: Targets in bpw above the uniform K=2 quant.
DELTAS = (0.05, 0.2, 0.5, 1.0, 1.5, 2.2)
QUANTS = QuantizeOptions(widths=(2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0), head_bits=(3.0, 4.0, 5.0, 6, 6, 6, 6, 8.0))
#: What exltune quantize makes without options: the same space for all methods.
SAME_WIDTHS = (2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
#: A head whose bits the search chooses.
OPEN: Literal["auto"] = "auto"
#: A measurement that scores every swap on all rows.
EVERYTHING = Budget(everything=True)
#: Scores of all models, shared by all benchmarks and their processes.
SCORES = WORK / "scores.db"
#: What decides a result beside its measurement and its scores, which are kept by content.
_ALGORITHMS = ("search", "law", "rules", "baselines", "size", "memory", "judge")
_LIBRARIES = ("numpy", "scipy", "optuna")


def prepare(model: str, reporter: Reporter, level: int = 3, budget: Budget = EVERYTHING) -> None:
    """Make a model's base quants and measurement, unless they are there."""
    stage = Stage(model, level, budget)
    with open_session(model, reporter) as session:
        # Not asked for again once they are there: quantize refuses quants of another version of the code.
        if not all((quants_of(model) / QUANTS.directory(bits)).is_dir() for bits in QUANTS.widths):
            quantize(session, quants_of(model), QUANTS)
        if not stage.file.is_file():
            measure(session, stage.file, MeasureOptions(level, budget))


def open_session(model: str, reporter: Reporter | None = None) -> Session:
    """A session on a model, its base quants and the scores that are kept."""
    return Session(ROOT / "models" / model, DEMO_DATA, quants=quants_of(model), store=SCORES, reporter=reporter)


def quants_of(model: str) -> Path:
    """The folder of a model's base quants."""
    return WORK / model / QUANTS_FOLDER


def key_of(what: str, measurement: Measurement, **inputs: object) -> str:
    """What a result that is kept is known by: the first 16 hex digits of its identity."""
    found = identity(what, algorithms=_ALGORITHMS, libraries=_LIBRARIES, measurement=measurement, **inputs)
    return found[:16]


@dataclass(frozen=True)
class Stage:
    """One model with its measurement on the wide set of base quants, at a level and for a budget."""

    model: str
    level: int = 3
    budget: Budget = EVERYTHING

    @property
    def file(self) -> Path:
        """The measurement's file."""
        return WORK / self.model / f"measurement-l{self.level}{'' if self.budget.everything else '-part'}.json"

    @cached_property
    def measurement(self) -> Measurement:
        """All widths and heads."""
        return read_record(self.file, Measurement)

    @cached_property
    def session(self) -> Session:
        """On the model and its base quants."""
        return open_session(self.model)

    def scores(self, split: Split) -> CachedRows:
        """Scores of mixes on a token set, none of them computed twice."""
        session = self.session
        assert session.base_quants, "the engine knows them from here on"
        return session.scores.on(session.ids(split))

    def space(self, delta: float, widths: Sequence[float] = SAME_WIDTHS, head: Literal["auto"] | None = None) -> Space:
        """The problem at a target above the uniform K=2 quant, over some base quants; head: OPEN or the default."""
        asked = SpaceOptions(Limits(target_bpw=self.measurement.base.bpw + delta), head=head)
        session = self.session
        return search_space(session.config, session.model, restricted(self.measurement, widths), asked)


@cache
def stage_of(model: str, level: int = 3, budget: Budget = EVERYTHING) -> Stage:
    """One stage for each measurement and process."""
    return Stage(model, level, budget)


def restricted(measurement: Measurement, widths: Sequence[float]) -> Measurement:
    """A measurement as it would be with fewer base quants; the head's own probes stay."""
    detail = measurement.exltune
    groups = tuple(
        group.model_copy(update={"probes": tuple(probe for probe in group.probes if probe.bits in widths)})
        for group in detail.groups
    )
    names = {f"uniform@{bits:g}" for bits in widths}
    mixes = tuple(row for row in detail.mixes if row.name in names)
    return measurement.model_copy(update={"exltune": detail.model_copy(update={"groups": groups, "mixes": mixes})})


def with_flat_singles(measurement: Measurement) -> Measurement:
    """A measurement whose swaps say nothing but the groups' sizes: KL in proportion to weights, for an ablation."""
    detail = measurement.exltune
    numel = sum(group.numel for group in detail.groups)
    lowest = min(probe.bits for probe in detail.groups[0].probes)
    total = sum(group.probes[0].kld_nats for group in detail.groups)
    groups = []
    for group in detail.groups:
        probes = []
        for probe in group.probes:
            kld = total * group.numel / numel * float(nmse(probe.bits) / nmse(lowest)) ** 0.73
            probes.append(probe.model_copy(update={"kld_nats": kld, "kld_se_nats": kld}))
        groups.append(group.model_copy(update={"probes": tuple(probes)}))
    return measurement.model_copy(update={"exltune": detail.model_copy(update={"groups": tuple(groups)})})


def at_measurement(space: Space, measurement: Measurement) -> Space:
    """The same space with another measurement."""
    return replace(space, problem=replace(space.problem, measurement=measurement))
