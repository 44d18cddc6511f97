"""Swaps scored on the search set: the measurement and its store."""
