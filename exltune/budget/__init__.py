"""Exact bytes of linears, groups and mixes; the room within a target in bpw, or within hardware and a context."""

from exltune.budget.directory import directory_size
from exltune.budget.memory.cache import cache_bytes, cache_bytes_per_token
from exltune.budget.memory.profile import ModelProfile, model_profile
from exltune.budget.memory.weights import (
    Weights,
    directory_weights,
    linear_weights,
    mix_weights,
    spread_bits,
    weights_of_bits,
)
from exltune.budget.placement.placement import Placement, place
from exltune.budget.plan.calibrate import recalibrate
from exltune.budget.plan.limits import Limits, WeightsBudget, fit_mix, weights_budget, weights_budget_bytes
from exltune.budget.plan.planner import plan
from exltune.budget.plan.question import Question, check_use
from exltune.budget.size import SizeModel, group_bytes, linear_bytes, mix_size
from exltune.budget.units import format_size, parse_cache, parse_gpus, parse_size, unit_of

__all__ = [
    "Limits",
    "ModelProfile",
    "Placement",
    "Question",
    "SizeModel",
    "Weights",
    "WeightsBudget",
    "cache_bytes",
    "cache_bytes_per_token",
    "check_use",
    "directory_size",
    "directory_weights",
    "fit_mix",
    "format_size",
    "group_bytes",
    "linear_bytes",
    "linear_weights",
    "mix_size",
    "mix_weights",
    "model_profile",
    "parse_cache",
    "parse_gpus",
    "parse_size",
    "place",
    "plan",
    "recalibrate",
    "spread_bits",
    "unit_of",
    "weights_budget",
    "weights_budget_bytes",
    "weights_of_bits",
]
