"""Proposals for the bits of every group at a budget; pure functions, no torch."""

from exltune.search.knapsack import Option, solve_knapsack
from exltune.search.problem import SearchProblem, search_problem
from exltune.search.proposals import PROPOSERS, Proposer, pick, propose
from exltune.search.rules import RULES_DIR, load_all_rules, load_rules, rules_mix
from exltune.search.strategy import StrategyQuant, exllamav3_strategy, smallest_strategy_at_least, strategy_within

__all__ = [
    "PROPOSERS",
    "RULES_DIR",
    "Option",
    "Proposer",
    "SearchProblem",
    "StrategyQuant",
    "exllamav3_strategy",
    "load_all_rules",
    "load_rules",
    "pick",
    "propose",
    "rules_mix",
    "search_problem",
    "smallest_strategy_at_least",
    "solve_knapsack",
    "strategy_within",
]
