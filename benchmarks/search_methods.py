"""The methods of the benchmark: exltune's own search through its pipeline, and what it is compared with."""

from __future__ import annotations

import contextlib
import io
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import TPESampler
from optuna.trial import TrialState, create_trial
from search_stage import OPEN, QUANTS, ROOT, SAME_WIDTHS, Stage, restricted

from exltune.metrics import mean_and_se, row_means
from exltune.pipeline.common.reporter import Silent
from exltune.pipeline.optimization.optimize import OptimizeOptions, SearchOutcome, _Run
from exltune.schema.candidate import Candidate
from exltune.schema.mix import Mix, MixSize
from exltune.schema.tokens import Split
from exltune.search import OF_BASELINE, SearchOptions, SearchProblem, baseline_mixes, load_all_rules
from exltune.search.baselines.methods import strategy, uniform
from exltune.search.space.space import Space

#: Passes that ours may spend beside the seeds' scores, and mixes that the black boxes may score.
PASSES, MIXES = 32.0, 44
#: Of the black boxes' mixes so many go on from half of the search set to all of it.
_FINALISTS = 4
_BATCH = 11

Assignment = tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """One method in one cell. search_kld: on the search set; held_out: (rows,) KL of each held-out row; nats/token.

    passes, mixes: over the search set and scored, after the measurement.
    """

    model: str
    delta: float
    method: str
    seed: int
    bpw: float
    size_bytes: int
    search_kld: float
    held_out: list[float]
    choices: dict[str, str]
    passes: float = 0.0
    mixes: int = 0
    note: str = ""

    @property
    def kld(self) -> float:
        """Held-out KL(reference‖mix)."""
        return sum(self.held_out) / len(self.held_out)


class Cell:
    """One model at one target."""

    def __init__(self, stage: Stage, delta: float) -> None:
        self.stage, self.delta = stage, delta
        self.problem = stage.space(delta).problem

    def row(self, method: str, choices: Mapping[str, str], seed: int = 0, **more: Any) -> Row:
        """Score a finished mix on the held-out set."""
        mix = Mix(name=method, choices=dict(choices))
        score = {split: self.stage.scores(split).score([mix])[0] for split in (Split.SEARCH, Split.HELD_OUT)}
        size = self.size_of(choices)
        held_out = score[Split.HELD_OUT]
        return Row(
            model=self.stage.model,
            delta=self.delta,
            method=method,
            seed=seed,
            bpw=size.bpw,
            size_bytes=size.size_bytes,
            search_kld=mean_and_se(score[Split.SEARCH].kl_ref_mix, held_out.positions).mean,
            held_out=row_means(held_out.kl_ref_mix, held_out.positions).tolist(),
            choices=dict(choices),
            **more,
        )

    def size_of(self, choices: Mapping[str, str]) -> MixSize:
        """Size of a mix; the head's bits are those of the base quant that it names."""
        head = self.problem.inventory.head.id
        bits = {group: float(choices[group]) for group in self.problem.group_ids}
        return self.problem.sizes.mix_size(bits | {head: self.stage.measurement.exltune.heads[choices[head]]})

    def kld(self, mixes: Sequence[Assignment], rows: range | None = None) -> list[float]:
        """Search KL of mixes on some rows (all if None)."""
        named = [
            Mix(name=str(i), choices=self.problem.candidate_of("", one).mix.choices) for i, one in enumerate(mixes)
        ]
        scores = self.stage.scores(Split.SEARCH).score(named, rows)
        return [mean_and_se(score.kl_ref_mix, score.positions).mean for score in scores]


def search(
    cell: Cell, space: Space, settings: SearchOptions, *, rules: bool = True
) -> tuple[SearchOutcome, Sequence[Candidate]]:
    """The pipeline's own search and verdict, with scores from the kept ones; and the baselines it had."""
    stage = cell.stage
    options = OptimizeOptions(search=settings)
    measurement = space.problem.measurement
    assert measurement is not None
    run = _Run([space], options, measurement, None, Silent(), ())
    if not rules:
        run.rules = ()
        known = {one.name for one in load_all_rules()}
        run.baselines = [tuple(one for one in many if one.name not in known) for many in run.baselines]
    outcome = run.search(stage.scores(Split.SEARCH), stage.scores(Split.SELECTION))
    return outcome, run.baselines[0]


