"""Weights, cache and overheads on cards."""
