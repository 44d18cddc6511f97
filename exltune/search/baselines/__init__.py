"""The methods that a search is compared with."""