def ours(cell: Cell, method: str, space: Space, settings: SearchOptions, *, rules: bool = True) -> Row:
    """What the search hands over."""
    outcome, known = search(cell, space, settings, rules=rules)
    winner, loop = outcome.standings[0][0], outcome.search
    assert loop is not None
    proposed = [mix for mix in loop.ledger.history.mixes.values() if not mix.source.startswith(OF_BASELINE)]
    error = next((one.log_error for one in reversed(loop.rounds) if one.log_error), None)
    note = f"{winner.name}; gamma {outcome.law.gamma:.2f}" + (f"; log error {error:.3f}" if error else "")
    return cell.row(
        method,
        winner.choices,
        seed=settings.seed,
        passes=loop.ledger.passes,
        mixes=len(proposed) + len({one.mix.key for one in known}),
        note=note,
    )


def both_spaces(cell: Cell, seed: int) -> list[Row]:
    """Ours on the same space as all others, and on the wide one."""
    settings = SearchOptions(passes=PASSES, seed=seed)
    return [
        ours(cell, "ours", cell.stage.space(cell.delta), settings),
        ours(cell, "ours-wide", cell.stage.space(cell.delta, QUANTS.widths, OPEN), settings),
    ]


def baselines(cell: Cell) -> list[Row]:
    """Methods without a search; rules: the file that is best on the search set."""
    rules = load_all_rules()
    seeds = {seed.name: seed.mix.choices for seed in baseline_mixes(cell.problem, rules)}
    rows = [
        cell.row(name, seeds[name])
        for name in ("uniform", "exllamav3-strategy", "exllamav3-hq", "convex", "knapsack-fit")
        if name in seeds
    ]
    rows.append(cell.row("exllamav3-greedy", own_greedy(cell)))
    named = [Mix(name=one.name, choices=seeds[one.name]) for one in rules]
    scores = cell.stage.scores(Split.SEARCH).score(named)
    best = min(scores, key=lambda score: sum(score.kl_ref_mix))
    rows.append(cell.row("best-rules", seeds[best.mix], passes=float(len(rules)), mixes=len(rules), note=best.mix))
    return rows


def own_greedy(cell: Cell) -> dict[str, str]:
    """The mix that exllamav3's optimizer makes of the measurement: its own function, on the tests' stand-in."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    from tests.standin.hook import install

    install()
    from exllamav3.conversion.optimize_model import optimize

    problem, measurement = cell.problem, restricted(cell.stage.measurement, SAME_WIDTHS)
    groups, candidates = measurement.exltune.groups, []
    for group in groups:
        lowest, *others = group.probes
        candidates.append(
            [
                {"dkld": one.kld_nats - lowest.kld_nats, "dbits": 8 * (one.size_bytes - lowest.size_bytes)}
                for one in others
            ]
        )
    written = {"groups": [{"candidates": one} for one in candidates]}
    base = 8 * sum(group.probes[0].size_bytes for group in groups)
    with contextlib.redirect_stdout(io.StringIO()):
        solution = optimize(written, 0, base, 8 * problem.groups_budget_bytes, 0.0, len(SAME_WIDTHS) - 1)
    bits = {
        member: group.probes[step].bits
        for group, step in zip(groups, solution, strict=True)
        for member in group.members
    }
    return problem.candidate("exllamav3-greedy", bits).mix.choices


def optuna_tpe(cell: Cell, seed: int) -> Row:
    """Plain Optuna on every group's width, repaired to the budget; it begins with exllamav3's strategy."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    problem, rng = cell.problem, random.Random(seed)
    study = optuna.create_study(sampler=TPESampler(seed=seed, multivariate=True, constant_liar=True))
    ranges: dict[str, BaseDistribution] = {
        str(i): IntDistribution(0, len(unit.options) - 1) for i, unit in enumerate(problem.units)
    }
    known: dict[Assignment, float] = {}
    while len(known) < MIXES:
        batch = {} if known else {_start(problem): None}
        for _ in range(20 * _BATCH):
            if len(batch) >= min(_BATCH, MIXES - len(known)):
                break
            trial = study.ask(ranges)
            study.tell(trial, state=TrialState.FAIL)
            assignment = filled(problem, [trial.params[name] for name in ranges], rng)
            if assignment not in known:
                batch[assignment] = None
        if not batch:
            break
        # What is learnt from is the repaired mix, not the one that did not fit.
        for assignment, kld in zip(batch, cell.kld(list(batch), _half(cell)), strict=True):
            known[assignment] = kld
            params = dict(zip(ranges, assignment, strict=True))
            study.add_trial(create_trial(params=params, distributions=ranges, value=kld))
    return _best_of(cell, "optuna", known, seed)


