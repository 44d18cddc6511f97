"""What all methods of the benchmark share: base quants, a measurement, token sets, and scores kept on disk."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from exltune.budget import Limits
from exltune.corpora.dealing import ids, token_sets
from exltune.engines.base import AUTO, Engine, Progress, open_engine
from exltune.inventory import read_config
from exltune.measurement import Budget
from exltune.pipeline.common.reporter import Reporter
from exltune.pipeline.demo import DEMO_DATA
from exltune.pipeline.measurement.measure import measure
from exltune.pipeline.quants.quantize import QuantizeOptions, quantize
from exltune.schema.measurement import Measurement
from exltune.schema.mix import Mix
from exltune.schema.score import Score
from exltune.schema.tokens import Split
from exltune.search.law.costs import nmse
from exltune.search.space.space import Space, SpaceOptions, search_space
from exltune.store.records import read_record

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
#: Scores are kept by so many rows; the first rung of the search set is one such piece.
_PIECE = 64


def prepare(model: str, reporter: Reporter, level: int = 3, budget: Budget = EVERYTHING) -> None:
    """Make a model's base quants and measurement, unless they are there."""
    work, out = WORK / model, Stage(model, level, budget).file
    # Not asked for again once they are there: quantize refuses quants of another version of the code.
    if not all((work / "quants" / QUANTS.directory(bits)).is_dir() for bits in QUANTS.widths):
        quantize(ROOT / "models" / model, work / "quants", QUANTS, DEMO_DATA, reporter=reporter)
    if not out.is_file():
        measure(ROOT / "models" / model, work / "quants", out, DEMO_DATA, level=level, budget=budget, reporter=reporter)


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

    @property
    def folder(self) -> Path:
        """The model's directory."""
        return ROOT / "models" / self.model

    @cached_property
    def measurement(self) -> Measurement:
        """All widths and heads."""
        return read_record(self.file, Measurement)

    @cached_property
    def tokens(self) -> dict[Split, Tensor]:
        """(rows, T) token ids of every set."""
        return {split: ids(tokens) for split, tokens in token_sets(DEMO_DATA, self.folder).items()}

    @cached_property
    def engine(self) -> KeptScores:
        """Scores mixes, and never one twice."""
        return KeptScores(self)

    def space(self, delta: float, widths: Sequence[float] = SAME_WIDTHS, head: Literal["auto"] | None = None) -> Space:
        """The problem at a target above the uniform K=2 quant, over some base quants; head: OPEN or the default."""
        asked = SpaceOptions(Limits(target_bpw=self.measurement.base.bpw + delta), head=head)
        return search_space(read_config(self.folder), self.folder, restricted(self.measurement, widths), asked)


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


class KeptScores:
    """An engine whose scores are kept in a SQLite file by quants, tokens and mix; KL(reference‖mix) only."""

    name = "kept"

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        detail = stage.measurement.exltune
        self._key = repr((detail.provenance.model_sha256, sorted(detail.quant_sha256.items())))
        self._file = sqlite3.connect(WORK / "scores.db", timeout=60)
        self._file.execute("PRAGMA journal_mode=WAL")
        self._file.execute("CREATE TABLE IF NOT EXISTS scores (key TEXT PRIMARY KEY, rows BLOB)")

    @cached_property
    def _engine(self) -> Engine:
        quants = {choice: Path(path) for choice, path in self._stage.measurement.exltune.quants.items()}
        return open_engine(AUTO, self._stage.folder, quants)

    def score(self, mixes: Sequence[Mix], tokens: Tensor, progress: Progress | None = None) -> list[Score]:
        """As Engine.score; nothing but kl_ref_mix is filled in."""
        pieces = [self._piece(mixes, piece, progress) for piece in tokens.split(_PIECE)]
        return [
            Score(
                mix=mix.name,
                positions=tokens.shape[1] - 1,
                kl_ref_mix=tuple(np.concatenate([piece[index] for piece in pieces]).tolist()),
                kl_mix_ref=(),
                nll=(),
                top_k=(),
            )
            for index, mix in enumerate(mixes)
        ]

    def _piece(self, mixes: Sequence[Mix], tokens: Tensor, progress: Progress | None) -> list[np.ndarray]:
        """(rows,) sums of KL of every mix."""
        text = hashlib.sha256(tokens.numpy().tobytes()).hexdigest()
        keys = [self._key_of(mix.choices, text) for mix in mixes]
        found = {key: self._read(key) for key in keys}
        missing = {key: mix for key, mix in zip(keys, mixes, strict=True) if found[key] is None}
        if missing:
            scores = self._engine.score(list(missing.values()), tokens, progress)
            fresh = {key: np.array(score.kl_ref_mix) for key, score in zip(missing, scores, strict=True)}
            with self._file:
                rows = [(key, values.tobytes()) for key, values in fresh.items()]
                self._file.executemany("INSERT OR IGNORE INTO scores VALUES (?, ?)", rows)
            found |= fresh
        return [found[key] for key in keys]

    def _key_of(self, choices: Mapping[str, str], text: str) -> str:
        return hashlib.sha256(repr((self._key, text, sorted(choices.items()))).encode()).hexdigest()

    def _read(self, key: str) -> np.ndarray | None:
        row = self._file.execute("SELECT rows FROM scores WHERE key = ?", (key,)).fetchone()
        return None if row is None else np.frombuffer(row[0])


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
