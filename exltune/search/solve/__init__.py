"""Exact optima and bounds."""
