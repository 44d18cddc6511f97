"""The search for the bits of every group at a budget; no torch."""

from exltune.search.exact import solve
from exltune.search.history import SEED, History, knob_study, open_storage, storage_errors
from exltune.search.knapsack import Option, solve_knapsack
from exltune.search.knobs import SAMPLERS, Knobs, rule_bits, sampler
from exltune.search.loop import Proposal, Search, SearchSettings
from exltune.search.makers import MAKERS
from exltune.search.pairs import unfused
from exltune.search.problem import SearchProblem, Unit, UnitOption, cache_unit, head_unit, search_problem
from exltune.search.proposals import PROPOSERS, Proposer, propose
from exltune.search.rule_floors import floors
from exltune.search.rules import RULES_DIR, load_all_rules, load_rules, rules_mix
from exltune.search.strategy import StrategyQuant, exllamav3_strategy, smallest_strategy_at_least, strategy_within
from exltune.search.surrogate import Surrogate
from exltune.search.wishes import out_of_reach, unmatched

__all__ = [
    "MAKERS",
    "PROPOSERS",
    "RULES_DIR",
    "SAMPLERS",
    "SEED",
    "History",
    "Knobs",
    "Option",
    "Proposal",
    "Proposer",
    "Search",
    "SearchProblem",
    "SearchSettings",
    "StrategyQuant",
    "Surrogate",
    "Unit",
    "UnitOption",
    "cache_unit",
    "exllamav3_strategy",
    "floors",
    "head_unit",
    "knob_study",
    "load_all_rules",
    "load_rules",
    "open_storage",
    "out_of_reach",
    "propose",
    "rule_bits",
    "rules_mix",
    "sampler",
    "search_problem",
    "smallest_strategy_at_least",
    "solve",
    "solve_knapsack",
    "storage_errors",
    "strategy_within",
    "unfused",
    "unmatched",
]
