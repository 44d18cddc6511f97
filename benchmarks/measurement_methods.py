"""The estimators of the measurement benchmark: from some rows of some swaps to the KL of every swap, and their cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from measurement_truth import BLOCKS, DESIGN_BLOCKS, WORK, Pool, members, pool_of

from exltune.exl3.distortion import nmse
from exltune.measurement import Batch, ExhaustivePlan, FewSwapsPlan, passes, swap_units
from exltune.measurement.estimates import EstimatedSwaps
from exltune.measurement.probes import SwapUnit, probe_name
from exltune.schema.score import Score

#: Of this file: another one where a method estimates otherwise.
VERSION = 1

#: Rows of a replicate's search set: that of the demo.
ROWS = 128

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Guess:
    """Estimates of one replicate: log KL (parts, choices), their spreads (None where the method has none), passes."""

    log_kld: Floats
    spread: Floats | None
    passes: float


@dataclass(frozen=True)
class Draw:
    """One replicate: a search set of ROWS rows drawn from the pool; the others are its truth."""

    model: str
    seed: int

    @cached_property
    def _order(self) -> npt.NDArray[np.int64]:
        return np.random.default_rng(self.seed).permutation(truth_of(self.model).rows)

    def of(self, name: str) -> Floats:
        """(ROWS,) KL of a swap on the search set."""
        return truth_of(self.model).klds[name][self._order[:ROWS]]

    def design(self, name: str, rows: int) -> float:
        """Mean KL of a design on the first rows of the pool that it was scored on."""
        values = truth_of(self.model).designs[name]
        return float(values[np.random.default_rng(self.seed).permutation(len(values))[:rows]].mean())

    @cached_property
    def true(self) -> tuple[Floats, Floats]:
        """(parts, choices) log KL over the other rows, and its relative standard error."""
        rest = self._order[ROWS:]
        table = np.array([[truth_of(self.model).klds[mix.name][rest] for mix in part.mixes] for part in self.parts])
        mean = table.mean(axis=2)
        return np.log(mean), table.std(axis=2, ddof=1) / np.sqrt(len(rest)) / mean

    @property
    def parts(self) -> list[SwapUnit]:
        """The groups, without head and cache."""
        return [unit for unit in self.units if unit.layer is not None]

    @property
    def units(self) -> tuple[SwapUnit, ...]:
        """All that is swapped."""
        return truth_of(self.model).units


class Truth:
    """What was scored of one model's pool."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.units = swap_units(pool.inventory, 3, self.bits, pool.head.distinct)
        self.klds = dict(zip((mix.name for mix in pool.swaps), pool.kept("swaps", BLOCKS), strict=True))
        self.designs = dict(zip((mix.name for mix in pool.designs), pool.kept("designs", DESIGN_BLOCKS), strict=True))
        self.rows = len(next(iter(self.klds.values())))
        plan = ExhaustivePlan.of(pool.inventory, 3, pool.choices, pool.head, ROWS)
        self.exhaustive = passes(pool.inventory, plan.batches, ROWS)

    @property
    def bits(self) -> dict[str, float]:
        """Bits of the base quants."""
        return {quant.choice: quant.bits for quant in self.pool.quants}

    @cached_property
    def rfn(self) -> Floats:
        """(parts, choices) root mean square of the tensors' relative errors."""
        file = WORK / "truth" / self.pool.model / "rfn.json"
        if not file.is_file():
            file.write_text(json.dumps({choice: self.pool.engine.rfn(choice) for choice in self.bits}))
        errors = json.loads(file.read_text())
        inventory = self.pool.inventory
        keys = {group.id: group.tensors for group in inventory.groups}
        parts = [[key for one in groups for key in keys[one]] for groups in members(inventory).values()]
        return np.sqrt(np.array([[np.mean([errors[c][key] ** 2 for key in p]) for c in self.bits] for p in parts]))


_TRUTHS: dict[str, Truth] = {}


def truth_of(model: str) -> Truth:
    """One for each model and process."""
    return _TRUTHS.setdefault(model, Truth(pool_of(model)))


def rfn_alone(draw: Draw) -> Guess:
    """The weights' own errors, no pass at all; all groups equally sensitive."""
    return Guess(2 * np.log(truth_of(draw.model).rfn), None, 0.0)


def exhaustive(draw: Draw, share: float) -> Guess:
    """Every swap on a share of the rows, as scored."""
    rows = max(round(share * ROWS), 2)
    values = np.array([[draw.of(mix.name)[:rows] for mix in part.mixes] for part in draw.parts])
    mean = values.mean(axis=2)
    spread = values.std(axis=2, ddof=1) / np.sqrt(rows) / mean
    return Guess(np.log(mean), spread, truth_of(draw.model).exhaustive * rows / ROWS)


def law(draw: Draw, share: float, plan: Callable[[Draw, float], tuple[Batch, ...]] | None = None) -> Guess:
    """The default plan and the law of swaps."""
    batches = (plan or few_swaps)(draw, share)
    known = EstimatedSwaps(draw.units, _scores(draw, batches))
    found = [known.law.estimate(number) for number, _ in enumerate(draw.parts)]
    cost = passes(truth_of(draw.model).pool.inventory, batches, ROWS)
    return Guess(np.array([one.log_kld for one in found]), np.array([one.spread for one in found]), cost)


