"""Golden results of what computes with sizes, laws and choices: no weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
from laws import LawEngine, run_search
from synthetic_measurement import synthetic_measurement

from exltune.budget import (
    Limits,
    Question,
    SizeModel,
    model_profile,
    parse_cache,
    parse_gpus,
    parse_size,
    plan,
    weights_of_bits,
)
from exltune.evaluation.compare import compare_metrics
from exltune.exl3.distortion import nmse
from exltune.inventory import groups_at_level, inventory_from_config
from exltune.measurement import Budget, QuantHead, plan_for, swap_units
from exltune.measurement.law import LawUnit, SwapLaw
from exltune.schema.candidate import Candidate
from exltune.schema.hardware import Hardware, Use
from exltune.schema.inventory import Inventory
from exltune.schema.measurement import Measurement
from exltune.schema.score import Score
from exltune.search import SearchOptions, SearchProblem, Surrogate, baseline_mixes, load_all_rules, rules_mix
from exltune.search import search_problem as problem_of
from exltune.search.law.costs import fitted_costs, measured_costs
from exltune.search.loop.ranking import distinct_candidates, standings
from exltune.search.solve.exact import solve
from exltune.search.space.space import SpaceOptions, search_space
from exltune.testing.laws import INVENTORY, WIDTHS, measured, random_law
from tests.golden.inputs import config, sha256

#: Grouped, latent and linear attention, sliding windows, dense layers and experts.
_MODELS = ("moonlight-16b-a3b", "qwen3.5-27b", "llama-3.1-8b", "gpt-oss-20b")


@cache
def _inventory(name: str) -> Inventory:
    return inventory_from_config(config(name))


def inventory(folder: Path) -> object:
    """Linears, groups and parts of published models."""
    found = {}
    for name in (*_MODELS, "glm-4-9b", "phi-3-mini"):
        made = _inventory(name)
        found[name] = {
            "inventory": sha256(made.model_dump(mode="json")),
            "parts": [len(groups_at_level(made, level)) for level in (1, 2, 3, 4)],
        }
    return found


def size(folder: Path) -> object:
    """Bytes of plain quants, and of a mix."""
    found = {}
    for name in _MODELS:
        sizes = SizeModel(_inventory(name), "mul1")
        groups = [group.id for group in sizes.inventory.groups]
        mix = {id_: (2.0, 3.5, 16.0)[number % 3] for number, id_ in enumerate(groups)} | {sizes.inventory.head.id: 6.0}
        plain = {f"{bits:g}": sizes.uniform_size(bits, 6.0).model_dump() for bits in (2, 3.5, 8)}
        found[name] = {"plain": plain, "mix": sizes.mix_size(mix).model_dump(), "budget": sizes.budget_bytes(4.1)}
    return found


def memory(folder: Path) -> object:
    """Plans of published models on cards."""
    found = {}
    for name in _MODELS:
        profile = model_profile(config(name))
        for gpus, cache_bits, context, extra in (
            ("2x24GiB,16GiB", "6,5", 8192, {}),
            ("4x16GiB", "fp16", 4096, {"tensor_parallel": name == "llama-3.1-8b"}),
        ):
            use = Use(cache=parse_cache(cache_bits), context=context, **extra)
            limits = Limits(Hardware(gpus=parse_gpus(gpus)))
            free = plan(Question(profile, limits, use))
            given = plan(Question(profile, limits, use, weights_of_bits(profile, 4, 6)))
            found[f"{name} {gpus}"] = [answer.model_dump(mode="json", exclude={"unit"}) for answer in (free, given)]
    return found


def measure(folder: Path) -> object:
    """Units and plans of a measurement, and the law of single swaps."""
    quants = {"2": 2.0, "3": 3.0, "4": 4.0, "8": 8.0}
    head = QuantHead("4", 6.0, "mul1", {"2": 4.0, "4": 6.0, "8": 8.0})
    plans = {}
    for level in (1, 2, 3, 4):
        for passes in (None, 12.0):
            made = plan_for(INVENTORY, level, quants, head, 32, Budget(passes), lambda: 1.0)
            batches = made.next({})
            plans[f"{level} {passes}"] = [
                [batch.rows.start, batch.rows.stop, len(batch.mixes), sha256([mix.choices for mix in batch.mixes])]
                for batch in batches
            ]
    units = swap_units(INVENTORY, 3, quants, head.distinct)
    return {"plans": plans, "routers": [unit.routers for unit in units], "law": _swap_law()}


def _swap_law() -> object:
    rng = np.random.default_rng(0)
    bits = np.array([2.0, 3.0, 4.0, 8.0])
    log_error = tuple(0.5 * np.log(nmse(bits) / nmse(2.0)))
    units = [LawUnit(log_error, (0, 1, 2, 3), number % 3) for number in range(8)]
    cells = [(unit, 0) for unit in range(8)] + [(unit, 2) for unit in range(0, 8, 2)]
    rows = {(u, o): (0.1 + 0.02 * u) * np.exp(1.5 * log_error[o]) * rng.gamma(9.0, 1 / 9.0, 24) for u, o in cells}
    law = SwapLaw(units, rows)
    estimates = [law.estimate(unit) for unit in (0, 1, 5)]
    return [list(law.router_law), *[[*one.log_kld.tolist(), *one.spread.tolist()] for one in estimates]]


@cache
def _measurement() -> Measurement:
    return measured(random_law(seed=2, noise=0.05), rows=8)


@cache
def _problem(target: float = 3.2) -> SearchProblem:
    return problem_of(
        INVENTORY,
        target_bpw=target,
        widths=WIDTHS,
        codebook="mul1",
        head_choice="6",
        head_bits=6.0,
        measurement=_measurement(),
    )


def law(folder: Path) -> object:
    """Costs, and the law of whole mixes before and after it has seen some."""
    problem, truth = _problem(), random_law(seed=2, noise=0.05)
    surrogate = Surrogate(problem)
    rng = np.random.default_rng(3)
    assignments = [[int(rng.integers(0, len(unit.options))) for unit in problem.units] for _ in range(12)]
    before = surrogate.predict(assignments).tolist()
    klds = [truth.kld(problem.candidate_of("", one).mix.choices) for one in assignments]
    surrogate.fit(assignments, klds)
    bits = {group: 3.0 if number % 2 else 2.0 for number, group in enumerate(problem.group_ids)}
    return {
        "costs": [make(_measurement(), WIDTHS).predict(bits) for make in (measured_costs, fitted_costs)],
        "before": before,
        "after": surrogate.predict(assignments).tolist(),
        "gamma": surrogate.gamma,
        "exponents": surrogate.exponents(),
    }


def rules(folder: Path) -> object:
    """Mixes from every file of hand rules."""
    return {one.name: _told(_problem().candidate(one.name, rules_mix(_problem(), one))) for one in load_all_rules()}


def baselines(folder: Path) -> object:
    """What every method proposes."""
    return {one.name: _told(one) for one in baseline_mixes(_problem(), ())}


def search(folder: Path) -> object:
    """The exact optimum, a search that proposes and scores, and a space of cards, head and cache."""
    problems = [_problem(), _problem(2.7)]
    ran = run_search(problems, LawEngine(random_law(seed=2, noise=0.05)), SearchOptions(passes=12, batch=6))
    best = solve(problems[0], Surrogate(problems[0]).energies())
    assert best is not None
    held = [problem.candidate_of("held", one) for problem, one in zip(problems, ran.search.incumbent, strict=True)]
    rounds = [{"sources": one.sources, "incumbent": list(one.incumbent_kld)} for one in ran.search.rounds]
    return {
        "exact": _told(problems[0].candidate_of("exact", best)),
        "held": [_told(one) for one in held],
        "rounds": rounds,
        "space": _spaces(),
    }


def _spaces() -> object:
    found = {}
    made = config("llama-3.1-8b")
    own = synthetic_measurement(_inventory("llama-3.1-8b"), (2.0, 3.0, 4.0, 6.0), (6.0,), level=2)
    for name, asked in {
        "gpus": SpaceOptions(Limits(Hardware(gpus=parse_gpus("6GiB"))), Use(context=4096), cache="auto", head="auto"),
        "size": SpaceOptions(Limits(size_bytes=parse_size("4GiB"))),
    }.items():
        space = search_space(made, Path("llama"), own, asked)
        problem = space.problem
        best = solve(problem, Surrogate(problem).energies())
        assert best is not None
        found[name] = {
            "budget": space.budget.model_dump(mode="json"),
            "extras": dict(problem.extras),
            "best": _told(problem.candidate_of(name, best)),
        }
    return found


def judge(folder: Path) -> object:
    """Standings on fresh rows, and two quants held against each other."""
    problem, truth = _problem(), random_law(seed=2, noise=0.05)
    offered = baseline_mixes(problem, ())
    best = solve(problem, Surrogate(problem).energies())
    assert best is not None
    candidates = distinct_candidates(problem, offered, {"search-law": best})
    scores = {one.name: _score(one, truth.rows(one.mix.choices, range(100, 108))) for one in candidates}
    ranked = standings(problem, candidates, Surrogate(problem), None, scores)
    first, second = ranked[0].name, ranked[1].name
    shown = {"name", "bpw", "predicted_kld", "selection_kld", "selection_kld_se", "margin", "margin_ci95", "eligible"}
    return {
        "standings": [row.model_dump(mode="json", include=shown) for row in ranked],
        "compare": [one.model_dump(mode="json") for one in compare_metrics(scores[first], scores[second])],
    }


def _score(candidate: Candidate, klds: np.ndarray) -> Score:
    sums = tuple((10 * klds).tolist())
    return Score(
        mix=candidate.name,
        positions=10,
        kl_ref_mix=sums,
        kl_mix_ref=tuple((9 * klds).tolist()),
        nll=tuple((10 * klds + 20).tolist()),
        top_k=tuple(tuple(max(9 - k - number % 3, 0) for number in range(len(sums))) for k in range(5)),
    )


def _told(candidate: Candidate) -> Mapping[str, object]:
    """A mix in few words: its bytes, how many groups take each width, and all choices by their hash."""
    choices = candidate.choices
    return {
        "size_bytes": candidate.size_bytes,
        "widths": {choice: list(choices.values()).count(choice) for choice in sorted(set(choices.values()))},
        "choices": sha256(choices),
    }