def evopress(cell: Cell, seed: int) -> Row:
    """(1 + lambda) mutation: some groups up, others down at equal bytes, from exllamav3's strategy.

    As EvoPress does, offspring meet on a part of the text first, and the best of them on all of it.
    """
    problem, rng = cell.problem, random.Random(seed)
    parent = _start(problem)
    known = {parent: cell.kld([parent], _half(cell))[0]}
    best = cell.kld([parent])[0]
    rescored = 1
    while len(known) < MIXES:
        batch: dict[Assignment, None] = {}
        for _ in range(20 * _BATCH):
            if len(batch) >= min(_BATCH, MIXES - len(known)):
                break
            child = mutated(problem, parent, rng)
            if child not in known:
                batch[child] = None
        if not batch:
            break
        known |= dict(zip(batch, cell.kld(list(batch), _half(cell)), strict=True))
        leaders = sorted(batch, key=lambda assignment: known[assignment])[:2]
        rescored += len(leaders)
        for child, kld in zip(leaders, cell.kld(leaders), strict=True):
            if kld < best:
                parent, best = child, kld
    choices = problem.candidate_of("", parent).mix.choices
    return cell.row("evopress", choices, seed, passes=(len(known) + rescored) / 2, mixes=len(known))


def _half(cell: Cell) -> range:
    return range(len(cell.stage.scores(Split.SEARCH)) // 2)


def _best_of(cell: Cell, method: str, known: Mapping[Assignment, float], seed: int) -> Row:
    finalists = sorted(known, key=lambda assignment: known[assignment])[:_FINALISTS]
    klds = cell.kld(finalists)
    best = min(zip(klds, finalists, strict=True))[1]
    choices = cell.problem.candidate_of("", best).mix.choices
    return cell.row(method, choices, seed, passes=(len(known) + len(finalists)) / 2, mixes=len(known))


def _start(problem: SearchProblem) -> Assignment:
    seed = strategy(problem) or uniform(problem)
    assignment = problem.assignment_of(seed.mix.choices) if seed else None
    assert assignment is not None
    return assignment


def mutated(problem: SearchProblem, parent: Assignment, rng: random.Random) -> Assignment:
    """One to three random groups a step up; random others pay."""
    child = list(parent)
    raised = rng.sample(range(len(child)), rng.randint(1, 3))
    for number in raised:
        child[number] = min(child[number] + 1, len(problem.units[number].options) - 1)
    return filled(problem, child, rng, keep=raised)


def filled(problem: SearchProblem, wanted: Sequence[int], rng: random.Random, keep: Sequence[int] = ()) -> Assignment:
    """A mix within the budget that no single step up fits into any more: random groups pay and gain."""
    assignment = list(wanted)
    while not problem.within(assignment):
        lower = [i for i, index in enumerate(assignment) if index > 0]
        free = [i for i in lower if i not in keep]
        assignment[rng.choice(free or lower)] -= 1
    for number in rng.sample(range(len(assignment)), len(assignment)):
        step = list(assignment)
        step[number] += 1
        if step[number] < len(problem.units[number].options) and problem.within(step):
            assignment = step
    return tuple(assignment)