def few_swaps(draw: Draw, share: float) -> tuple[Batch, ...]:
    """The default plan at a share of the exhaustive one's passes."""
    truth = truth_of(draw.model)
    return FewSwapsPlan.of(truth.pool.inventory, 3, truth.bits, truth.pool.head, ROWS, share * truth.exhaustive).batches


def adaptive(draw: Draw, share: float) -> tuple[Batch, ...]:
    """Half of the passes on all, the other half on the swaps of the parts that matter most: KL over root of cost."""
    first = few_swaps(draw, share / 2)
    rows = first[0].rows.stop
    inventory = truth_of(draw.model).pool.inventory
    worth = {
        part.id: draw.of(part.mixes[0].name)[:rows].mean() / np.sqrt(inventory.layers + 1 - (part.layer or 0))
        for part in draw.parts
    }
    chosen = set(sorted(worth, key=lambda key: -worth[key])[: len(worth) // 2])
    more = [tuple(mix for mix in batch.mixes if mix.name.rpartition("@")[0] in chosen) for batch in first]
    most = min(ROWS, 3 * rows)
    return (*first, *(Batch(mixes, range(rows, most)) for mixes in more if mixes))


def power_by_role(draw: Draw, share: float) -> Guess:
    """The same swaps, S * r^p: S from the part's swap at the lowest quant, p by role from the others."""
    batches = few_swaps(draw, share)
    rows = batches[0].rows.stop
    scored = {mix.name for batch in batches for mix in batch.mixes}
    kinds = [part.id.partition(".")[2] for part in draw.parts]
    bits = np.array(draw.parts[0].bits)
    log_r = 0.5 * np.log(nmse(bits) / nmse(bits[0]))
    first = np.array([np.log(draw.of(part.mixes[0].name)[:rows].mean()) for part in draw.parts])
    slopes: dict[str, list[float]] = {}
    for kind, part, level in zip(kinds, draw.parts, first, strict=True):
        for place, mix in enumerate(part.mixes[1:], start=1):
            if mix.name in scored:
                slopes.setdefault(kind, []).append((np.log(draw.of(mix.name)[:rows].mean()) - level) / log_r[place])
    p = np.array([np.mean(slopes.get(kind, [1.6])) for kind in kinds])
    spread = np.array([draw.of(part.mixes[0].name)[:rows].std(ddof=1) for part in draw.parts]) / np.exp(first)
    cost = passes(truth_of(draw.model).pool.inventory, batches, ROWS)
    log_kld = first[:, None] + p[:, None] * log_r[None, :]
    return Guess(log_kld, np.broadcast_to(spread[:, None] / np.sqrt(rows), log_kld.shape), cost)


#: KL of a design as a power of the summed parts: the best of 0.6 to 1 for this method on these models.
_GAMMA = 0.9


def designs(draw: Draw, share: float) -> Guess:
    """Random halves of the groups at 2 and 3 bits at a time, solved for the parts by ridge towards equal ones."""
    truth = truth_of(draw.model)
    inventory = truth.pool.inventory
    mixes = truth.pool.designs
    whole = passes(inventory, [Batch(mixes, range(ROWS))], ROWS)
    rows = min(max(int(ROWS * share * truth.exhaustive / whole), 2), ROWS)
    bits = np.array(draw.parts[0].bits)
    ratio = nmse(bits) / nmse(bits[0])
    place = list(truth.bits)
    first = [groups[0] for groups in members(inventory).values()]
    taken = [[mix.choices[group] for group in first] for mix in mixes]
    table = np.array([[ratio[place.index(one)] if one in truth.bits else 0.0 for one in row] for row in taken])
    energy = np.array([draw.design(mix.name, rows) for mix in mixes]) ** (1 / _GAMMA)
    weight = 1 / energy
    scale = float((weight * table.sum(1)) @ (weight * energy) / ((weight * table.sum(1)) @ (weight * table.sum(1))))
    prior = np.full(len(draw.parts), scale)
    left, right = table * weight[:, None] * scale, weight * (energy - table @ prior)
    parts = prior + scale * np.linalg.solve(left.T @ left + 0.02 * np.eye(len(prior)), left.T @ right)
    log_kld = _GAMMA * (np.log(np.maximum(parts, 0.05 * scale))[:, None] + np.log(ratio)[None, :])
    return Guess(log_kld, None, passes(inventory, [Batch(mixes, range(rows))], ROWS))


def _scores(draw: Draw, batches: tuple[Batch, ...]) -> Mapping[str, Score]:
    """Scores of a plan's swaps on the replicate's rows."""
    names = {probe_name(unit.id, choice) for unit in draw.units for choice in unit.choices}
    rows: dict[str, int] = {}
    for batch in batches:
        for mix in batch.mixes:
            rows[mix.name] = max(rows.get(mix.name, 0), batch.rows.stop)
    return {
        name: Score(mix=name, positions=1, kl_ref_mix=tuple(draw.of(name)[:count]), kl_mix_ref=(), nll=(), top_k=())
        for name, count in rows.items()
        if name in names
    }


#: Method name -> the estimate at a share of the exhaustive cost.
METHODS: Mapping[str, Callable[[Draw, float], Guess]] = {
    "rfn alone": lambda draw, share: rfn_alone(draw),
    "exhaustive, fewer rows": exhaustive,
    "half designs, ridge": designs,
    "S*rfn^p, p by role": power_by_role,
    "law, adaptive rows": lambda draw, share: law(draw, share, adaptive),
    "law (default)": law,
}
