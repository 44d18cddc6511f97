"""What a search is asked: units, their options, the budget."""
