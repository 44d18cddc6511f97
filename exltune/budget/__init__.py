"""Exact bytes of linears, groups and mixes, and what a target in bpw allows."""

from exltune.budget.directory import directory_size
from exltune.budget.size import SizeModel, group_bytes, linear_bytes, mix_size

__all__ = ["SizeModel", "directory_size", "group_bytes", "linear_bytes", "mix_size"]
