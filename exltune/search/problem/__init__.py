"""The problem of a search: units, their options, the budget."""
