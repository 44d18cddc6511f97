"""Finished quants on held-out text, against the unquantized model."""

from exltune.evaluation.stage import evaluate_quants, whole

__all__ = ["evaluate_quants", "whole"]
