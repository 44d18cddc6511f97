"""The search for the bits of every group at a budget; no torch."""

from exltune.search.baselines.methods import BASELINES, Baseline, baseline_mixes
from exltune.search.baselines.strategy import (
    exllamav3_strategy,
    smallest_strategy_at_least,
    strategy_within,
)
from exltune.search.law.surrogate import Surrogate
from exltune.search.loop.history import OF_BASELINE, History
from exltune.search.loop.loop import Search, SearchOptions
from exltune.search.loop.samplers import SAMPLERS, Knobs, SamplerRow, rule_bits, sampler, sampler_names
from exltune.search.loop.sources import SOURCES, Proposal
from exltune.search.loop.study import knob_study, open_storage, storage_errors
from exltune.search.problem.pairs import unfused
from exltune.search.problem.problem import SearchProblem, SearchUnit, UnitOption, cache_unit, head_unit, search_problem
from exltune.search.rules.floors import floors
from exltune.search.rules.rules import RULES_DIR, load_all_rules, load_rules, rules_mix
from exltune.search.rules.wishes import out_of_reach, unmatched
from exltune.search.solve.exact import solve
from exltune.search.solve.knapsack import Option, solve_knapsack

__all__ = [
    "BASELINES",
    "OF_BASELINE",
    "RULES_DIR",
    "SAMPLERS",
    "SOURCES",
    "Baseline",
    "History",
    "Knobs",
    "Option",
    "Proposal",
    "SamplerRow",
    "Search",
    "SearchOptions",
    "SearchProblem",
    "SearchUnit",
    "Surrogate",
    "UnitOption",
    "baseline_mixes",
    "cache_unit",
    "exllamav3_strategy",
    "floors",
    "head_unit",
    "knob_study",
    "load_all_rules",
    "load_rules",
    "open_storage",
    "out_of_reach",
    "rule_bits",
    "rules_mix",
    "sampler",
    "sampler_names",
    "search_problem",
    "smallest_strategy_at_least",
    "solve",
    "solve_knapsack",
    "storage_errors",
    "strategy_within",
    "unfused",
    "unmatched",
]
