"""Quants on held-out tokens: tables, verdicts, comparisons."""
